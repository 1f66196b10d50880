"""The blocks of the pages in docs/results, tables and plots, by the names that markers have."""

import re
import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from benchmarks.measures.metrics import interval
from benchmarks.methods import ablation, dynamics
from benchmarks.methods.frontier import CARRIED, LORA
from benchmarks.methods.method import Method
from benchmarks.methods.minilm import METHODS, TAKEN_UP, compared
from benchmarks.methods.rates import RANKS, STARTS
from benchmarks.runs import causal, ceiling, domain, frontier, glue, letting_go, regime, theory
from benchmarks.runs.journal import Journal, Record, canonical
from benchmarks.runs.sweep import RATES, RUNS, best
from benchmarks.subjects.tasks import TASKS
from benchmarks.tables import efficiency
from benchmarks.tables.ablation import ablation_table, recorded
from benchmarks.tables.causal import recorded_table
from benchmarks.tables.ceiling import difference_table, loss_table, used
from benchmarks.tables.ceiling import rate_table as ceiling_rates
from benchmarks.tables.curves import Curve, Point, draw, scatter
from benchmarks.tables.domain import domain_table
from benchmarks.tables.dynamics import dynamics_table
from benchmarks.tables.frontier import frontier_table, reached
from benchmarks.tables.frontier import used as frontier_used
from benchmarks.tables.glue import rate_table, score_table
from benchmarks.tables.letting_go import letting_go_table
from benchmarks.tables.overview import draw_overview
from benchmarks.tables.rates import rates_table
from benchmarks.tables.regime import regime_tables
from benchmarks.tables.table import table
from benchmarks.tables.theory import findings

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "results"
PLOTS = FOLDER / "plots"
STEPS, SEEDS = 300, 3
OWN = (*METHODS, "PEFT LoRA r=1", *TAKEN_UP)  # searched for every task
_BLOCK = re.compile(r"(<!-- table: (.+?) -->\n).*?(<!-- end -->)", re.DOTALL)


def provenance(records: Iterable[Record]) -> str:
    """Say what the records took and where they come from."""
    found = list(records)
    if not found:
        return "Nothing is recorded yet."
    hours = sum(r["wall_s"] for r in found) / 3600
    machines = sorted({
        f"{p['machine']}, {p['cores']} cores, {p['threads']} thread, torch {p['torch']}, "
        f"transformers {p['transformers']}, peft {p['peft']}"
        for p in (r["provenance"] for r in found)
    })  # fmt: skip
    seeds = sorted({r["key"]["seed"] for r in found if "seed" in r["key"]})
    about = f"seeds {', '.join(map(str, seeds))}; " if seeds else ""
    return f"{len(found)} runs, {hours:.1f} h of wall time in all; {about}{'; '.join(machines)}."


def _with_provenance(text: str, records: Iterable[Record]) -> str:
    return f"{text}\n\n{provenance(records)}"


def glue_block() -> str:
    """Lay out GLUE in kind."""
    journal, size = Journal(RUNS), glue.Size(steps=STEPS)
    return _with_provenance(score_table(size, journal), glue.used(size, journal))


def rates_block() -> str:
    """Lay out the one line's scores by scale and rate."""
    journal = Journal(RATES)
    tables = [
        rates_table(task, start, RANKS, STEPS, SEEDS, journal)
        for task in ("TREC", "SST-2")
        for start in STARTS
    ]
    return _with_provenance("\n\n".join(filter(None, tables)), journal)


def own_rates_block() -> str:
    """Lay out the main methods with a rate for every task that has rows enough to search on."""
    journal = Journal(RUNS)
    tasks = tuple(task for task in TASKS if task != "CB")
    size = glue.Size(tasks, OWN, STEPS, SEEDS, searched=())
    tables = f"{score_table(size, journal)}\n\n{rate_table(size, journal)}"
    return _with_provenance(tables, glue.used(size, journal))


def dynamics_block() -> str:
    """Lay out the booster's dynamics at the shortest K, both tasks."""
    journal = Journal(RUNS)
    text = dynamics_table(dynamics.TASK_NAMES, STEPS, SEEDS, journal)
    return _with_provenance(text, _dynamics_records(journal, (STEPS,)))


def crossing_block() -> str:
    """Lay out and draw the score and loss on the scored rows against K."""
    journal, rows, curves = Journal(RUNS), [], []
    for name in dynamics.CURVES:
        method = dynamics.variants()[name]
        found = [best("TREC", method, K, SEEDS, journal) for K in dynamics.CROSSING]
        losses = [statistics.fmean(r["dev_loss"] for r in rs) if rs else None for rs in found]
        cells = []
        for rs, loss in zip(found, losses, strict=True):
            score = f"{100 * interval([r['score'] for r in rs])[0]:.1f} ({len(rs)})" if rs else "–"
            cells += [score, f"{loss:.3f}" if loss else "–"]
        rows.append([name, *cells])
        points = [(K, loss) for K, loss in zip(dynamics.CROSSING, losses, strict=True) if loss]
        if points:
            x, y = zip(*points, strict=True)
            curves.append(Curve(name, x, y))
    columns = [cell for K in dynamics.CROSSING for cell in (f"K = {K:,}", "loss")]
    head = ["TREC, score (seeds)", *columns]
    if any(len(curve.x) > 1 for curve in curves):
        title = "MiniLM on TREC, loss on the scored rows"
        draw(PLOTS / "crossing.png", curves, "steps K", "loss", title, dots=True)
    records = _dynamics_records(journal, dynamics.CROSSING[1:])
    return _with_provenance(table(head, rows), records)


def frontier_block() -> str:
    """Lay out scores at equal time, and draw the README's picture."""
    counts, journal = frontier.counted(Journal(frontier.COUNTS)), Journal(RUNS)
    draw_overview(PLOTS / "overview.png", list(reached(counts, journal)), _against_time(counts))
    records = [*counts.values(), *frontier_used(counts, journal)]
    return _with_provenance(frontier_table(counts, journal), records)


def _against_time(counts: frontier.Counts) -> list[Curve]:
    """Return a curve a method, of its score on TREC against its time, in steps of LoRA's."""
    journal, curves = Journal(RUNS), []
    for name in dynamics.CURVES:
        # The others train a pair of rank 1 on every block, as the carried ones do.
        cost = counts[LORA if name == LORA else CARRIED]["flops"] / counts[LORA]["flops"]
        method = dynamics.variants()[name]
        found = [(K, best("TREC", method, K, SEEDS, journal)) for K in dynamics.CROSSING]
        means = {K: 100 * statistics.fmean(r["score"] for r in rs) for K, rs in found if rs}
        curves.append(Curve(name, [K * cost for K in means], [*means.values()]))
    return curves


def _dynamics_records(journal: Journal, lengths: Sequence[int]) -> list[Record]:
    return _runs_of(dynamics.variants().values(), journal, lengths)


def _runs_of(methods: Iterable[Method], journal: Journal, lengths: Sequence[int]) -> list[Record]:
    """Return the runs of so many steps that these methods have at the rates of their grids."""
    grids = {canonical(method.identity): method.grid for method in methods}
    return [
        r
        for r in journal
        if r["key"]["steps"] in lengths and r["key"]["lr"] in grids.get(_identity(r), ())
    ]


def _identity(record: Record) -> str:
    return canonical({name: record["key"][name] for name in ("build", "options")})


def ablation_block() -> str:
    """Lay out every ablation of which more than the default is recorded."""
    journal, parts = Journal(RUNS), []
    for setting, grid in ablation.GRIDS.items():
        methods = [ablation.method(setting, value) for value in grid]
        args = (STEPS, SEEDS, journal)
        tasks = ablation.TASK_NAMES
        if sum(any(recorded(m, t, *args) for t in tasks) for m in methods) > 1:
            parts.append(ablation_table(setting, ablation.TASK_NAMES, *args))
    return "\n\n".join(parts) or "Nothing is recorded yet."


def theory_block() -> str:
    """Draw the theorems' plots and list what they show."""
    journal = Journal(theory.JOURNAL)
    lines = "\n".join(findings(journal))
    return _with_provenance(f"```\n{lines}\n```", journal)


def ceiling_block() -> str:
    """Lay out the byte language model's losses, and how far each is from LoRA of its rank."""
    journal = Journal(ceiling.JOURNAL)
    tables = loss_table(journal), difference_table(journal), ceiling_rates(journal)
    text = "\n\n".join(filter(None, tables))
    return _with_provenance(text, used(journal))


def letting_go_block() -> str:
    """Lay out how fast a carried pair is let go."""
    journal = Journal(letting_go.JOURNAL)
    return _with_provenance(letting_go_table(journal), journal)


def regime_block() -> str:
    """Lay out the long runs."""
    journal = Journal(regime.JOURNAL)
    return _with_provenance(regime_tables(regime.QUEUE, journal), journal)


def efficiency_block() -> str:
    """Lay out what the methods cost, and draw their scores on TREC against it."""
    journal = Journal(efficiency.JOURNAL)
    found = efficiency.costs(journal)
    _draw_efficiency(found)
    return _with_provenance(efficiency.cost_table(found), journal)


def _draw_efficiency(found: dict[str, Record]) -> None:
    journal = Journal(RUNS)
    scores = {name: _scores(name, journal) for name in found}
    costs: dict[str, tuple[str, Callable[[Record], float], bool]] = {
        "parameters": ("trained parameters", lambda r: r["trainable"], True),
        "memory": ("peak memory above the weights, MB", lambda r: r["peak"] / 1e6, True),
        "flops": ("FLOPs a step, 10⁹", lambda r: r["flops"] / 1e9, False),
    }
    for kind, (label, cost, logarithmic) in costs.items():
        points = []
        for name, values in scores.items():
            if values:
                mean, half = interval(values)
                error = half if len(values) > 1 else 0.0
                points.append(Point(name, cost(found[name]), 100 * mean, 100 * error))
        if points:
            path = PLOTS / f"efficiency-{kind}.png"
            scatter(path, points, label, "TREC, score", "MiniLM on TREC, K = 300", logarithmic)


def _runs(name: str, journal: Journal) -> list[Record]:
    """Return a method's runs on TREC at the rate with most seeds, the best of equals."""
    identity = canonical(compared(STEPS)[name].identity)
    by_rate: dict[float, list[Record]] = {}
    for r in journal:
        key = r["key"]
        if _identity(r) == identity and (key["task"], key["steps"], key["part"]) == (
            "TREC",
            STEPS,
            "scored",
        ):
            by_rate.setdefault(key["lr"], []).append(r)
    good = lambda rs: (len(rs), statistics.fmean(r["score"] for r in rs))  # noqa: E731
    return max(by_rate.values(), key=good, default=[])


def _scores(name: str, journal: Journal) -> list[float]:
    return [r["score"] for r in _runs(name, journal)]


def causal_block() -> str:
    """Lay out what is recorded of the causal LM."""
    journal = Journal(causal.JOURNAL)
    if not len(journal):
        return "Nothing is recorded yet."
    return _with_provenance(recorded_table(journal), journal)


def domain_block() -> str:
    """Lay out the causal LM's perplexity on text of a domain."""
    journal = Journal(domain.JOURNAL)
    return _with_provenance(domain_table(domain.Size(), journal), journal)


def missing_block() -> str:
    """Say how much of the full table is still to be run."""
    journal, size = Journal(RUNS), glue.Size()
    methods = compared(STEPS)
    lines = []
    for task in TASKS:
        seeds = [len(glue.scores(task, name, size, journal)) for name in methods]
        done = sum(n == size.seeds for n in seeds)
        begun = sum(0 < n < size.seeds for n in seeds)
        lines.append(
            f"- {task}: {done} of {len(methods)} methods with all seeds, {begun} with some"
        )
    return "\n".join(lines)


BLOCKS: dict[str, Callable[[], str]] = {
    "glue": glue_block,
    "own rates": own_rates_block,
    "rates": rates_block,
    "missing": missing_block,
    "dynamics": dynamics_block,
    "crossing": crossing_block,
    "frontier": frontier_block,
    "ablation": ablation_block,
    "ceiling": ceiling_block,
    "letting go": letting_go_block,
    "regime": regime_block,
    "theory": theory_block,
    "efficiency": efficiency_block,
    "causal": causal_block,
    "domain": domain_block,
}


def pages() -> list[Path]:
    """Return the pages of results, tables on them or not."""
    return sorted(FOLDER.glob("*.md"))


def rebuilt(page: str) -> str:
    """Return the page with every table as the records say.

    Raises:
        ValueError: If the page asks for a table that there is none of.
    """
    unknown = {match[2] for match in _BLOCK.finditer(page)} - BLOCKS.keys()
    if unknown:
        raise ValueError(f"no such table: {sorted(unknown)}; there are {sorted(BLOCKS)}")
    return _BLOCK.sub(lambda m: f"{m[1]}{BLOCKS[m[2]]()}\n{m[3]}", page)
