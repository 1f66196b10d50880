"""Keep every booster of a run: find the best one afterwards, go back to it, hand it to PEFT.

    python examples/ledger.py                       # about 3 minutes on two cores, no download
    python -m torch_xgb plot out/ledger/run         # draws where and how much was trained

MiniLM learns to tell docstrings of Python's own library apart by topic. Each booster is scored on a
part of train held out. The best one is taken out of the chain as a model, as an exact LoRA adapter
and as one of a small rank, and all of them are scored on dev.
"""

import argparse
import shutil
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch  # noqa: E402
from peft import PeftModel  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.optim import AdamW  # noqa: E402

from benchmarks.methods.minilm import ENCODER_LINEARS  # noqa: E402
from benchmarks.subjects import minilm  # noqa: E402
from benchmarks.subjects.classification import Encoded, Row, hold_out  # noqa: E402
from benchmarks.subjects.docstrings import docstring_task  # noqa: E402
from benchmarks.tables.table import table  # noqa: E402
from torch_xgb import BoostedLowRankOptimizer  # noqa: E402

# peft 0.21 asks a model for this under a name that transformers 5 deprecates.
warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add, number = parser.add_argument, {"type": int, "metavar": "N"}
    add("--steps", default=200, **number, help="optimizer steps, at most (default: 200)")
    add("--batch-size", default=16, **number, help="rows a step (default: 16)")
    add("--length", default=48, **number, help="tokens a row is cut to (default: 48)")
    add("--rows", default=200, **number, help="rows held out, and twice as many of dev (200)")
    add("--patience", default=8, **number, help="boosters to wait for a better one (default: 8)")
    add("--rank", default=16, **number, help="of the small adapter (default: 16)")
    add("--seed", default=0, **number, help="of head, batches and boosters (default: 0)")
    add("--lr", type=float, default=1e-3, help="learning rate (default: 1e-3)")
    out = "folder of the ledger, made anew, and the adapters (default: out/ledger)"
    add("--out", type=Path, default=Path("out/ledger"), help=out)
    return parser.parse_args(argv)


@torch.no_grad()
def evaluate(model: nn.Module, rows: Encoded) -> tuple[float, Tensor]:
    """Return the share of rows labelled right, and the logits."""
    model.eval()
    logits, labels = [], []
    for batch in rows.ordered_batches(64):
        labels.append(batch.pop("labels"))
        logits.append(model(**batch).logits)
    z = torch.cat(logits)
    return float((z.argmax(-1) == torch.cat(labels)).double().mean()), z


def main(argv: Sequence[str] | None = None) -> None:
    """Train, choose, roll back, export, reload."""
    options = arguments(argv)
    task, tokenizer = docstring_task(), minilm.tokenizer()
    split = hold_out(task, seed=options.seed)

    def encode(rows: Sequence[Row]) -> Encoded:
        return Encoded(tokenizer, rows, task.labels, options.length)

    held_out, dev = encode(split.dev[: options.rows]), encode(task.dev[: 2 * options.rows])
    model = minilm.classifier(task.labels, options.seed)
    shutil.rmtree(options.out, ignore_errors=True)
    optimizer = BoostedLowRankOptimizer(
        AdamW, model, r=4, kappa=8, layers_per_booster=4, target_modules=ENCODER_LINEARS,
        modules_to_save=list(minilm.HEAD), seed=options.seed, record=options.out / "run",
        lr=options.lr, weight_decay=0.0,
    )  # fmt: skip
    chain = optimizer.chain
    optimizer.on_merge(lambda r: chain.score(r.booster_index, evaluate(model, held_out)[0]))
    train = encode(split.train)
    for batch in train.training_batches(options.steps, options.batch_size, options.seed):
        model.train()
        model(**batch).loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if chain.should_stop(options.patience):
            break
    optimizer.finalize()
    trained, _ = evaluate(model, dev)
    chain.rollback(model, to=chain.best)
    best, wanted = evaluate(model, dev)
    print(f"{len(chain)} boosters, scored on held-out rows: {chain.scores}")
    rows = [["trained", f"{trained:.4f}", "", ""], [f"booster {chain.best}", f"{best:.4f}", "", ""]]
    for name, rank in (("exact adapter", None), (f"adapter, rank {options.rank}", options.rank)):
        folder = options.out / name.replace(", ", "-").replace(" ", "-")
        report = chain.to_peft(folder, rank, to=chain.best)
        base = minilm.classifier(task.labels, options.seed + 1)  # its new head is another one
        value, logits = evaluate(PeftModel.from_pretrained(base, folder), dev)
        off = float((logits - wanted).abs().max())
        rows.append([name, f"{value:.4f}", f"{report.total_error:.1e}", f"{off:.1e}"])
        if rank is None and off > 1e-4:
            sys.exit(f"the exact adapter's logits are off by {off}")
    print(table(["model", "score on dev", "error of the update", "logits off by at most"], rows))


if __name__ == "__main__":
    main()
