"""SQuAD's measures (Rajpurkar et al., 2016 and 2018): exact match and word overlap, against the best-matching answer."""

import collections
import re
import string
from collections.abc import Sequence

import numpy as np

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalised(text: str) -> str:
    """Lower case, without punctuation, English articles and superfluous space."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(expected: Sequence[str], predicted: str) -> float:
    """1 where the prediction is one of the answers, or, for a question without any, empty; else 0."""
    return float(normalised(predicted) in {normalised(text) for text in _answers(expected)})


def f1(expected: Sequence[str], predicted: str) -> float:
    """The greatest overlap with one of the answers, as F1 over words."""
    return max(_overlap(text, predicted) for text in _answers(expected))


def _answers(expected: Sequence[str]) -> list[str]:
    return [text for text in expected if normalised(text)] or [""]


def _overlap(expected: str, predicted: str) -> float:
    one, two = (normalised(text).split() for text in (expected, predicted))
    if not one or not two:
        return float(one == two)
    common = sum((collections.Counter(one) & collections.Counter(two)).values())
    return 2 * common / (len(one) + len(two))


def best_threshold(null_odds: Sequence[float], if_answered: Sequence[float], if_not: Sequence[float]) -> float:
    """The threshold of `null_odds`, above which a question counts as unanswerable, that gives the greatest sum.

    Args:
      null_odds: for each question, how much likelier no answer is than an answer.
      if_answered, if_not: what each question scores in either case.
    """
    order = np.argsort(null_odds, kind="stable")
    odds = np.asarray(null_odds, np.float64)[order]
    gains = (np.asarray(if_answered, np.float64) - np.asarray(if_not, np.float64))[order]
    # With the threshold at the k-th lowest odds, it and all below are answered. Equal odds go together.
    totals = np.concatenate([[0.0], np.cumsum(gains)])
    ends = np.concatenate([[True], np.append(odds[1:] != odds[:-1], True)])
    best = int(np.argmax(np.where(ends, totals, -np.inf)))
    if best == 0:
        return float(odds[0]) - 1.0
    return float(odds[-1]) + 1.0 if best == len(odds) else float((odds[best - 1] + odds[best]) / 2)
