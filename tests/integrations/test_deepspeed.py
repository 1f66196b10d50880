"""DeepSpeed with two processes, against an ordinary loop in one."""

import re
from typing import Any

import pytest

pytest.importorskip("deepspeed", reason="an extra of its own")

from processes import run_once
from zero_runs import Case, alone, follow_all, resume_all  # noqa: E402

pytestmark = pytest.mark.distributed

NO_HEADS: dict[str, Any] = {"modules_to_save": []}
WHOLE = {"stage3_param_persistence_threshold": 10**6}  # small weights stay gathered between steps
SHARED = {"stage3_param_persistence_threshold": 0}
EVERY = {f"stage {stage}": Case(stage, clip=0.5) for stage in range(4)}
FP32 = EVERY | {
    "0, no heads": Case(0, clip=0.02, settings=NO_HEADS),
    "0, scheduler built by the engine": Case(0, scheduler="callable"),
    "1, JSON with scheduler, accumulated": Case(
        1, client=False, scheduler="json", clip=0.3, accumulation=2
    ),
    "1, unused anchor": Case(1, clip=0.02, settings=NO_HEADS, spare=True),
    "2, client's scheduler": Case(2, scheduler="client"),
    "2, optimizer offloaded, unused anchor": Case(
        2, clip=0.5, spare=True, zero={"offload_optimizer": {"device": "cpu"}}
    ),
    "3, zero.Init, JSON with scheduler, accumulated": Case(
        3, zero_init=True, client=False, scheduler="json", clip=0.3, accumulation=2
    ),
    "3, zero.Init, biases, no heads": Case(
        3, zero_init=True, clip=0.02, settings={"bias": "targets", **NO_HEADS}
    ),
    "3, weights that stay gathered": Case(3, clip=0.5, zero=WHOLE, checkpointed=True),
    "3, offloaded, checkpointed": Case(
        3,
        clip=0.5,
        checkpointed=True,
        scheduler="callable",
        zero={"offload_param": {"device": "cpu"}, **SHARED},
    ),
    "3, unused anchor": Case(3, clip=0.02, settings=NO_HEADS, spare=True),
    "3, A from the gradient": Case(3, clip=0.5, settings={"init": "gradient"}),
    "3, experts": Case(3, clip=0.02, settings={"target_parameters": ["experts"], **NO_HEADS}),
    "3, DiReFT": Case(3, clip=0.5, settings={"adapter": "direft"}),
    "2, pairs carried": Case(2, clip=0.5, settings={"carry": 0.7}),
    "3, pairs carried": Case(3, clip=0.5, settings={"carry": 0.7}),
    "2, blocks computed again": Case(2, clip=0.5, settings={"checkpointing": True}),
    "3, blocks computed again": Case(3, clip=0.5, settings={"checkpointing": 0.5}),
}
# Heads have a master copy in float32 under ZeRO, and none in the loop they are compared with.
BF16 = {f"bf16, stage {s}": Case(s, bf16=True, clip=0.02, settings=NO_HEADS) for s in range(4)} | {
    "bf16, 1, gradients in fp32": Case(
        1, bf16=True, settings=NO_HEADS, config={"data_types": {"grad_accum_dtype": "fp32"}}
    ),
}
CASES = FP32 | BF16


@pytest.fixture(scope="module")
def followed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    ranks = run_once(tmp_path_factory, follow_all, 2, CASES)
    assert all(ranks[0][name]["losses"] == ranks[1][name]["losses"] for name in CASES)
    return ranks[0]


@pytest.mark.parametrize("name", CASES)
def test_trajectory_is_that_of_one_process(followed: dict[str, Any], name: str) -> None:
    ours, one = followed[name], alone(CASES[name])
    tolerance = 1e-5 if name in FP32 else 2e-3
    assert ours["index"] == one["index"] == 3
    assert ours["losses"] == pytest.approx(one["losses"], abs=tolerance)
    assert ours["norms"] == pytest.approx(one["norms"], abs=tolerance)
    assert list(one["weights"]) == ours["keys"]
    if name in FP32:
        for key, weight in one["weights"].items():
            assert float((ours["weights"][key] - weight).abs().max()) < 1e-5, key


# Of DiReFT's update A W, a weight shared out knows a part alone.
@pytest.mark.parametrize("name", [name for name in CASES if "DiReFT" not in name])
def test_merge_needs_no_communication(followed: dict[str, Any], name: str) -> None:
    assert followed[name]["collectives of a merge"] == []


@pytest.mark.parametrize("name", [name for name in CASES if CASES[name].clip])
def test_gradients_were_clipped(followed: dict[str, Any], name: str) -> None:
    assert max(followed[name]["norms"]) > 1.1 * CASES[name].clip


@pytest.mark.parametrize("name", CASES)
def test_nothing_is_left_on_the_model(followed: dict[str, Any], name: str) -> None:
    assert followed[name]["left"] == []
    assert followed[name]["trains again"]
    assert followed[name]["anchor moved"] == 0


def test_errors(followed: dict[str, Any]) -> None:
    said = followed["errors"]
    assert re.match(
        "ValueError: .*'kapa'.*Known are base, r, kappa.*for AdamW, lr", said["wrong key"]
    )
    assert re.match("ImportError: .*no_such_method.*made for", said["missing method"])
    assert re.match("TypeError: object does not train", said["no boosted optimizer"])
    assert re.match(r"RuntimeError: .*after finalize\(\)", said["ended"])


RESUMED = {str(stage): Case(stage) for stage in range(4)}
RESUMED |= {f"{stage} bf16": Case(stage, bf16=True) for stage in (0, 1, 3)}
RESUMED |= {"3, carried": Case(3, settings={"carry": 0.7})}


@pytest.fixture(scope="module")
def resumed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = str(tmp_path_factory.mktemp("checkpoints"))
    return run_once(tmp_path_factory, resume_all, 2, RESUMED, folder)[0]


@pytest.mark.parametrize("name", RESUMED)
def test_resume_within_a_booster_is_bitwise(resumed: dict[str, Any], name: str) -> None:
    result = resumed[name]
    assert result["losses again"] == result["losses"]
    assert result["note"] == 7
    for key, weight in result["weights"].items():
        assert weight.equal(result["weights again"][key]), key


@pytest.mark.parametrize("name", RESUMED)
def test_saved_files_hold_the_pending_booster(resumed: dict[str, Any], name: str) -> None:
    result = resumed[name]
    assert result["restored"]
    assert result["save_16bit_model"].keys() == result["saved"].keys()
    for key, weight in result["saved"].items():
        assert weight.equal(result["save_16bit_model"][key]), key
    if int(name[0]) >= 2:  # ZeRO-1 leaves frozen weights out
        assert result["zero_to_fp32"].keys() == result["saved"].keys()
    for key, weight in result.get("zero_to_fp32", {}).items():
        exact = "bf16" not in name or "head" not in key  # of heads it has the master copy
        assert float((weight - result["saved"][key]).detach().abs().max()) <= (0 if exact else 0.01)
