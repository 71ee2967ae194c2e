"""Measures of predictions, in NumPy; what they are called is what they are reported as."""

from collections.abc import Iterable, Sequence

import numpy as np


def accuracy(expected: np.ndarray, predicted: np.ndarray) -> float:
    """Share of equal entries; 0 if there are none."""
    return float((expected == predicted).mean()) if expected.size else 0.0


def precision_recall_f1(expected: np.ndarray, predicted: np.ndarray, label: int = 1) -> tuple[float, float, float]:
    """Of one label against all others, `[N]` int each; 0 where there is nothing to divide by."""
    hits = float(((expected == label) & (predicted == label)).sum())
    return _ratios(hits, float((predicted == label).sum()), float((expected == label).sum()))


def macro_f1(expected: np.ndarray, predicted: np.ndarray) -> float:
    """Mean of F1 over the labels that occur in either."""
    labels = np.union1d(expected, predicted)
    return float(np.mean([precision_recall_f1(expected, predicted, label)[2] for label in labels]))


def matthews(expected: np.ndarray, predicted: np.ndarray) -> float:
    """Matthews' correlation for any number of labels (Gorodkin, 2004); 0 where either is constant."""
    labels, places = np.unique(np.concatenate([expected, predicted]), return_inverse=True)
    one, two = (np.bincount(half, minlength=len(labels)).astype(float) for half in np.split(places, 2))
    count = len(expected)
    scale = np.sqrt((count**2 - one @ one) * (count**2 - two @ two))
    return float((count * (expected == predicted).sum() - one @ two) / scale) if scale else 0.0


def agreement_over_chance(expected: np.ndarray, predicted: np.ndarray) -> float:
    """How many standard deviations more entries are equal than expected of shuffled predictions; 0 where either is constant.

    For two labels this is Matthews' correlation times sqrt(N - 1), for N entries.
    """
    labels, places = np.unique(np.concatenate([expected, predicted]), return_inverse=True)
    one, two = (np.bincount(half, minlength=len(labels)).astype(float) for half in np.split(places, 2))
    count = len(expected)
    mean = one @ two / count
    # The variance of a sum over a random permutation (Hoeffding, 1951), the entries of a pair of labels all being alike.
    rest = np.eye(len(labels)) - two[:, None] / count - one[None] / count + mean / count
    deviation = np.sqrt((one[:, None] * two[None] * rest**2).sum() / max(1, count - 1))
    return float(((expected == predicted).sum() - mean) / deviation) if _both_vary(expected, predicted) else 0.0


# With fewer, knowledge could not be told from chance.
FEW = 20


def knows_nothing(expected: np.ndarray, deviations: float) -> bool:
    """Whether predictions that are so many standard deviations above chance are no better than it.

    Never where what is expected is constant, or has so few entries that knowledge could not be told from chance.
    """
    return len(expected) >= FEW and bool(np.ptp(expected) > 0) and deviations < 2.0


def pearson(expected: np.ndarray, predicted: np.ndarray) -> float:
    """Linear correlation; 0 where either is constant."""
    return float(np.corrcoef(expected, predicted)[0, 1]) if _both_vary(expected, predicted) else 0.0


def spearman(expected: np.ndarray, predicted: np.ndarray) -> float:
    """Correlation of ranks, ties sharing theirs; 0 where either is constant."""
    return pearson(_ranks(expected), _ranks(predicted))


def span_precision_recall_f1(
    expected: Iterable[set[tuple]], predicted: Iterable[set[tuple]]
) -> tuple[float, float, float]:
    """Of spans that agree in both ends and label, over all sentences together (as `conlleval` counts)."""
    pairs = list(zip(expected, predicted, strict=True))
    hits, found, there = (float(sum(counts)) for counts in zip(*((len(e & p), len(p), len(e)) for e, p in pairs)))
    return _ratios(hits, found, there)


def spans(tags: Sequence[str]) -> set[tuple[str, int, int]]:
    """`(label, first, last)` of the spans that tags in BIO, BIOES, BMES or BILOU spell; other tags spell none.

    A span begins at B or S, and where I or E continues nothing of its label, as `conlleval` has it. L is E, U is S, M is I.
    """
    found: set[tuple[str, int, int]] = set()
    label, begin = None, 0
    for place, tag in enumerate([*tags, "O"]):
        prefix, _, name = tag.partition("-")
        prefix = {"L": "E", "U": "S", "M": "I"}.get(prefix, prefix)
        name = name if prefix in ("B", "I", "E", "S") else None
        if label is not None and (prefix in ("B", "S") or name != label):
            found.add((label, begin, place - 1))
            label = None
        if name is not None and label is None:
            label, begin = name, place
        if label is not None and prefix in ("E", "S"):
            found.add((label, begin, place))
            label = None
    return found


def to_bioes(tags: Sequence[str]) -> list[str]:
    """BIO tags as BIOES: the last tag of a span becomes E, and that of a one-word span S."""
    result = ["O"] * len(tags)
    for label, first, last in spans(tags):
        for place in range(first, last + 1):
            prefix = "S" if first == last else "B" if place == first else "E" if place == last else "I"
            result[place] = f"{prefix}-{label}"
    return result


def _ratios(hits: float, found: float, there: float) -> tuple[float, float, float]:
    precision, recall = hits / found if found else 0.0, hits / there if there else 0.0
    return precision, recall, 2 * hits / (found + there) if found + there else 0.0


def _ranks(values: np.ndarray) -> np.ndarray:
    """From 1 on; equal values share the mean of theirs."""
    _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[which]


def _both_vary(one: np.ndarray, two: np.ndarray) -> bool:
    return one.size > 1 and bool(np.ptp(one)) and bool(np.ptp(two))
