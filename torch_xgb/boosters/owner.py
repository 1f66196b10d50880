"""Whose a model's guests are: known without keeping that object alive."""

from __future__ import annotations

import weakref
from collections.abc import MutableMapping
from typing import Any

from torch import nn

__all__ = ["Hold", "Owner", "claimed"]


class Owner:
    """What drives the boosters in a model. A copied or pickled model's guests have none."""

    def __init__(self) -> None:
        self._reference: weakref.ref[Any] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Stay behind."""
        return Owner, ()

    @property
    def alive(self) -> bool:
        """Whether somebody still drives them."""
        return self._reference is not None and self._reference() is not None

    def claim(self, driver: object) -> None:
        """Be somebody's from now on."""
        self._reference = weakref.ref(driver)


class Hold:
    """What whoever drives them holds; copied or pickled with him, it claims the copy's."""

    def __init__(self, owner: Owner) -> None:
        self.owner = owner
        owner.claim(self)

    def __reduce__(self) -> tuple[Any, ...]:
        """Claim anew."""
        return Hold, (self.owner,)


_CLAIMED: weakref.WeakKeyDictionary[nn.Module, Owner] = weakref.WeakKeyDictionary()


def claimed() -> MutableMapping[nn.Module, Owner]:
    """Return the models of this process that boosters are in, whole or not, with their owners."""
    return _CLAIMED
