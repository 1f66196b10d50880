"""The byte language model and the long runs: what is split, trained, searched, recorded, shown."""

import json
import math
import statistics
from pathlib import Path

import pytest
import torch

from benchmarks.measures import metrics
from benchmarks.methods.ceiling import HERE, METHODS
from benchmarks.methods.method import Method
from benchmarks.runs import ceiling, letting_go, regime, sweep
from benchmarks.runs.journal import Journal, Record
from benchmarks.subjects import bytelm, tasks
from benchmarks.subjects.targets import Target
from benchmarks.tables.ceiling import difference_table, loss_table, rate_table
from benchmarks.tables.regime import regime_tables
from pretrained import needs_minilm, write_rows


def test_windows_are_the_seeds_and_parts_share_no_file() -> None:
    found = [[b["input_ids"].tolist() for b in bytelm.batches(3, seed)] for seed in (0, 0, 1)]
    assert found[0] == found[1] != found[2]
    (batch,) = bytelm.batches(1, 0)
    assert torch.equal(batch["input_ids"][:, 1:], batch["labels"][:, :-1])
    sizes = {part: len(read) for part, read in bytelm.text().items()}
    assert sizes[bytelm.TRAIN] > 5 * (sizes[bytelm.SEARCH] + sizes[bytelm.SCORED]) > 0
    scored = list(bytelm.scoring(bytelm.SCORED, 10))
    assert sum(len(b["labels"]) for b in scored) == 10
    with torch.no_grad():  # nothing is known of bytes yet, and nothing of those to come is seen
        model = bytelm.model(0)
        assert float(model(**scored[0]).loss) == pytest.approx(math.log(256), rel=0.1)
        ids, labels = scored[0]["input_ids"][:1], scored[0]["labels"][:1]
        other = ids.clone()
        other[0, 40:] = 65
        logits = [model(x, labels).logits[0, :40] for x in (ids, other)]
        torch.testing.assert_close(*logits)


@pytest.mark.parametrize("name", [name for name in HERE if "r=8" not in name])
def test_a_method_trains_what_all_do_and_reaches_the_matrices_its_own_way(name: str) -> None:
    method, model = METHODS[name], bytelm.model(0)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    trainee = method.build(model, 1e-2, 0, **method.options)
    assert trainee.optimizer.param_groups[-1]["lr"] == 5e-3
    for batch in bytelm.batches(2, 0):
        trainee.model(**batch).loss.backward()
        trainee.optimizer.step()
        trainee.optimizer.zero_grad()
    after = dict(trainee.finish().named_parameters())
    assert after.keys() == before.keys()
    moved = {n for n, p in after.items() if not torch.equal(p, before[n])}
    beside = {n for n in before if bytelm.is_beside(n)}
    assert len(before) - len(beside) == 4 * bytelm.DEPTH
    assert moved == (beside if name == "embeddings and head alone" else before.keys())


def test_a_search_looks_one_rate_beyond_an_end(tmp_path: Path) -> None:
    method = Method("one", lambda: None, 2e-3, (1e-3, 2e-3, 4e-3))
    wanted = {1e-3: (2.0, [5e-4]), 2e-3: (1.0, []), 4e-3: (None, [])}
    for best, (_, beyond) in wanted.items():
        journal = Journal(tmp_path / f"{best}.jsonl")
        assert ceiling.QUEUE.rate(method, journal) is None
        for run in ceiling.QUEUE.searches(method, journal):
            loss = None if run.lr == 4e-3 else abs(run.lr - best)  # the highest diverges
            journal.once(run.key, lambda loss=loss: {"held_out": loss})
        extra = [run.lr for run in ceiling.QUEUE.searches(method, journal)[3:]]
        if best == 4e-3:
            assert ceiling.QUEUE.rate(method, journal) == 2e-3
        else:
            assert extra == beyond
            assert ceiling.QUEUE.rate(method, journal) == (None if beyond else best)


def test_a_queue_goes_on_and_is_laid_out(tmp_path: Path) -> None:
    path, names = tmp_path / "ceiling.jsonl", ("PEFT LoRA r=1", "XGBLoRA, carry=0.9 r=1")
    queue = ceiling.Queue((ceiling.Stage(2, 2, names),), searched=1, windows=4)
    queue.run(Journal(path))
    text = path.read_text(encoding="utf-8")
    queue.run(Journal(path))
    assert path.read_text(encoding="utf-8") == text
    records = [json.loads(line) for line in text.splitlines()]
    assert {r["key"]["seed"] for r in records} == {0, 1}
    assert all(0 < r["loss"] < 7 and 0 < r["held_out"] < 7 for r in records)
    shown = loss_table(Journal(path), (2,), queue)
    assert "±" in shown and "carry=0.9 r=1 " in shown and "r=8" not in shown
    assert "carry=0.9 r=1" in difference_table(Journal(path), (2,), queue)


def test_a_held_rate_is_compared_with_a_held_one(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "ceiling.jsonl")
    for name, loss in zip(["PEFT LoRA r=1", *ceiling.HELD], (3.0, 2.0, 1.5), strict=True):
        run = ceiling.Run(METHODS[name], 1e-2, 0, 1600)
        journal.once(run.key, lambda loss=loss: {"loss": loss})
    shown = difference_table(journal, (1600,))
    assert "LoRA, held" not in shown and shown.splitlines()[-1].endswith("-0.500 |")


def test_rates_beside_the_one_found_are_queued_and_laid_out(tmp_path: Path) -> None:
    path, (held, _) = tmp_path / "ceiling.jsonl", ceiling.HELD
    queue = ceiling.Queue((ceiling.Stage(2, 1, (held,), (1.0, *ceiling.OTHER_RATES)),), 1, 4)
    queue.run(Journal(path))
    losses = {record["key"]["lr"]: record["loss"] for record in Journal(path)}
    assert sorted(losses) == [5e-3, 1e-2, 2e-2]
    cells = [
        cell.strip() for cell in rate_table(Journal(path), 2, queue).split("\n")[-1].split("|")
    ]
    assert cells[1:-1] == [held, "0.01", *(f"{losses[lr]:.3f} (1)" for lr in sorted(losses))]


def test_a_diverged_run_is_recorded_as_one(tmp_path: Path) -> None:
    run = ceiling.Run(METHODS["full"], 1e30, 0, 3)
    record = Journal(tmp_path / "ceiling.jsonl").once(run.key, run)
    assert record["loss"] is None and record["held_out"] is None


def test_calibration_is_the_gap_of_confidence_and_accuracy() -> None:
    labels = torch.tensor([0, 0, 0, 1])
    sure = torch.tensor([[9.0, -9.0]]).expand(4, 2)
    assert metrics.calibration(sure, labels) == pytest.approx(0.25, abs=1e-6)
    honest = torch.tensor([[0.75, 0.25]]).log().expand(4, 2)
    assert metrics.calibration(honest, labels) == pytest.approx(0, abs=1e-6)
    mixed = torch.cat([sure[:2], honest[:2]])  # two bins: right 2 of 2, and 1 of 2
    assert metrics.calibration(mixed, labels) == pytest.approx(0.25 / 2, abs=1e-6)
    with pytest.raises(ValueError, match="a regression"):
        metrics.calibration(torch.ones(3, 1), torch.ones(3))


def test_what_is_recorded_is_shown_wherever_it_cannot_be_trained() -> None:
    recorded = Journal(ceiling.JOURNAL)
    names = {record["method"] for record in recorded if "method" in record}
    assert {"GaLore r=1", "GaLore r=8"} <= names <= METHODS.keys()
    assert all(f"| {name} " in loss_table(recorded) for name in names)


@needs_minilm
def test_a_long_run_is_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_XGB_DATA", str(tmp_path))
    (tmp_path / "trec").mkdir()
    rows = [{"sentence1": f"row {i}", "label": i % 3} for i in range(60)]
    for part in ("train", "test"):
        write_rows(tmp_path / "trec" / f"{part}.jsonl", *rows)
    monkeypatch.setattr(regime, "METHODS", ("head only", "full fine-tuning"))
    monkeypatch.setattr(regime.glue, "rate", lambda *args: 1e-3)
    for cached in (tasks.load_task, sweep._bench, regime._scored):
        cached.cache_clear()
    queue = (regime.Stage("TREC", 6, 2, times=regime.RATES),)
    journal = Journal(tmp_path / "regime.jsonl")
    assert "Nothing" in regime_tables(queue, journal)
    regime.run(queue, journal, ["head only"])  # and none that is not asked for
    other = regime.Stage("TREC", 2, checkpoints=1)
    regime.run((other,), journal)
    for cached in (tasks.load_task, sweep._bench, regime._scored):
        cached.cache_clear()
    first, half, second, short, _ = journal
    assert (first["key"]["lr"], half["key"]["lr"]) == (1e-3, 5e-4)
    better = max((first, half), key=_held_out)  # what a search at this K would have chosen
    assert (second["key"]["lr"], second["key"]["seed"]) == (better["key"]["lr"], 1)
    assert [c["step"] for c in first["checkpoints"]] == [1, 2, 3, 4, 5, 6]
    assert first["checkpoints"] != second["checkpoints"]  # other seeds
    last = first["checkpoints"][-1]
    assert {p: set(f) for p, f in last.items() if p != "step"} == {
        part: {"score", "loss", "ece"} for part in ("held out", "scored")
    }
    shown = regime_tables(queue, journal)
    assert "head only" in shown and "±" in shown and "2 tasks" not in shown
    shown = regime_tables((*queue, other), journal)
    mean = statistics.fmean(r["checkpoints"][-1]["scored"]["score"] for r in (better, short))
    (row,) = (line for line in shown.partition("2 tasks, seed 0")[2].splitlines()[2:])
    assert row.split("|")[1].strip() == "head only"  # alone has both
    assert row.split("|")[2].strip() == f"{100 * mean:.1f}"


def _held_out(record: Record) -> tuple[float, float]:
    last = record["checkpoints"][-1]["held out"]
    return last["score"], -last["loss"]


def test_a_pair_that_is_let_go_passes_the_floor_of_its_rank_and_lora_does_not() -> None:
    floor = Target().floor(1)
    ends = {way: letting_go.Run(way, 1, 1e-2, 0, 400)()["errors"][-1] for way in ("LoRA", "carry=0.9")}  # fmt: skip  # noqa: E501
    assert ends["carry=0.9"] < 0.95 * floor < floor < ends["LoRA"]
