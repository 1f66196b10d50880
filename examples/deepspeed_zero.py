"""A small Llama under DeepSpeed: any ZeRO stage, the optimizer given or named in the JSON.

    torchrun --standalone --nproc_per_node 2 examples/deepspeed_zero.py --stage 3
    torchrun --standalone --nproc_per_node 2 examples/deepspeed_zero.py --stage 3 --json
    deepspeed --num_accelerators 2 examples/deepspeed_zero.py --stage 3

With --folder it saves a checkpoint every --save-every steps, goes on from the last one, and exports
the trained weights as weights.bin at the end. The data is made up: to continue a row of tokens of
which each is the one before plus three.
"""

import argparse
import json
from pathlib import Path

import deepspeed
import torch
from torch.optim import AdamW
from torch_xgb.integrations.deepspeed import boosted
from transformers import LlamaConfig, LlamaForCausalLM

from torch_xgb import BoostedLowRankOptimizer, MergeReport

CONFIGURATIONS = Path(__file__).parent / "deepspeed"
VOCABULARY = 64


def main() -> None:
    args = arguments()
    deepspeed.init_distributed()
    config = json.loads((CONFIGURATIONS / f"zero{args.stage}.json").read_text(encoding="utf-8"))
    if args.bf16:
        config["bf16"] = {"enabled": True}
    torch.manual_seed(args.seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=4,
            num_attention_heads=4,
            pad_token_id=0,
        )
    )
    optimizer = None
    if not args.json:
        params = config.pop("optimizer")["params"]
        assert params.pop("base") == "AdamW"
        optimizer = BoostedLowRankOptimizer(AdamW, model, **params)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    boosted(engine).on_merge(say)
    train(engine, args)
    model = engine.optimizer.finalize()  # the last booster merged; under ZeRO-3 still shared out
    if args.folder:
        engine.save_16bit_model(args.folder, "weights.bin")


def train(engine: deepspeed.DeepSpeedEngine, args: argparse.Namespace) -> None:
    if args.folder and Path(args.folder, "latest").exists():
        engine.load_checkpoint(args.folder)
        print0(f"resumed at step {engine.global_steps}")
    while engine.global_steps < args.steps:
        loss = engine(**batch(engine)).loss
        engine.backward(loss)
        engine.step()
        step = engine.global_steps
        if step % 10 == 0:
            torch.distributed.all_reduce(loss := loss.detach())
            mean = loss.item() / torch.distributed.get_world_size()
            norm, rate = float(engine.get_global_grad_norm()), engine.get_lr()[0]
            print0(f"step {step}: loss {mean:.6f}, gradient {norm:.3f}, lr {rate:.2e}")
        if args.folder and step % args.save_every == 0:
            engine.save_checkpoint(args.folder)


def batch(engine: deepspeed.DeepSpeedEngine) -> dict[str, torch.Tensor]:
    """Rows that depend on the step and the process alone, so that a resumed run sees the same."""
    rank, size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    generator = torch.Generator().manual_seed(engine.global_steps)
    start = torch.randint(1, VOCABULARY, (4 * size, 1), generator=generator)[rank::size]
    ids = ((start + 3 * torch.arange(16)) % VOCABULARY).to(engine.device)
    return {"input_ids": ids, "labels": ids}


def say(report: MergeReport) -> None:
    norm = sum(n**2 for n in report.update_norm.values()) ** 0.5
    print0(f"booster {report.booster_index}: {', '.join(report.layers)}, norm {norm:.3f}")


def print0(text: str) -> None:
    if torch.distributed.get_rank() == 0:
        print(text, flush=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stage", type=int, choices=range(4), default=3)
    parser.add_argument("--json", action="store_true", help="the optimizer from the JSON alone")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--folder", help="for checkpoints and the trained weights")
    parser.add_argument("--save-every", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--local_rank", type=int, help="given by the deepspeed launcher")
    return parser.parse_args()


if __name__ == "__main__":
    main()
