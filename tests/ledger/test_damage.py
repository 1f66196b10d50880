"""Whatever happens to a ledger's files is found, said in our words, and harms no model."""

import json
import os
import random
import shutil
import struct
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from recording import Run, same, weights_of
from torch_xgb.ledger.chain import Chain

FILES = [
    "chain.json",
    "base.safetensors",
    "booster-000001.safetensors",
    "booster-000002.safetensors",
]
OWN = (ValueError, RuntimeError)


def plain(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    blocks = [nn.Sequential(nn.Linear(6, 6, bias=False), nn.Tanh()) for _ in range(3)]
    return nn.Sequential(*blocks)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ledger of four boosters with scores, and the same packed."""
    folder = tmp_path_factory.mktemp("made")
    run = Run(plain(), folder / "run", ranks=(1, 2))
    run.boost(4)
    run.chain.score(1, 0.5)
    run.chain.score(3, 0.25)
    run.chain.save(folder / "packed.safetensors")
    run.writer.close()
    return folder


@pytest.fixture
def ledger(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made / "run", tmp_path / "run")
    shutil.copy(made / "packed.safetensors", tmp_path)
    return tmp_path / "run"


def everything(path: Path) -> list[Any]:
    """Use all of a ledger, on a trained model and on the original one; what came of each use."""
    found: list[Any] = []
    for use in (
        lambda chain: weights_of(chain.rollback(plain(seed=1), 3)),
        lambda chain: weights_of(chain.apply(plain())),
        lambda chain: weights_of(chain.apply(plain(), exact=True)),
        lambda chain: [record.facts | {"layers": list(record.layers)} for record in chain],
        lambda chain: [chain.delta(name) for name in chain.header.weights],
        lambda chain: dict(chain.scores),
        lambda chain: chain.to_peft(path.parent / "adapter", rank=1).total_error,
    ):
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "(?s).*scores are lost")
                found.append(use(Chain.load(path)))
        except OWN as error:
            found.append(error)
    return found


def alike(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(alike(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(alike, a, b))
    return bool(a == b)


def test_of_an_unharmed_ledger_nothing_is_said(made: Path) -> None:
    of_folder, of_file = everything(made / "run"), everything(made / "packed.safetensors")
    assert alike(of_folder, of_file)
    assert not any(isinstance(one, Exception) for one in of_folder)


def flipped(data: bytes, dice: random.Random) -> bytes:
    spoilt = bytearray(data)
    spoilt[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
    return bytes(spoilt)


def cut(data: bytes, dice: random.Random) -> bytes:
    return data[: dice.randrange(len(data))]


def garbled(data: bytes, dice: random.Random) -> bytes:
    at = dice.randrange(len(data))
    return data[:at] + dice.randbytes(dice.randrange(1, 40)) + data[at + dice.randrange(40) :]


def deep(data: bytes, dice: random.Random) -> bytes:
    bracket = dice.choice([b"[", b'{"a":'])
    return bracket * 100_000


def random_bytes(data: bytes, dice: random.Random) -> bytes:
    return dice.randbytes(dice.randrange(2000))


def huge(data: bytes, dice: random.Random) -> bytes:
    return struct.pack("<Q", dice.choice([1 << 63, 1 << 40, 99_999_999])) + data[8:]


HARM = [flipped, flipped, flipped, cut, garbled, deep, random_bytes, huge]


@pytest.mark.parametrize("file", [*FILES, "scores.json", "packed"])
def test_damage_is_found_and_changes_no_result_in_silence(ledger: Path, file: str) -> None:
    packed = ledger.parent / "packed.safetensors"
    path, target = (packed, packed) if file == "packed" else (ledger, ledger / file)
    data, want, dice = target.read_bytes(), everything(path), random.Random(file)
    for i in range(40):
        target.write_bytes(HARM[i % len(HARM)](data, dice))
        for got, wanted in zip(everything(path), want, strict=True):
            told = isinstance(got, Exception) and str(path) in str(got)
            lost = file == "scores.json" and got == {}
            assert told or lost or alike(got, wanted), (i, got)


@pytest.mark.parametrize("kind", ["scores of another", "no list", "of nobody"])
def test_scores_alone_are_lost_alone(ledger: Path, kind: str) -> None:
    wrong = {"scores of another": '{"0": 9.5, "checksum": "0"}', "no list": "3"}
    (ledger / "scores.json").write_text(wrong.get(kind, '{"x": 1.0}'))
    with pytest.warns(UserWarning, match="scores.json.*scores are lost; the boosters are not"):
        chain = Chain.load(ledger)
    assert len(chain) == 4 and not chain.scores
    chain.score(2, 1.0)
    assert dict(Chain.load(ledger).scores) == {2: 1.0}


# Values of the wrong kind, with their checksum made to fit


def paths(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where in a nested value there is something to change."""
    inner = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    return [at, *(path for key, one in inner for path in paths(one, (*at, key)))]


def changed(value: Any, path: tuple[Any, ...], to: Any) -> Any:
    if not path:
        return to
    copied = value.copy()
    if to is ... and len(path) == 1:
        del copied[path[0]]
    else:
        copied[path[0]] = changed(value[path[0]], path[1:], to)
    return copied


def sealed(facts: Any) -> Any:
    from torch_xgb.ledger import digests

    if not isinstance(facts, dict):
        return facts
    return digests.sealed({key: facts[key] for key in facts if key != "checksum"})


WRONG = [..., None, True, -1, 2**70, 1e999, "x", [], {}, [[]], {"x": [1]}, [1, "x"], float("nan")]


def test_values_of_the_wrong_kind_in_the_header(ledger: Path) -> None:
    file, dice = ledger / "chain.json", random.Random(0)
    header, want = json.loads(file.read_text()), everything(ledger)
    places = [path for path in paths(header) if path and path[:2] != ("settings", "kappa")]
    for path in places:
        for to in dice.sample(WRONG, 3):
            file.write_text(json.dumps(sealed(changed(header, path, to))))
            for got, wanted in zip(everything(ledger), want, strict=True):
                assert isinstance(got, OWN) or alike(got, wanted), (path, to)


@pytest.mark.parametrize("old", [False, True], ids=["digests", "no digests"])
def test_values_of_the_wrong_kind_in_a_booster(ledger: Path, old: bool) -> None:
    """Of an earlier version's ledger too, which has no digests."""
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    file, dice = ledger / "booster-000001.safetensors", random.Random(1)
    tensors = load_file(file)
    with safe_open(file, framework="pt") as opened:
        facts = json.loads(opened.metadata()["facts"])
    if old:
        header = json.loads((ledger / "chain.json").read_text()) | {"version": 2}
        del header["checksum"]
        (ledger / "chain.json").write_text(json.dumps(header))
    for path in dice.sample(paths(facts)[1:], min(40, len(paths(facts)) - 1)):
        to = dice.choice(WRONG)
        save_file(tensors, file, {"facts": json.dumps(changed(facts, path, to))})
        assert all(
            not isinstance(got, Exception) or isinstance(got, OWN) for got in everything(ledger)
        )
    for key in tensors:
        for other in (torch.zeros(0), torch.full((6, 6), torch.nan), torch.zeros(6, 6, 6)):
            save_file({**tensors, key: other}, file, {"facts": json.dumps(facts)})
            assert isinstance(everything(ledger)[0], ValueError)


# What is in the place of a file


@pytest.mark.parametrize("file", [*FILES, "scores.json"])
@pytest.mark.parametrize("kind", ["pipe", "endless", "loop", "folder", "nothing"])
def test_what_is_no_file_is_not_waited_for(ledger: Path, file: str, kind: str) -> None:
    path = ledger / file
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "endless":
        path.symlink_to("/dev/zero")
    elif kind == "loop":
        path.symlink_to(path.name)
    elif kind == "nothing":
        path.symlink_to("nowhere")
    else:
        path.mkdir()
    rolled = everything(ledger)[0]
    if file == "scores.json":
        assert not isinstance(rolled, Exception)
    else:
        assert isinstance(rolled, ValueError)


@pytest.mark.parametrize("harm", [*FILES[1:], "taken away"])
@pytest.mark.parametrize("call", ["rollback", "apply", "exact"])
def test_a_model_is_as_it_was_when_a_part_is_damaged(ledger: Path, harm: str, call: str) -> None:
    path = ledger / ("booster-000003.safetensors" if harm == "taken away" else harm)
    chain = Chain.load(ledger)
    if harm == "taken away":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-9])
    model = plain()
    before = weights_of(model)
    given: dict[str, Callable[[], object]] = {
        "rollback": lambda: chain.rollback(model, 3),
        "apply": lambda: chain.apply(model),
        "exact": lambda: chain.apply(model, exact=True),
    }
    if call != "rollback" and harm == "base.safetensors":
        given[call]()  # the model has these weights
        return
    with pytest.raises(ValueError, match=f"{path.name}.*damaged"):
        given[call]()
    assert same(weights_of(model), before)
    if harm == "booster-000002.safetensors":
        chain.rollback(model, 1)


@pytest.mark.parametrize("other", ["place", "run", "base", "branch"])
def test_a_part_of_elsewhere_is_found(ledger: Path, tmp_path: Path, other: str) -> None:
    """Each is a whole and valid file, and belongs to another place, run or history."""
    stranger = Run(plain(), tmp_path / "other", ranks=(1, 2), seed=int(other == "branch"))
    stranger.boost(4)
    source = tmp_path / "other"
    if other == "place":
        shutil.copy(ledger / "booster-000001.safetensors", ledger / "booster-000003.safetensors")
    elif other == "branch":
        shutil.copy(source / "booster-000003.safetensors", ledger)
        header = json.loads((ledger / "chain.json").read_text())
        shutil.copy(source / "chain.json", ledger)
        assert header["run"] != json.loads((ledger / "chain.json").read_text())["run"]
    else:
        name = "base.safetensors" if other == "base" else "booster-000002.safetensors"
        shutil.copy(source / name, ledger)
    model = plain(seed=1)
    before = weights_of(model)
    with pytest.raises(ValueError, match="in the place of|of the run"):
        Chain.load(ledger).rollback(model, 3)
    assert same(weights_of(model), before)


def test_a_change_of_a_ledger_in_memory_is_found() -> None:
    run = Run(plain())
    run.boost(2)
    next(iter(run.chain[0].updates.values()))[0].zero_()
    with pytest.raises(ValueError, match="checksum differs"):
        run.chain.rollback(run.model, 1)


def test_on_another_default_device(ledger: Path) -> None:
    want = everything(ledger)
    torch.set_default_device("meta")
    try:
        chain = Chain.load(ledger)
        deltas = [chain.delta(name) for name in chain.header.weights]
        packed = Chain.load(ledger.parent / "packed.safetensors")
        assert alike(deltas, [packed.delta(name) for name in packed.header.weights])
        chain.save(ledger.parent / "again.safetensors")
    finally:
        torch.set_default_device(None)
    assert alike(deltas, want[4])
    assert alike(everything(ledger.parent / "again.safetensors"), want)
