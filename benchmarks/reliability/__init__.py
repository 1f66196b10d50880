"""What the library withstands: faults put in by the hundred, and what became of each.

Each part is a file with ``run(quick, seed)`` that returns ``Counts``. Nothing may be lost and
nothing may be wrong; a fault is survived, or refused in the library's own words.

One more part: such a file, and its name in ``parts``. ``tests/reliability`` runs the same files.
"""
