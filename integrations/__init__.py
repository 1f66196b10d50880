"""Boosting inside training frameworks, one module for each.

This package is imported as ``torch_xgb.integrations``. It imports nothing by itself: a framework is
loaded only with the module that bears its name.
"""
