"""Training runs: one at a time or as a sweep, each recorded once with where it comes from.

Imports: ``benchmarks.subjects``, ``methods`` and ``measures``, and torch_xgb.

One more: a function that trains and returns a record, given to ``journal.Journal.once`` with all
that its result depends on as the key; fine-tuning on a text task is a ``sweep.Run`` already.
"""
