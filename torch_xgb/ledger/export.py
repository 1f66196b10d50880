"""A chain as a LoRA adapter in PEFT's format: the boosters' factors side by side, or compressed."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from torch_xgb.checks import positive_integer
from torch_xgb.ledger import card
from torch_xgb.ledger.files import exists, replacing_all, writing
from torch_xgb.ledger.header import ChainHeader
from torch_xgb.ledger.kept import Kept
from torch_xgb.ledger.records import snapshot
from torch_xgb.ledger.tensorfile import import_safetensors, write_tensors
from torch_xgb.ledger.wrapped import Wrapped, side_by_side
from torch_xgb.targets.compiled import plain_name

__all__ = ["ExportReport", "write_adapter"]

Delta = Callable[[str], tuple[Tensor, Tensor]]
_PREFIX = "base_model.model."  # what peft.PeftModel adds to the names of a model's parameters


@dataclass(frozen=True)
class ExportReport:
    """What an adapter keeps of a chain.

    Attributes:
        folder: Where the adapter is.
        rank: Its rank per weight.
        error: ‖kept − ΔW‖_F / ‖ΔW‖_F per weight.
        total_error: The same over all weights together.
        parameters: The number of the adapter's parameters, modules trained in full included.
    """

    folder: Path
    rank: Mapping[str, int]
    error: Mapping[str, float]
    total_error: float
    parameters: int


def write_adapter(
    folder: Path,
    header: ChainHeader,
    delta: Delta,
    saved: Mapping[str, Tensor],
    rank: int | None,
    boosters: int,
    kept: str | None = None,
) -> ExportReport:
    """Write adapter_config.json, adapter_model.safetensors and README.md.

    Args:
        folder: Where to.
        header: The chain's.
        delta: Returns a weight's whole update as two factors, by name.
        saved: The Parameters trained in full.
        rank: The rank to cut to, or None for all of the update.
        boosters: How many the update sums up, for the model card.
        kept: What else the card says of the update; None says how near the adapter is to it.

    Raises:
        ValueError: If a LoRA adapter cannot express the update.
    """
    if rank is not None:
        positive_integer("rank", rank, "a positive integer or None")
    import_safetensors()
    names = [name for name in header.weights if not _is_bias(name, header)]
    pairs = {name: Kept.of(*delta(name), rank) for name in names}
    pairs = {name: pair for name, pair in pairs.items() if pair.rank}
    if not pairs:
        raise ValueError("there is no update to export: the chain holds no merged booster")
    biases = _biases(header, delta)
    wrapped = Wrapped({plain_name(name): header.weights[name] for name in pairs})
    modules = {m: pair for name, pair in pairs.items() for m in _holders(name, header)}
    _check_biases(biases, modules)
    saved_modules = _saved_modules(header, modules)
    saved = {**saved, **{other: saved[name] for other, name in header.tied.items()}}
    tensors = _tensors(modules, wrapped, biases, saved)
    config = _config(header, modules, wrapped, bool(biases), saved_modules)
    report = ExportReport(
        folder,
        {name: pair.rank for name, pair in pairs.items()},
        {name: pair.lost / pair.norm if pair.norm else 0.0 for name, pair in pairs.items()},
        _share([pair.lost for pair in pairs.values()], [pair.norm for pair in pairs.values()]),
        sum(tensor.numel() for tensor in tensors.values()),
    )
    kept = kept or _nearness(report, rank)
    text = card.card(header, boosters, report.rank.values(), report.parameters, kept)
    _write(folder, tensors, json.dumps(config, indent=2) + "\n", text)
    return report


def _write(folder: Path, tensors: Mapping[str, Tensor], config: str, readme: str) -> None:
    """Write the files, or none: they are moved into place when all of them are complete.

    Raises:
        ValueError: If something else has their names.
    """
    if exists(folder) and not folder.is_dir():
        raise ValueError(f"an adapter is a folder, and {str(folder)!r} is none: choose another")
    cannot = f"the adapter {str(folder)!r} cannot be written: free space, or choose another path"
    with writing(cannot):
        _move_in(folder, tensors, config, readme)


def _move_in(folder: Path, tensors: Mapping[str, Tensor], config: str, readme: str) -> None:
    made = not folder.exists()
    files = [folder / "adapter_model.safetensors", folder / "adapter_config.json"]
    if card.is_card(folder / card.FILE):
        files.append(folder / card.FILE)
    if taken := [file for file in files if file.is_dir()]:
        raise ValueError(f"{str(taken[0])!r} is a folder: choose another path for the adapter")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with replacing_all(files) as (data, *texts):
            write_tensors(data, tensors, {"format": "pt"})
            for file, text in zip(texts, (config, readme), strict=False):
                file.write(text.encode())
    except BaseException:
        if made:
            with suppress(OSError):
                folder.rmdir()
        raise


def _holders(name: str, header: ChainHeader) -> tuple[str, ...]:
    """Return what an adapter names a weight's factors by: the linear maps, or a bare Parameter."""
    facts = header.weights[name]
    return (plain_name(name),) if facts.bare else facts.modules


def _biases(header: ChainHeader, delta: Delta) -> dict[str, Tensor]:
    """Return the updates of biases by the names of their modules; none if none has one."""
    found = {}
    for name in header.weights:
        if _is_bias(name, header):
            left, right = delta(name)
            found[plain_name(name.rpartition(".")[0])] = (left @ right).squeeze(1)
    return found if any(bool(update.any()) for update in found.values()) else {}


def _check_biases(biases: Mapping[str, Tensor], modules: Mapping[str, Kept]) -> None:
    if not biases:
        return
    without = [name for name in modules if name not in biases]
    if without:
        raise ValueError(
            "the chain updates biases, and an adapter of PEFT has a bias for every module or for "
            f"none (lora_bias): {len(without)} of {len(modules)} modules have none, first "
            f"{without[0]!r}. Save the trained model instead (save_pretrained), or exclude these "
            "modules from training"
        )


def _saved_modules(header: ChainHeader, modules: Mapping[str, Kept]) -> list[str]:
    """Return the outermost of the modules trained in full; PEFT finds them by the ends of names.

    Raises:
        ValueError: If it would take another module for one, or untie it from another.
    """
    names = [plain_name(name) for name in header.saved_modules]
    outermost = [n for n in names if not any(n.startswith(f"{other}.") for other in names)]
    for name in outermost:
        for other in (*modules, *header.alike):
            if other.endswith(name) or re.match(rf"(^|.*\.){name}($|\..*)", other):
                raise ValueError(
                    f"PEFT would take {other!r} for the module {name!r}, which was trained in "
                    "full, for its name ends alike: save the trained model instead "
                    "(save_pretrained)"
                )
    if header.unlike:
        raise ValueError(
            f"PEFT would not load {header.unlike[0]!r}, a buffer of a module trained in full or in "
            "a list of Parameters: save the trained model instead (save_pretrained)"
        )
    for other, name in header.tied.items():
        if not other.startswith(tuple(f"{module}." for module in outermost)):
            raise ValueError(
                f"{other!r} is tied to {name!r}, which was trained in full, and PEFT would give "
                "that a copy of its own: train both in full, by modules_to_save, or save the "
                "trained model instead (save_pretrained)"
            )
    return outermost


def _tensors(
    modules: Mapping[str, Kept],
    wrapped: Wrapped,
    biases: Mapping[str, Tensor],
    saved: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    tensors = {}
    for name, pair in modules.items():
        place = _PREFIX + wrapped.place(name)
        A, B = side_by_side(pair.A, pair.B)
        tensors[f"{place}.lora_A.weight"] = snapshot(A.float())
        tensors[f"{place}.lora_B.weight"] = snapshot(B.float())
        if biases:
            tensors[f"{place}.lora_B.bias"] = snapshot(biases[name].float())
    return tensors | {_PREFIX + plain_name(name): snapshot(value) for name, value in saved.items()}


def _config(
    header: ChainHeader,
    modules: Mapping[str, Kept],
    wrapped: Wrapped,
    biased: bool,
    saved: Sequence[str],
) -> dict[str, Any]:
    """Return adapter_config.json, with a scaling lora_alpha / r of 1 for every module."""
    ((r, _),) = Counter(pair.rank for pair in modules.values()).most_common(1)
    # PEFT prepends (.*\.)? to a pattern; the anchor keeps it from matching inner modules.
    pattern = {f"^{re.escape(n)}": pair.rank for n, pair in modules.items() if pair.rank != r}
    transposed = any(f.transposed and not f.bare for f in header.weights.values())
    linear = [name for name in modules if name not in wrapped.parameters]
    parent, _, kind = (header.model_class or "").partition(":")
    mapping = {"base_model_class": kind, "parent_library": parent}
    return {
        "peft_type": "LORA",
        "task_type": None,
        "auto_mapping": mapping if parent.startswith("transformers.") else None,
        "base_model_name_or_path": header.base_model,
        "revision": None,
        "inference_mode": True,
        "r": r,
        "lora_alpha": r,
        "rank_pattern": pattern,
        "alpha_pattern": pattern,
        "target_modules": _target_modules(header, linear),
        **({"target_parameters": wrapped.parameters} if wrapped.parameters else {}),
        "modules_to_save": list(saved) or None,
        "fan_in_fan_out": transposed,
        "bias": "none",
        "lora_bias": biased,
        "lora_dropout": 0.0,
        "init_lora_weights": True,
        "use_rslora": False,
        "use_dora": False,
    }


def _target_modules(header: ChainHeader, modules: Sequence[str]) -> list[str] | str:
    """Return whole names, or an expression for them where PEFT would take one for another's end."""
    weights = [facts for facts in header.weights.values() if not facts.bare]
    others = {m for facts in weights for m in facts.modules} - set(modules)
    if any(other.endswith(f".{name}") for other in others for name in modules):
        return "|".join(f"({re.escape(name)})" for name in modules)
    return list(modules)


def _nearness(report: ExportReport, rank: int | None) -> str:
    if rank is None:
        return "The adapter is their exact sum"
    return (
        f"The adapter is the best approximation of rank {rank} of their sum, with a relative error "
        f"of {report.total_error:.2g} (Frobenius norm, all weights)"
    )


def _is_bias(name: str, header: ChainHeader) -> bool:
    return name.rpartition(".")[2] == "bias" and not header.weights[name].bare


def _share(parts: Sequence[float], wholes: Sequence[float]) -> float:
    whole = math.hypot(*wholes)
    return math.hypot(*parts) / whole if whole else 0.0
