"""GLUE's scores, from predictions and labels, each higher for better; the interval of a mean."""

import statistics
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Metric = Callable[[Tensor, Tensor], float]


def accuracy(predicted: Tensor, labels: Tensor) -> float:
    """Return the share of rows labelled right."""
    return float((predicted == labels).double().mean())


def pearson(predicted: Tensor, labels: Tensor) -> float:
    """Return Pearson's correlation, 0 where either side is constant."""
    x, y = (v.double() - v.double().mean() for v in (predicted, labels))
    scale = x.norm() * y.norm()
    return float((x @ y) / scale) if scale > 0 else 0.0


# Matthews' coefficient of two classes is Pearson's correlation of their indicators.
METRICS: dict[str, Metric] = {"accuracy": accuracy, "matthews": pearson, "pearson": pearson}


def score(metric: str, outputs: Tensor, labels: Tensor) -> float:
    """Score a model's outputs ``(rows, labels)``, or ``(rows, 1)`` of a regression.

    Raises:
        ValueError: If the metric is unknown, or Matthews' is asked of more than two classes.
    """
    if metric not in METRICS:
        raise ValueError(f"metric must be one of {sorted(METRICS)}, got {metric!r}")
    predicted = outputs.squeeze(1) if outputs.shape[1] == 1 else outputs.argmax(1)
    if metric == "matthews" and outputs.shape[1] != 2:
        raise ValueError(f"matthews needs two classes, got {outputs.shape[1]}")
    return METRICS[metric](predicted, labels)


def loss(outputs: Tensor, labels: Tensor) -> float:
    """Return the mean cross-entropy, or squared error of a regression."""
    if outputs.shape[1] == 1:
        return float(torch.nn.functional.mse_loss(outputs.squeeze(1), labels))
    return float(torch.nn.functional.cross_entropy(outputs, labels))


def calibration(outputs: Tensor, labels: Tensor, bins: int = 15) -> float:
    """Return the expected calibration error of outputs ``(rows, labels)``, in [0, 1].

    The mean over rows of how far a bin's accuracy is from its mean confidence, bins of equal width
    (Guo et al., 2017, https://arxiv.org/abs/1706.04599).

    Raises:
        ValueError: If they are a regression's.
    """
    if outputs.shape[1] < 2:
        raise ValueError("a regression has no confidence to calibrate")
    confidence, predicted = outputs.double().softmax(1).max(1)
    gap = (predicted == labels).double() - confidence
    bin_of = (confidence * bins).ceil().long().clamp(1, bins)
    return float(torch.zeros(bins + 1).double().index_add(0, bin_of, gap).abs().sum() / len(gap))


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and half the width of its 95 % confidence interval (Student's t).

    The half-width of a single value is infinite.
    """
    n = len(values)
    if n < 2:
        return statistics.fmean(values), float("inf")
    return statistics.fmean(values), _T975[min(n, len(_T975) + 1) - 2] * statistics.stdev(
        values
    ) / n**0.5


# Student's t at 97.5 %, for 1, 2, ... degrees of freedom.
_T975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
