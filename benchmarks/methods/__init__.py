"""The contenders: how XGBLoRA, LoRA, BitFit, GaLore, BAdam and full fine-tuning train a subject.

Imports: ``benchmarks.subjects``, and torch_xgb.

One more: for tables of scores a function that returns a ``method.Trainee`` and a ``Method`` that
names it, in ``minilm.compared``; for time and memory a function that returns a
``contenders.Contender``, in ``contenders.contenders``; for frameworks a route in ``routes.ROUTES``.
A method's builder and options are what its records are found by, so they keep their names.
"""
