"""How long a training step takes: paired, interleaved, beside PEFT, BAdam, GaLore and the limit.

    pip install badam galore-torch bitsandbytes   # contenders; what is missing is left out
    python -m benchmarks.speed --json runs/speed.json --plot runs/speed.png
    python -m benchmarks.speed --subject minilm

Subjects: "llama", the 12 blocks of benchmarks.cost (4 x 256 tokens), with L_s = 4, and "minilm",
all-MiniLM-L6-v2 as a classifier (16 x 64 tokens, 6 blocks), with L_s = 2. All contenders live at
once, each with its own copy of the model, and take one step each in every round, in an order drawn
anew. So whatever slows the machine down slows all of them down, and ratios are those of the same
round. The figures are medians over the rounds, of processor time (what a shared machine changes
least) and of wall time.

A booster's step costs what its lowest drawn block says, and is linear in it (benchmarks.cost counts
both). It is therefore timed with the lowest block at either end, and a sampler's mean step is the
point between them at the sampler's mean lowest block: (L + 1)/(L_s + 1) - 1 for "uniform",
(L - L_s)/2 for "window". The limit, the frozen model run forward and backward to the input of
that block, is read the same way. A merge and the next draw are timed in every round as well, and
charged at 1/κ to each step, κ = 8. *Checkpointed* are the blocks, ours by ``checkpointing=True``
(or 0.5: every second one), PEFT's by transformers' ``activation_checkpointing_enable()``.
"""

import argparse
import json
import random
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.contenders import Batch, Contender, contenders, left_out
from benchmarks.cost import Size
from benchmarks.memory import peak_memory
from benchmarks.provenance import provenance, provenance_line
from benchmarks.table import table

KAPPA = 8
OURS, LIMIT = "torch_xgb r=1", "the limit"
Times = dict[str, list[tuple[float, float]]]  # (processor, wall) seconds, by the step's name


@dataclass(frozen=True)
class Subject:
    """A model with a batch, and how many of its blocks are drawn."""

    name: str
    model: Callable[[], nn.Module]
    batch: Batch
    blocks: int
    drawn: int

    @property
    def top(self) -> int:
        """The highest that the lowest drawn block can be."""
        return self.blocks - self.drawn

    @property
    def means(self) -> dict[str, float]:
        """The mean lowest block of a sampler, as a share of the highest possible."""
        uniform = (self.blocks + 1) / (self.drawn + 1) - 1
        return {"uniform": uniform / self.top, "window": 0.5}


def llama(size: Size) -> Subject:
    """Return the Llama of benchmarks.cost."""
    ids = size.ids()
    batch = {"input_ids": ids, "labels": ids}
    return Subject("llama", size.model, batch, size.blocks, max(1, size.blocks // 3))


def minilm(rows: int = 16, tokens: int = 64) -> Subject:
    """Return the real model with a batch of random tokens."""
    from benchmarks.minilm import classifier

    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1000, 30000, (rows, tokens), generator=generator)
    batch: dict[str, Tensor] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    batch["labels"] = torch.randint(2, (rows,), generator=generator)
    return Subject("minilm", lambda: classifier(["no", "yes"], 0).train(), batch, 6, 2)


def timed(run: Callable[[], object]) -> tuple[float, float]:
    """Return the processor and wall seconds of a run."""
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return time.process_time() - cpu, time.perf_counter() - wall


def visits(contender: Contender, top: int) -> list[tuple[str, Callable[[], object]]]:
    """List what is timed of a contender in a round, by name; aiming happens outside the clock."""
    if contender.aim is None:
        return [(contender.name, contender.step)]
    return [(f"{contender.name}@{lowest}", contender.step) for lowest in (0, top)]


def rounds(subject: Subject, made: Mapping[str, Contender], count: int, seed: int) -> Times:
    """Time every contender in every round; the first round warms up and is thrown away."""
    times: Times = defaultdict(list)
    order = [(c, name) for c in made.values() for name, _ in visits(c, _top(subject, c))]
    rng = random.Random(seed)
    for number in range(count + 1):
        rng.shuffle(order)
        for contender, name in order:
            if contender.aim is not None:
                contender.aim(int(name.rpartition("@")[2]))
            if number:
                times[name].append(timed(contender.step))
                if contender.turn is not None and name.endswith("@0"):
                    times[f"{contender.name} merge"].append(timed(contender.turn))
            else:
                contender.step()
    return dict(times)


def _sampled(name: str) -> bool:
    """Tell whether a contender's blocks come from the samplers, rather than in turns."""
    return name.startswith(("torch_xgb", LIMIT))


def _top(subject: Subject, contender: Contender) -> int:
    return subject.blocks - 1 if contender.name == "BAdam, 1 block" else subject.top


def means(subject: Subject, times: Times, clock: int) -> dict[str, list[float]]:
    """Return each contender's mean step in every round, over its draws, merges included.

    Args:
        subject: Whose samplers' means are taken.
        times: What was timed.
        clock: 0 for processor time, 1 for wall time.
    """
    series = {name: [pair[clock] for pair in pairs] for name, pairs in times.items()}
    found: dict[str, list[float]] = {}
    for name, low in series.items():
        stem, at, lowest = name.rpartition("@")
        if name.endswith(" merge") or (at and lowest != "0"):
            continue
        if not at:
            found[name] = low
            continue
        high = next(s for n, s in series.items() if n.startswith(f"{stem}@") and n != name)
        turns = series.get(f"{stem} merge", [0.0] * len(low))
        shares = subject.means if _sampled(stem) else {"": 0.5}
        for sampler, share in shares.items():
            label = f"{stem}, {sampler}" if sampler else stem
            found[label] = [
                a + share * (b - a) + turn / KAPPA
                for a, b, turn in zip(low, high, turns, strict=True)
            ]
    return found


def ratio(over: Sequence[float], under: Sequence[float]) -> float:
    """Return the median of the rounds' ratios."""
    return statistics.median(a / b for a, b in zip(over, under, strict=True))


def own_share(
    subject: Subject, times: Times, contender: Contender, steps: int = 5
) -> dict[str, float]:
    """Return what share of a step is not the model's own work.

    "uniform" and "window" are what lies beyond the limit, in the same round and without a profiler,
    which would slow small operators down: the pairs' products in forward and backward, what is
    trained beside them, ``step()``, and merges at 1/κ. The others are parts of it.
    """
    optimizer, cpu = contender.optimizer, means(subject, times, 0)
    assert optimizer is not None and contender.aim is not None
    shares = {
        sampler: statistics.median(
            1 - b / a
            for a, b in zip(cpu[f"{OURS}, {sampler}"], cpu[f"{LIMIT}, {sampler}"], strict=True)
        )
        for sampler in subject.means
    }
    contender.aim(round(subject.means["uniform"] * subject.top))
    contender.step()
    outer, inner = _timed_within(contender, [optimizer, optimizer.base], steps)  # type: ignore[attr-defined]
    merge = statistics.median(cpu_s for cpu_s, _ in times[f"{OURS} merge"])
    whole = statistics.median(cpu[f"{OURS}, uniform"])
    parts = {
        "AdamW": inner / steps,
        "step() beside it": (outer - inner) / steps,
        "merge / κ": merge / KAPPA,
    }
    return shares | {name: seconds / whole for name, seconds in parts.items()}


def _timed_within(
    contender: Contender, optimizers: Sequence[torch.optim.Optimizer], steps: int
) -> list[float]:
    """Return the processor seconds that so many steps spend inside each optimizer's ``step``."""
    spent = [0.0] * len(optimizers)

    def clocked(place: int, original: Callable[..., Any]) -> Callable[..., Any]:
        def step(*args: Any, **kwargs: Any) -> Any:
            start = time.process_time()
            try:
                return original(*args, **kwargs)
            finally:
                spent[place] += time.process_time() - start

        return step

    for place, optimizer in enumerate(optimizers):
        optimizer.step = clocked(place, optimizer.step)  # type: ignore[method-assign]
    try:
        for _ in range(steps):
            contender.step()
    finally:
        for optimizer in optimizers:
            del optimizer.step
    return spent


def peaks(subject: Subject) -> dict[str, list[int]]:
    """Measure the peak of two steps above the weights, from the optimizer's making on.

    For what draws blocks: with the lowest one at either end.
    """
    found: dict[str, list[int]] = {}
    for name, build in contenders(subject.drawn).items():
        ends: list[int] = [0]
        probe = build(subject.model(), subject.batch)
        if probe.aim is not None:
            ends = [0, _top(subject, probe)]
        del probe
        found[name] = [_peak(subject, build, lowest) for lowest in ends]
    return found


def _peak(subject: Subject, build: Callable[[nn.Module, Batch], Contender], lowest: int) -> int:
    model = subject.model()

    def run() -> None:
        contender = build(model, subject.batch)
        if contender.aim is not None:
            contender.aim(lowest)
        contender.step()
        contender.step()

    return peak_memory(run, torch.device("cpu"))


def memory_means(subject: Subject, found: Mapping[str, Sequence[int]]) -> dict[str, dict[str, int]]:
    """Return the mean over draws and the most of each contender's peaks."""
    rows: dict[str, dict[str, int]] = {}
    for name, ends in found.items():
        shares = {"": 0.0}
        if len(ends) == 2:
            shares = {f", {n}": s for n, s in subject.means.items()}
            shares = shares if _sampled(name) else {"": 0.5}
        for label, share in shares.items():
            mean = ends[0] + share * (ends[-1] - ends[0])
            rows[name + label] = {"mean": round(mean), "most": max(ends)}
    return rows


def summary(subject: Subject, times: Times, memory: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """Gather medians, paired ratios and peaks by contender."""
    cpu, wall = means(subject, times, 0), means(subject, times, 1)
    peaks_ = memory_means(subject, memory)
    rows = {}
    for name, series in cpu.items():
        limit = f"{LIMIT}, {name.rpartition(', ')[2]}" if name.startswith(OURS) else ""
        rows[name] = {
            "cpu_s": statistics.median(series),
            "wall_s": statistics.median(wall[name]),
            "of_lora8": ratio(series, cpu["PEFT LoRA r=8"]),
            "of_lora8_wall": ratio(wall[name], wall["PEFT LoRA r=8"]),
            "of_limit": ratio(series, cpu[limit]) if limit else None,
            "memory": peaks_.get(name),
        }
    return rows


def speed_table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Lay the summary out."""
    head = [
        "",
        "step, ms",
        "wall, ms",
        "of LoRA r=8",
        "wall",
        "of its limit",
        "peak MB",
        "of LoRA's",
    ]
    head += ["most"]
    lora = rows["PEFT LoRA r=8"]["memory"]
    body = []
    for name, row in rows.items():
        memory = row["memory"]
        cells = [f"{1e3 * row[key]:.0f}" for key in ("cpu_s", "wall_s")]
        cells += [f"{row[key]:.3f}" for key in ("of_lora8", "of_lora8_wall")]
        cells += ["" if row["of_limit"] is None else f"{row['of_limit']:.3f}"]
        if memory and lora:
            ratio_ = f"{memory['mean'] / lora['mean']:.2f}"
            cells += [f"{memory['mean'] / 1e6:.0f}", ratio_, f"{memory['most'] / 1e6:.0f}"]
        else:
            cells += ["", "", ""]
        body.append([name, *cells])
    return table(head, body)


def plot(rows: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Draw time and memory of every contender, in units of LoRA's."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    names = sorted(rows, key=lambda n: -rows[n]["of_lora8"])
    lora = rows["PEFT LoRA r=8"]["memory"]
    figure, axes = pyplot.subplots(1, 2, figsize=(10, 0.4 * len(names) + 1.2), sharey=True)
    colours = [
        "C0" if n.startswith("torch_xgb") else "0.75" if n.startswith(LIMIT) else "C1"
        for n in names
    ]
    axes[0].barh(names, [rows[n]["of_lora8"] for n in names], color=colours)
    axes[0].set_xlabel("processor time of a step / PEFT LoRA r=8")
    if lora:
        shares = [rows[n]["memory"]["mean"] / lora["mean"] for n in names]
        axes[1].barh(names, shares, color=colours)
        axes[1].set_xlabel("peak memory above the weights / PEFT LoRA r=8")
    for axis in axes:
        axis.axvline(1, color="0.3", linewidth=0.8)
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speed",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--subject", choices=("llama", "minilm"), default="llama")
    parser.add_argument("--rounds", type=int, default=15, help="timed rounds (default: 15)")
    parser.add_argument("--seed", type=int, default=0, help="of the orders (default: 0)")
    parser.add_argument("--no-memory", action="store_true", help="skip the peaks of memory")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw them there")
    options = parser.parse_args(argv)
    subject = llama(Size()) if options.subject == "llama" else minilm()
    memory = {} if options.no_memory else peaks(subject)
    made = {
        n: build(subject.model(), subject.batch) for n, build in contenders(subject.drawn).items()
    }
    times = rounds(subject, made, options.rounds, options.seed)
    share = own_share(subject, times, made[OURS])
    rows = summary(subject, times, memory)
    head = f"{subject.name}: {subject.drawn} of {subject.blocks} blocks drawn, "
    print(f"{head}{options.rounds} rounds, seed {options.seed}; {provenance_line()}; ", end="")
    print(f"{left_out(list(made))}\n\n{speed_table(rows)}\n")
    told = [f"{name} {value:.2%}" for name, value in share.items()]
    count = len(subject.means)
    print(f"not the model's own work: {', '.join(told[:count])}; of it {', '.join(told[count:])}")
    if options.plot:
        plot(rows, options.plot)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        about = {"subject": subject.name, "drawn": subject.drawn, "seed": options.seed}
        found = {**about, **provenance(), "rows": rows, "own_share": share, "times": times}
        options.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
