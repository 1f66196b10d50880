"""What a plan finds: each method's need, and the table of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

__all__ = ["RESERVE", "Forecast", "Need"]

GIB = 2**30
RESERVE = 0.75  # GiB of a card that a CUDA context and fragmentation take


@dataclass(frozen=True)
class Need:
    """What a method needs for a step, in bytes.

    Attributes:
        name: The method's.
        trained: Parameters trained at a time.
        weights: The model's parameters and buffers.
        saved: Activations kept for backward, at the worst draw.
        saved_mean: The same, averaged over uniform draws.
        transient: The most held beside them during forward and backward: logits and their
            gradient, a block's own temporaries.
        factors: Trained parameters beside the model's, gradients and AdamW's state.
        residual: What bfloat16 merges carry over, of the targets' size, beside the weights.
        merge: Temporaries of a merge, or of AdamW's step.
        flops: Of forward and backward, averaged over uniform draws.
    """

    name: str
    trained: int
    weights: float
    saved: float
    saved_mean: float
    transient: float
    factors: float
    residual: float
    merge: float
    flops: float

    @property
    def peak(self) -> float:
        """The most bytes held at once, at the worst draw."""
        return self._held + max(self.saved + self.transient, self.merge)

    def largest_batch(self, batch: int, room: float) -> int:
        """Return the largest batch that fits: activations are in proportion to it."""
        if self._held + self.merge > room:
            return 0
        return int((room - self._held) // ((self.saved + self.transient) / batch))

    @property
    def _held(self) -> float:
        return self.weights + self.factors + self.residual


@dataclass(frozen=True)
class Forecast:
    """What a plan found.

    Attributes:
        model: Its class's name.
        parameters: How many the model has.
        blocks: How many may be drawn.
        targets: How many linear maps they hold.
        drawn: L_s.
        batch: Rows of a batch.
        length: Tokens of a row; 0 of given inputs without ``input_ids``.
        needs: XGBLoRA's, LoRA's and full fine-tuning's.
        card: GiB of the card asked about, or None.
    """

    model: str
    parameters: int
    blocks: int
    targets: int
    drawn: int
    batch: int
    length: int
    needs: tuple[Need, ...]
    card: float | None = None

    def fits(self, need: Need) -> bool | None:
        """Whether a method fits the card, 0.75 GiB of it left for the driver; None without one."""
        return None if self.card is None else need.peak <= self._room

    def largest_batch(self, need: Need) -> int | None:
        """Return the largest batch of this length that fits the card; None without one."""
        return None if self.card is None else need.largest_batch(self.batch, self._room)

    @property
    def _room(self) -> float:
        assert self.card is not None
        return (self.card - RESERVE) * GIB

    def __str__(self) -> str:
        head = f"{self.model}: {self.parameters:,} parameters; {self.targets} targets in "
        size = f"{self.batch} x {self.length} tokens" if self.length else f"batch of {self.batch}"
        head += f"{self.blocks} blocks, {self.drawn} drawn; {size}\n\n"
        columns = ["", *(need.name for need in self.needs)]
        rows = [columns, *([label, *map(cell, self.needs)] for label, cell in self._cells())]
        widths = [max(len(row[i]) for row in rows) for i in range(len(columns))]
        return head + "\n".join(_line(row, widths) for row in rows)

    def _cells(self) -> list[tuple[str, Callable[[Need], str]]]:
        def gib(field: str) -> Callable[[Need], str]:
            return lambda need: f"{getattr(need, field) / GIB:.3f}"

        cells: list[tuple[str, Callable[[Need], str]]] = [
            ("trained at a time, head aside", lambda n: f"{n.trained:,}"),
            ("  of the model, per mille", lambda n: f"{1e3 * n.trained / self.parameters:.3f}"),
            ("TFLOPs a step", lambda n: f"{n.flops / 1e12:.3f}"),
            ("peak memory, GiB", gib("peak")),
            ("  weights", gib("weights")),
            ("  activations, worst draw", gib("saved")),
            ("    mean over draws", gib("saved_mean")),
            ("  largest transient", gib("transient")),
            ("  factors, gradients, state", gib("factors")),
            ("  residual", gib("residual")),
            ("merge or update temporaries", gib("merge")),
        ]
        if self.card is not None:
            cells.append((f"fits {self.card:g} GiB", lambda n: "yes" if self.fits(n) else "no"))
            cells.append(("  largest batch", lambda n: str(self.largest_batch(n))))
        return cells


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
    return "  ".join([row[0].ljust(widths[0]), *cells[1:]])
