"""Laying out what was found: tables, curves, and the page of results that is made of both.

Imports: every other room.

One more: a function from figures or a journal to text, by ``table.table``, named for its command;
to stand on a page of docs/results it becomes a block in ``report.BLOCKS``.
"""
