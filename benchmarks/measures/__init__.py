"""Counting and timing what a method does: memory, allocations, FLOPs, steps, messages, scores.

Imports: ``benchmarks.subjects`` and ``benchmarks.methods``, and torch_xgb.

One more: a module whose functions take a model or a contender and return numbers. What is counted
has to be the same on every machine; what is timed says how.
"""
