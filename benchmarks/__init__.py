"""Measurements of torch_xgb on real models and real text; each module runs with ``python -m``."""
