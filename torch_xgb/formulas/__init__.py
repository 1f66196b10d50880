"""Tensors in, tensors out: the papers' equations and the numbers they are made of.

``lowrank`` is the pair in the papers' letters, with products ``unrounded``; ``joint_gradient`` puts
its share into the gradient that a map passes to its input. ``spectrum`` has the singular values of
thin products, ``rounding`` the way from a wide dtype to a narrow one, ``streams`` random numbers
that are pure in what they are for, ``entries`` a matrix entry by entry.

May import torch alone. One more: a free function that cites its equation, and its test in float64.
"""
