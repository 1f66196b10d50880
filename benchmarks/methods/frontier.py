"""The methods that are compared at equal time and equal memory, set as a user would set them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim import AdamW

from benchmarks.methods.contenders import blocks_of, missing, quiet
from benchmarks.methods.method import Method, Trainee
from benchmarks.methods.minilm import compared, lora, xgblora
from benchmarks.subjects.minilm import is_head

BLOCKS, GAP = 6, 200
LORA, CARRIED, PAPER = "PEFT LoRA r=8", "XGBLoRA r=1, carry=0.97", "XGBLoRA r=1"


@dataclass(frozen=True)
class Entry:
    """A method, and whether its blocks are checkpointed.

    Attributes:
        method: What is trained.
        rated: The method of ``benchmarks.methods.minilm`` whose search says at which rate; without
            one it is the best of the method's own grid.
        checkpointed: Blocks are computed again in backward, which changes nothing that is learned.
    """

    method: Method
    rated: str = ""
    checkpointed: bool = False

    @property
    def name(self) -> str:
        """Name it as in the tables."""
        return self.method.name + ", checkpointed" * self.checkpointed

    @property
    def identity(self) -> dict[str, Any]:
        """Tell it from others by what a step costs."""
        return {**self.method.identity, "checkpointed": self.checkpointed}

    @property
    def boosted(self) -> bool:
        """Whether it trains boosters, which are drawn and merged."""
        return self.method.build is xgblora

    def ends(self) -> Iterator[tuple[float, dict[str, Any]]]:
        """Yield what fixes a step's lowest trained block at either end, and the end's share.

        What a step costs is linear in that block, so that the mean over draws is the ends' mean,
        weighted by these shares. One end, with share 1, is what trains every block.
        """
        drawn = self.method.options.get("layers_per_booster", 4) or BLOCKS
        if self.method.build is badam:
            yield from ((0.5, {"start": start}) for start in (0, BLOCKS - 1))
        elif self.boosted and drawn < BLOCKS:
            top = BLOCKS - drawn
            mean = ((BLOCKS + 1) / (drawn + 1) - 1) / top  # of a uniform draw's lowest block
            for share, lowest in ((1 - mean, 0), (mean, top)):
                blocks = [lowest, *range(top + 1, BLOCKS)]
                yield share, {"layer_sampler": lambda *_, blocks=blocks: blocks}
        else:
            yield 1.0, {}

    def build(self, model: nn.Module, **settings: Any) -> Trainee:
        """Put it on a model, to be counted."""
        if self.checkpointed and self.boosted:
            settings["checkpointing"] = True
        elif self.checkpointed:
            model.activation_checkpointing_enable({"use_reentrant": False})
        return self.method.build(model, 1e-3, 0, **self.method.options, **settings)


def badam(model: nn.Module, lr: float, seed: int, every: int = 50, start: int = -1) -> Trainee:
    """Train one block at a time in full, in an order drawn anew, or ``start`` for good.

    ``every`` steps another block: BAdam's default. A drawn order is what its authors recommend.
    """
    from badam import BlockOptimizer

    prefix, blocks = blocks_of(model)
    with quiet():
        optimizer = BlockOptimizer(
            AdamW(model.parameters(), lr=lr, weight_decay=0.0),
            list(model.named_parameters()),
            [[f"{prefix}.{i}."] for i in range(len(blocks))],
            switch_block_every=every if start < 0 else 10**9,
            switch_mode="random" if start < 0 else "fixed",
            start_block=None if start < 0 else start,
            active_modules=[name for name, _ in model.named_parameters() if is_head(name)],
            verbose=0,
        )
    return Trainee(model, optimizer, lambda: model)


def galore(model: nn.Module, lr: float, seed: int, rank: int = 8, gap: int = GAP) -> Trainee:
    """Train the encoder's linear maps through GaLore's projected gradients, and the head."""
    from galore_torch import GaLoreAdamW

    model.requires_grad_(False)
    prefix, _ = blocks_of(model)
    linears = [
        module.weight.requires_grad_()
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.startswith(prefix)
    ]
    head = [p.requires_grad_() for name, p in model.named_parameters() if is_head(name)]
    projected = {"rank": rank, "update_proj_gap": gap, "scale": 0.25, "proj_type": "std"}
    groups: list[dict[str, Any]] = [{"params": linears, **projected}, {"params": head}]
    optimizer = GaLoreAdamW(groups, lr=lr, no_deprecation_warning=True)
    return Trainee(model, optimizer, lambda: model)


def entries() -> tuple[Entry, ...]:
    """Return what is compared."""
    known = compared(1)
    third = Method(
        f"{CARRIED}, 2 of 6 blocks",
        xgblora,
        5e-3,
        known[CARRIED].grid,
        {"carry": 0.97, "layers_per_booster": 2},
    )
    others = (
        Entry(Method("PEFT LoRA r=32", lora, 1e-3, (5e-4, 1e-3), {"r": 32, "alpha": 64})),
        Entry(Method("BAdam, 1 block", badam, 5e-4, (2e-4, 5e-4))),
        Entry(Method("GaLore r=8", galore, 5e-3, (2e-3, 5e-3))),
    )
    boosted = [(known[PAPER], PAPER), (known[CARRIED], CARRIED), (third, CARRIED)]
    return (
        *(Entry(known[name], name) for name in ("full fine-tuning", "PEFT LoRA r=1", LORA)),
        Entry(known[LORA], LORA, checkpointed=True),
        *others,
        *(Entry(*one, checkpointed) for one in boosted for checkpointed in (False, True)),
    )


def present() -> tuple[Entry, ...]:
    """Return the entries whose packages are there."""
    return tuple(entry for entry in entries() if not missing(entry.name))
