"""Measurements of torch_xgb on real models and real text; each module here runs with ``python -m``.

A command is its docstring, its options and the wiring of five rooms. Imports between rooms go one
way, each knowing only those before it, and none of them a command:

    subjects   the models and tasks that are measured
    methods    the contenders: what trains a subject, and how
    measures   counting time, memory, FLOPs, messages and scores
    runs       running a training run and keeping its record
    tables     laying out what was found, as tables, plots and pages

``reliability`` is a command in parts, which the tests run too.

One more command: a module here with ``command.parser`` (``benchmarks.runs.command``), and whatever
it needs in the rooms. What is recorded lies in ``results/``.
"""
