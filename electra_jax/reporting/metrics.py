"""From sums and weights to the figures that are reported."""

from typing import Any

import jax
import numpy as np


class Sums:
    """Adds up the metrics of parts of a data set in float64."""

    def __init__(self):
        self._total: Any = None

    def add(self, part: Any) -> None:
        """Adds `{"means": {name: (sum, weight)}, "histogram": [2, bins]}`; waits for it to be computed."""
        part = jax.tree.map(lambda x: np.asarray(x, np.float64), jax.device_get(part))
        self._total = part if self._total is None else jax.tree.map(np.add, self._total, part)

    def figures(self) -> dict[str, float]:
        """The metrics by name."""
        return figures(self._total)


def figures(sums: Any) -> dict[str, float]:
    """Divides each sum by its weight; a mean over nothing is 0. Adds `disc_auc` from the histogram, if there is one."""
    result = {name: float(mean.total / mean.weight) if mean.weight else 0.0 for name, mean in sums["means"].items()}
    if sums["histogram"] is not None:
        result["disc_auc"] = area_under_roc(np.asarray(sums["histogram"], np.float64))
    return result


def area_under_roc(histogram: np.ndarray) -> float:
    """The chance that a positive scores above a negative, from counts `[2, bins]`; ties count half.

    0.5 where there are no positives or no negatives.
    """
    negatives, positives = histogram
    pairs = negatives.sum() * positives.sum()
    if not pairs:
        return 0.5
    below = np.cumsum(negatives) - negatives
    return float((positives * (below + negatives / 2)).sum() / pairs)
