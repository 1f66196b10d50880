"""The pairs, and their place in the forward pass.

``pair`` is A, B and b; ``forms`` what a pair does and becomes; ``slots`` the Parameters, lent by
``booster`` to the drawn layers' ``adapter``s, ``cut`` how they compute with a part of a weight;
``starts`` is how boosters begin, ``carry`` what they remember and ``taking_up`` how they begin with
it, ``owner`` whose they are, ``conduct`` and ``readers`` who else has a hand in a target's output
or weight, ``stand_in`` whether others stand in for its Parameters, ``compilers`` what those at work
need, ``accumulator`` what is merged beside one, ``freeze`` what else is trained meanwhile,
``hooks`` finds those in a module, ``reach`` and ``beside`` outputs that depend on no pair,
``recompute`` blocks computed again in backward, ``report`` what a merge did.

May import targets, weights, formulas, checks, callers. One more form: a class with ``Form``'s
methods, its name in ``forms.form``, and its equation in the reference that the tests compare with.
"""
