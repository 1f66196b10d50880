"""Which weights of a model may be adapted, and what else of it a run is about.

``names`` are PEFT's grammar (``unmatched`` says what they miss), ``blocks`` finds the repeated
ones, ``layers`` are what may be drawn (``probe`` asks modules what they compute), ``parameters``
the bare Parameters among it, ``heads`` the modules trained in full (``backbones`` knows what comes
pretrained and its own heads, ``structure`` what follows blocks in any model, ``embeddings`` what is
never trained), ``designated`` the layers of what was asked for, ``selection`` all of it;
``quantised`` tells weights that boosters stand beside, ``admission`` refuses models, ``compiled``
sees through ``torch.compile``.

May import weights, settings. One more kind of linear map: ``layers.is_linear``, and how its weight
is stored in ``Weight``.
"""
