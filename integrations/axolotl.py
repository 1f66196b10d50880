"""axolotl: a plugin, named in the YAML file.

Example:
    plugins:
      - torch_xgb.integrations.axolotl.BoostedPlugin
    boosted_low_rank: {r: 1, kappa: 8, layers_per_booster: 8}
    learning_rate: 1e-3
"""

from __future__ import annotations

from typing import Any

from axolotl.integrations.base import BasePlugin
from pydantic import create_model
from torch.optim import Optimizer
from transformers import Trainer, TrainerCallback

from .trainers import boost_trainer, build_optimizer
from .transformers import BoostingCallback

__all__ = ["BoostedArgs", "BoostedPlugin"]

_KEY = "boosted_low_rank"

BoostedArgs = create_model("BoostedArgs", boosted_low_rank=(dict[str, Any] | None, None))


class BoostedPlugin(BasePlugin):  # type: ignore[misc]
    """Trains with a BoostedLowRankOptimizer, whatever ``optimizer`` says.

    ``boosted_low_rank`` holds the arguments of ``torch_xgb.integrations.trainers.build_optimizer``;
    ``learning_rate`` and ``weight_decay`` are read where axolotl has them.
    """

    def get_input_args(self) -> str:
        """Name the schema of the plugin's key: axolotl drops keys that no schema has."""
        return f"{__name__}.BoostedArgs"

    def create_optimizer(self, cfg: Any, trainer: Trainer) -> Optimizer:  # noqa: ANN401
        """Build the optimizer."""
        return build_optimizer(trainer, **_settings(cfg))

    def post_trainer_create(self, cfg: Any, trainer: Trainer) -> None:  # noqa: ANN401
        """Have the Trainer build it: axolotl declares ``create_optimizer`` and never calls it.

        Raises:
            ValueError: If an adapter is trained: boosters train the model itself.
        """
        if cfg.get("adapter"):
            raise ValueError(
                f"adapter: {cfg.get('adapter')} and {_KEY} exclude each other: boosters train the "
                "model itself; remove adapter from the configuration"
            )
        boost_trainer(trainer, **_settings(cfg))

    def add_callbacks_post_trainer(
        self,
        cfg: Any,  # noqa: ANN401
        trainer: Trainer,
    ) -> list[TrainerCallback]:
        """Log the boosters; make the model plain at the end."""
        return [BoostingCallback(trainer)]


def _settings(cfg: Any) -> dict[str, Any]:  # noqa: ANN401
    return dict(cfg.get(_KEY) or {})
