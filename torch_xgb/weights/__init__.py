"""One weight: where it is kept, what it is as a matrix, and how a product gets into it.

``places`` knows ways of keeping a Parameter, ``sharded`` is that of FSDP2 and tensor parallelism,
``ranges`` which positions a process keeps there, ``dtensors`` tells what it is made of;
``wrappers`` finds who has wrapped a model; ``weight`` is the matrix W that a Parameter stands for,
``own`` whether its modules compute with that and nothing else, ``merge`` adds to it, by an
``addition`` of a ``product`` in a ``workspace``; ``fingerprints`` tell two of them apart,
``transfers`` go to and from a device without waiting for it.

May import formulas, checks, processes. One more place: a class of ``Place``'s properties, and
``register_place`` at the end of its file, as ``sharded`` has it.
"""
