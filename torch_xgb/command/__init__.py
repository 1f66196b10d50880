"""The command line: ``torch-xgb``, which is ``python -m torch_xgb``.

``main`` parses, runs and ends with 0, 1 or 2; ``answer`` is what a command says, to people or
machines. A command is a module or two functions of one: ``planning`` (plan), ``ledgers`` (plot,
export, rollback), ``environment`` (env), ``training`` (finetune).

May import forecast, ledger, settings; integrations inside the functions that need them. One more
command: a function that adds its parser and names what runs it, and its line in ``main``.
"""
