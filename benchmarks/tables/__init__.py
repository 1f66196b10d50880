"""Laying out what was found: tables, curves, and the page of results that is made of both.

Imports: every other room.

One more: a function from figures or a journal to text, by ``table.table``, named for its command;
to stand in docs/results/index.md it becomes a block in ``report.BLOCKS``.
"""
