"""How a model is judged on rows it has not learned from; NumPy alone."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["of_classes", "of_numbers", "of_tokens"]

Numbers = NDArray[Any]


def of_classes(logits: Numbers, labels: Numbers) -> dict[str, float]:
    """Return accuracy and the mean of the classes' F1.

    Args:
        logits: Shape ``(rows, classes)``.
        labels: Shape ``(rows,)``.
    """
    said = logits.argmax(-1)
    f1 = []
    for label in np.unique(labels):
        right = np.sum((said == label) & (labels == label))
        f1.append(2 * right / (np.sum(said == label) + np.sum(labels == label)))
    return {"accuracy": float(np.mean(said == labels)), "f1": float(np.mean(f1))}


def of_numbers(said: Numbers, labels: Numbers) -> dict[str, float]:
    """Return mean squared error and the correlations of Pearson and Spearman; 0 where undefined.

    Args:
        said: Shape ``(rows,)`` or ``(rows, 1)``.
        labels: Shape ``(rows,)``.
    """
    said = said.reshape(-1).astype(np.float64)
    return {
        "mse": float(np.mean((said - labels) ** 2)),
        "pearson": _correlation(said, labels),
        "spearman": _correlation(_ranks(said), _ranks(labels)),
    }


def of_tokens(losses: Numbers, counts: Numbers) -> dict[str, float]:
    """Return the perplexity of all tokens together.

    Args:
        losses: Each row's summed negative log-likelihood, shape ``(rows,)``.
        counts: Each row's tokens that are learned.
    """
    mean = float(losses.astype(np.float64).sum() / counts.sum())
    return {"perplexity": float(np.exp(min(mean, 700.0)))}


def _correlation(a: Numbers, b: Numbers) -> float:
    a, b = a - a.mean(), b - b.mean()
    norm = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / norm if norm else 0.0


def _ranks(values: Numbers) -> Numbers:
    """Ranks from 0, equal values sharing the mean of theirs."""
    _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    middle: Numbers = ends - (counts + 1) / 2
    return middle[which]
