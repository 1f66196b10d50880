"""What each booster is and when it ends: pure in (seed, t), but for what is shown of the loss.

``samplers`` draw layers; ``per_booster`` makes functions of t of what was given, ``carried`` of
``carry``; ``draws`` puts them together; ``boundaries`` and ``plateau`` end boosters; ``rates``
scale a step's learning rate; ``course`` is where a run stands in all of it.

May import formulas, checks, processes, settings. One more sampler: a function
``(seed, t, num_layers, layers_per_booster) -> indices``, and its name in ``samplers``.
"""

from torch_xgb.schedule.carried import Decay
from torch_xgb.schedule.plateau import LossPlateau, LossPolicy
from torch_xgb.schedule.samplers import Sampler, Weighted

__all__ = ["Decay", "LossPlateau", "LossPolicy", "Sampler", "Weighted"]
