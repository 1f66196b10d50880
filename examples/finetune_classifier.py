"""Fine-tune a real MiniLM on real text in four ways and print what each gives and costs.

    python examples/finetune_classifier.py                          # needs no download
    python examples/finetune_classifier.py --train my_train.jsonl --dev my_dev.jsonl
    python examples/finetune_classifier.py --dataset glue/mrpc      # from the hub

The default data are the docstrings of Python's own library, to be told apart by topic. Rows of a
file are objects with "sentence1", perhaps "sentence2", and "label". All four runs share the seed,
the batches and the schedule; each has the learning rate that a search of the same size found for
it on the default data (--search repeats it, on the data given, and uses what it finds).
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from transformers import AutoModelForSequenceClassification  # noqa: E402

from benchmarks.methods.minilm import METHODS  # noqa: E402
from benchmarks.runs.finetune import Bench, Settings  # noqa: E402
from benchmarks.runs.search import best_rate, search  # noqa: E402
from benchmarks.subjects import minilm  # noqa: E402
from benchmarks.subjects.classification import Task, make_task, read_jsonl  # noqa: E402
from benchmarks.subjects.docstrings import docstring_task  # noqa: E402
from benchmarks.subjects.hub import hub_task  # noqa: E402
from benchmarks.tables.finetune import COSTS, cost_cells, search_table  # noqa: E402
from benchmarks.tables.table import table  # noqa: E402

NOTE = (
    "Score: accuracy on dev. Every row trains the head (pooler, classifier: {head:,} parameters) "
    "in full. Memory: peak above the weights. Step: median over windows of eight."
)


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    data = parser.add_argument_group("data (default: docstrings of the standard library)")
    data.add_argument("--train", type=Path, metavar="FILE.jsonl", help="rows to learn from")
    data.add_argument("--dev", type=Path, metavar="FILE.jsonl", help="rows to score on")
    data.add_argument("--dataset", metavar="NAME", help="a dataset of the hub, e.g. glue/mrpc")
    run = parser.add_argument_group("training")
    run.add_argument("--steps", type=int, default=200, help="optimizer steps (default: 200)")
    run.add_argument("--batch-size", type=int, default=16, help="rows a step (default: 16)")
    run.add_argument("--length", type=int, default=48, help="tokens a row is cut to (default: 48)")
    run.add_argument("--seed", type=int, default=0, help="of heads, batches, boosters (default: 0)")
    run.add_argument("--device", default=Settings.device, help=f"(default: {Settings.device})")
    run.add_argument("--search", action="store_true", help="search the rates first: 16 more runs")
    out = "folder for the XGBLoRA model (default: out/xgblora)"
    parser.add_argument("--out", type=Path, default=Path("out/xgblora"), help=out)
    options = parser.parse_args(argv)
    if (options.train is None) != (options.dev is None):
        parser.error("--train and --dev belong together: give both files")
    if options.train and options.dataset:
        parser.error("give either --train and --dev or --dataset, not both")
    if min(options.steps, options.batch_size, options.length) < 1:
        parser.error("--steps, --batch-size and --length must be at least 1")
    return options


def load(options: argparse.Namespace) -> Task:
    """Read the data that the options name."""
    if options.dataset:
        return hub_task(options.dataset)
    if options.train:
        train, dev = read_jsonl(options.train), read_jsonl(options.dev)
        return make_task(options.train.stem, train, dev)
    return docstring_task()


def main(argv: Sequence[str] | None = None) -> None:
    """Run the comparison."""
    options = arguments(argv)
    try:
        minilm.folder()
        task = load(options)
    except (ValueError, OSError) as error:
        sys.exit(f"finetune_classifier.py: {error}")
    print(task, task.notes, sep="\n", flush=True)
    names = ("steps", "batch_size", "length", "seed", "device")
    settings = Settings(**{name: getattr(options, name) for name in names})
    rates = {name: method.lr for name, method in METHODS.items()}
    if options.search:
        found = search(task, settings, METHODS.values())
        rates = {name: best_rate(scores) for name, scores in found.items()}
        print(search_table(found), flush=True)

    bench, rows = Bench(task, settings), []
    for name, method in METHODS.items():
        peak = bench.peak_memory(method, rates[name])
        outcome = bench.run(method, rates[name])
        rows.append([name, f"{rates[name]:g}", f"{outcome.score:.3f}", *cost_cells(outcome, peak)])
    print(table(["method", "rate", "score", *COSTS], rows))
    print(NOTE.format(head=outcome.head))

    outcome.model.save_pretrained(options.out)
    minilm.tokenizer().save_pretrained(options.out)
    again = bench.score(AutoModelForSequenceClassification.from_pretrained(options.out))
    print(f"{name} saved to {options.out}; reloaded by plain transformers it scores {again:.3f}")
    if again != outcome.score:
        sys.exit(f"the saved model differs: it scored {outcome.score:.3f} before")


if __name__ == "__main__":
    main()
