"""The boosters of a run, kept.

``writer`` writes what ``chain`` reads; between them stand ``archive`` (``header``, ``sections``
with original weights and boosters, ``scores``) and ``store`` or ``packed`` (tensors in memory, in a
folder, in one file). ``records`` are what is written, ``facts`` what JSON is taken for, ``digests``
find a changed bit, ``files`` and ``tensorfile`` read and write. ``opening`` is what ``record=``
opens, ``owner`` whose a folder is, ``resume`` whether it is a checkpoint's. ``restore`` gives a
model what is kept, ``export`` makes a PEFT adapter of what is ``kept`` of each, bare Parameters
``wrapped``, with a ``card``, ``plot`` a picture.

May import boosters, targets, weights, formulas, settings, checks, processes. One more store: a
class with ``Store``'s methods.
"""

from torch_xgb.ledger.chain import Chain

__all__ = ["Chain"]
