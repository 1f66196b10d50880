"""``torch-xgb finetune``: a whole run, from rows of data to a plain model folder."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch_xgb.command.answer import Answer, Commands, command
from torch_xgb.settings import Settings

if TYPE_CHECKING:
    from torch_xgb.integrations.finetune.run import Outcome

__all__ = ["add_finetune"]

_OWN = ("optimizer_kwargs", "seed")  # no flags of their own: --base-settings, and the run's
_REQUIRED = ("model", "task", "out")
_EPILOG = (
    "Values of the optimizer's arguments are JSON where they can be, and text otherwise: "
    "--kappa '[8, 24]', --layers-per-booster 0.5, --target-modules q_proj. The same command again "
    "goes on with a run that was killed."
)


def add_finetune(commands: Commands[argparse.ArgumentParser]) -> None:
    """Add the command, with a flag for every option of a recipe and every setting."""
    from torch_xgb.integrations.finetune.recipe import Recipe

    parser = command(
        commands,
        "finetune",
        _finetune,
        "train a model on rows of data",
        usage="%(prog)s --task TASK --model MODEL --train FILE --out FOLDER [options]",
        epilog=_EPILOG,
        argument_default=argparse.SUPPRESS,
    )
    config = "options by name, .json or .yaml; flags go before"
    parser.add_argument("--config", type=Path, metavar="FILE", help=config)
    run = parser.add_argument_group("the run")
    for field in dataclasses.fields(Recipe):
        if field.metadata:
            _add_option(run, field)
    more = "of the base, as NAME=VALUE: weight_decay=0.01 'betas=[0.9, 0.95]'"
    run.add_argument("--base-settings", nargs="+", type=_named, metavar="NAME=VALUE", help=more)
    boosters = parser.add_argument_group("the optimizer: see BoostedLowRankOptimizer")
    for name, default in _settings().items():
        said = f"(default: {default!r})"
        optional: dict[str, Any] = {"nargs": "?", "const": True} if name == "record" else {}
        flag = f"--{name.replace('_', '-')}"
        boosters.add_argument(flag, type=_value, metavar="VALUE", help=said, **optional)


def _add_option(group: argparse._ArgumentGroup, field: dataclasses.Field[Any]) -> None:
    told = dict(field.metadata)
    said, flag = told.pop("help"), f"--{field.name.replace('_', '-')}"
    if told["type"] is bool:
        group.add_argument(flag, action=argparse.BooleanOptionalAction, help=said)
        return
    if field.default not in (dataclasses.MISSING, None, ()):
        said += f" (default: {field.default})"
    if "choices" not in told:
        told["metavar"] = field.name.rpartition("_")[2].upper()
    group.add_argument(flag, help=said.replace("%", "%%"), **told)


def _settings() -> dict[str, Any]:
    return {f.name: f.default for f in dataclasses.fields(Settings) if f.name not in _OWN}


def _finetune(options: argparse.Namespace) -> Answer:
    """Fine-tune a model of transformers on rows of data, and end with a plain model folder."""
    from torch_xgb.integrations.finetune.recipe import Recipe
    from torch_xgb.integrations.finetune.run import finetune

    names = [field.name for field in dataclasses.fields(Recipe) if field.name != "settings"]
    known = [*names, *_settings()]
    flags = {name: value for name, value in vars(options).items() if name in known}
    told = {**_config(getattr(options, "config", None), known), **flags}
    if isinstance(pairs := told.get("base_settings"), list):
        told["base_settings"] = dict(pairs)
    if missing := [f"--{name}" for name in _REQUIRED if name not in told]:
        options.usage_error(f"these are needed, as flags or in --config: {', '.join(missing)}")
    if "train" not in told and "dataset" not in told:
        options.usage_error("say what to learn from: --train FILE or --dataset NAME")
    settings = {name: told.pop(name) for name in _settings() if name in told}
    return _answer(finetune(Recipe(**told, settings=settings)))


def _config(file: Path | None, known: Iterable[str]) -> Mapping[str, Any]:
    """Read options by name.

    Raises:
        ValueError: If it holds none, or one that there is not.
    """
    if file is None:
        return {}
    text = file.read_text(encoding="utf-8")
    if file.suffix in (".yaml", ".yml"):
        import yaml

        read = yaml.safe_load(text)
    else:
        read = json.loads(text)
    if not isinstance(read, dict):
        raise ValueError(f"{file} holds no options by name: {read!r:.60}")
    options = {str(name).replace("-", "_"): value for name, value in read.items()}
    if unknown := [name for name in options if name not in known]:
        near = difflib.get_close_matches(unknown[0], known, 1)
        meant = f"; is {near[0]!r} meant?" if near else ""
        raise ValueError(f"{file}: there is no option {unknown[0]!r}{meant}")
    return options


def _answer(outcome: Outcome) -> Answer:
    result = {n: v for n, v in outcome.result.items() if n != "history"}
    facts = {"folder": str(outcome.folder), "resumed": outcome.resumed, **result}
    scores = ", ".join(f"{name} {value:.4g}" for name, value in result["scores"].items())
    began = {None: "was over already", 0: "done"}.get(outcome.resumed, "resumed and done")
    told = f"{began}, {result['steps']} steps; on the dev data {scores}"
    return Answer(f"{told}\nthe model is in {outcome.folder}", facts)


def _value(text: str) -> Any:  # noqa: ANN401
    """Return what a word is in JSON, and else the word; ``none`` is None."""
    if text.lower() == "none":
        return None
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _named(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return name.replace("-", "_"), _value(value)
