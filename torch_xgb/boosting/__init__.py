"""The boosting of one model: everything put into it, and every change of its weights.

``handle`` is ``optimizer.boosting``, what the optimizer drives and frameworks talk to;
``checkpoint`` what a run saves and resumes from, ``release`` the way out of a model that nobody
drives any more.

May import every room below. One more verb for frameworks: a public method of ``Boosting``.
"""
