"""The models and tasks that are measured: real models and texts, and small ones made on the spot.

Imports: of ``benchmarks`` nothing but subjects. A subject knows nothing of torch_xgb either.

One more: a text task is an entry of ``tasks.TASKS``; a model is a module with ``folder``,
``tokenizer`` and a function that loads it, as ``minilm``; a stack of one's own is a module of the
kind of ``stack``.
"""
