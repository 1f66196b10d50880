"""A pending booster in a checkpoint: folded into the weights, and taken out again on loading.

``fold`` is the arithmetic with the hook that saving meets, ``start_over`` the one that loading
meets, ``trained_only`` refuses savers that leave out what is frozen, ``memory`` what is remembered
of weights, ``pending`` what ties an optimizer's state to them, with ``repairs`` of what rounds
otherwise on the way back, ``accumulated`` what is merged beside weights, ``rest`` what nobody
trains, ``entry`` the optimizer's entry with its version and comparison, ``layout`` what such an
entry must look like, ``seal`` what a state is known by again, ``one_piece`` a state for those who
would take it to pieces.

May import boosters, schedule, weights, formulas, settings, processes, callers. One more thing to
save: a key in ``entry`` and its shape in ``layout``, and the version before still read.
"""
