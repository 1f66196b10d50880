import math
import sys
from pathlib import Path

import pytest
import torch

from recording import Run, bert, total_update
from torch_xgb.__main__ import main
from torch_xgb.ledger.plot import draw_chain, effective_ranks, layer_norms

PNG = b"\x89PNG"


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = Run(bert(), tmp_path / "run", ranks=(1, 2))
    run.boost(5)
    return run


def facts(run: Run) -> list[dict[str, object]]:
    return [record.facts for record in run.chain]


def test_the_heat_map_shows_norms_by_layer(run: Run) -> None:
    norms = layer_norms(run.chain.header, facts(run))
    assert list(norms) == [layer.name for layer in run.layers]
    for t, record in enumerate(run.chain):
        for layer, row in norms.items():
            if layer in record.layers:
                assert row[t] == pytest.approx(math.hypot(*record.update_norm.values()))
            else:
                assert math.isnan(row[t])


def test_effective_ranks_are_those_of_the_dense_updates(run: Run) -> None:
    chain = run.chain
    ranks = effective_ranks(chain.header, facts(run), chain.delta, [0, 2, 4])
    wanted = []
    for name in chain.header.weights:
        p = torch.linalg.svdvals(total_update(run, name)).square()
        p = p[p > 1e-20] / p.sum()
        wanted.append(float((-(p * p.log()).sum()).exp()))
    assert ranks[-1] == pytest.approx(sum(wanted) / len(wanted), rel=1e-6)
    assert ranks[0] == pytest.approx(1)  # one booster of rank 1, in one layer
    assert 1 < ranks[1] < ranks[2]


def test_the_figure_has_a_panel_each(run: Run, tmp_path: Path) -> None:
    assert len(run.chain.plot().axes) == 4  # with the colour bar
    run.chain.score(1, 0.5)
    run.chain.score(3, 0.4)
    figure = run.chain.plot(tmp_path / "chain.png")
    assert [axes.get_ylabel() for axes in figure.axes[:4]] == [
        "layer",
        "update norm",
        "effective rank",
        "score",
    ]
    assert (tmp_path / "chain.png").read_bytes().startswith(PNG)
    run.chain.plot(tmp_path / "chain.svg")
    assert "<svg" in (tmp_path / "chain.svg").read_text()


def test_one_booster_is_drawn_and_none_is_not(tmp_path: Path) -> None:
    run = Run(bert())
    with pytest.raises(ValueError, match="nothing to draw"):
        run.chain.plot()
    run.boost(1)
    run.chain.plot(tmp_path / "one.png")


def test_without_matplotlib_the_error_names_the_extra(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"torch-xgb\[plot\]"):
        draw_chain(run.chain.header, facts(run), run.chain.delta, {})


def test_the_command_draws_beside_the_ledger_or_where_it_is_told(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["plot", str(tmp_path / "run")])
    assert (tmp_path / "run" / "chain.png").read_bytes().startswith(PNG)
    assert "5 boosters drawn to" in capsys.readouterr().out
    run.chain.save(tmp_path / "packed.safetensors")
    main(["plot", str(tmp_path / "packed.safetensors"), "--out", str(tmp_path / "packed.pdf")])
    assert (tmp_path / "packed.pdf").read_bytes().startswith(b"%PDF")


def test_the_command_says_in_one_line_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="torch-xgb: no ledger at"):
        main(["plot", str(tmp_path)])
    with pytest.raises(SystemExit) as stop:
        main([])
    assert stop.value.code == 2
