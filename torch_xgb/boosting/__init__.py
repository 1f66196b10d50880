"""The boosting of one model: everything put into it, and every change of its weights.

``handle`` is ``optimizer.boosting``, what the optimizer drives and frameworks talk to; ``pace``
counts steps and takes the turns between boosters: a ``turn`` is a list of deeds, ``turns`` makes
them, ``asked`` is what must be known before, and ``later`` when that could not be done at once;
``checkpoint`` what a run saves and resumes from, ``outcome`` what one beside quantised weights
comes to; ``alone`` has other threads wait meanwhile; ``told`` what others must have been told
alike; ``summary`` what was found and is trained, for people; ``slight`` tells who trains next to
nothing; ``release`` is the way out of a model that nobody drives any more.

May import every room below. One more verb for frameworks: a public method of ``Boosting``.
"""
