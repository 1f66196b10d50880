"""The wrapped optimizer: any class of ``torch.optim``, third-party class or callable.

``wrapped`` builds it and runs its steps, ``steps`` scales their rate and gives back the state of
before the first, ``gradients`` looks at what it is about to use, with a ``verdict`` that may come
later, ``saved`` at what it is about to load, ``followed`` keeps to the Parameters that are in the
model, ``front`` is the base for whoever looks at the optimizer that stands before it. ``in_full``
are the groups of the modules trained in full, ``together`` makes one optimizer of the base and one
of theirs, ``others`` looks at optimizers that the script has beside it.

May import weights, settings, checks, processes. One more base's quirk: in ``steps`` if it is about
state, in ``wrapped`` if the base cannot serve; and a line in the table of bases that the tests run.
"""
