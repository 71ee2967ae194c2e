"""Batches of features of about the same length: the order is a function of the seed and the step alone."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from electra_jax.tasks.kinds import Feature
from electra_jax.tasks.model import TaskBatch

_SHORTEST = 32
# Each length is a program to compile: at most this many, each further one for this many batches, saving this share of tokens.
_MOST_LENGTHS, _BATCHES_OF_LENGTH, _LEAST_SAVED = 6, 64, 0.03


class Planned(NamedTuple):
    """A batch that is yet to be made."""

    length: int
    features: np.ndarray  # their numbers, at most as many as the batch has rows


def lengths_up_to(max_length: int) -> tuple[int, ...]:
    """The lengths of batches of features not known beforehand, each compiled for once: doubling, then `max_length`."""
    found, length = [], _SHORTEST
    while length < max_length:
        found.append(length)
        length *= 2
    return (*found, max_length)


def lengths_of(sizes: np.ndarray, max_length: int, num_batches: float, multiple: int = 8) -> tuple[int, ...]:
    """The lengths for batches of these features: for their number, those that need the fewest [PAD].

    Args:
      sizes: `[N]`, tokens of each feature.
      max_length: of any feature; always the last length, even if these features are shorter.
      num_batches: how many will be made of them in all.
      multiple: lengths are multiples of it, but for `max_length`.
    """
    ends = np.unique(np.minimum(-(-sizes // multiple) * multiple, max_length))
    within = np.searchsorted(np.sort(sizes), ends, side="right")  # features that a length holds
    # For n lengths, the last of which is ends[j]: the tokens in the batches, and the lengths.
    cost, chosen = ends * within.astype(float), [(int(end),) for end in ends]
    for _ in range(min(_MOST_LENGTHS - 1, int(num_batches / _BATCHES_OF_LENGTH))):
        longer = cost[:, None] + ends * (within - within[:, None])
        longer[np.tri(len(ends), dtype=bool)] = np.inf  # lengths ascend
        if longer[:, -1].min() > (1 - _LEAST_SAVED) * cost[-1]:
            break
        chosen = [(*chosen[before], int(end)) for before, end in zip(longer.argmin(0), ends)]
        cost = longer.min(0)
    found = chosen[-1]
    return found if found[-1] == max_length else (*found, max_length)


def plan(
    sizes: np.ndarray, batch_size: int, lengths: Sequence[int], rng: np.random.Generator | None = None
) -> list[Planned]:
    """Every feature once, in batches of which at most one is not full.

    Args:
      sizes: `[N]`, tokens of each feature.
      batch_size: rows of a batch.
      lengths: those that batches have, ascending; the last holds every feature.
      rng: for the order; without one, by length.
    """
    order = np.argsort(sizes, kind="stable") if rng is None else rng.permutation(len(sizes))
    bucket = np.searchsorted(lengths, sizes[order])
    full, rest = [], []
    for index, length in enumerate(lengths):
        members = order[bucket == index]
        whole = len(members) // batch_size * batch_size
        full += [Planned(length, members[at : at + batch_size]) for at in range(0, whole, batch_size)]
        rest.append(members[whole:])
    left = np.concatenate(rest)  # shortest first
    for at in range(0, len(left), batch_size):
        members = left[at : at + batch_size]
        full.append(Planned(int(lengths[np.searchsorted(lengths, sizes[members].max())]), members))
    if rng is not None:
        rng.shuffle(full)
    return full


def batch(
    planned: Planned, features: Sequence[Feature], batch_size: int, pad: int, by_token: bool, seeds: np.ndarray
) -> TaskBatch:
    """The arrays of a batch.

    Args:
      planned: which features, and the length they are filled up to.
      features: all of them.
      batch_size: rows; those without a feature have weight 0.
      pad: id of [PAD].
      by_token: whether a target has one entry per token.
      seeds: `[batch_size, 2]`, of its dropout.
    """
    chosen = [features[index] for index in planned.features]
    ids, types = _inputs(planned, features, batch_size, pad)
    sample = chosen[0].target
    target = np.full(ids.shape, -1, np.int32) if by_token else np.zeros((batch_size, *sample.shape), sample.dtype)
    for row, feature in enumerate(chosen):
        target[(row, slice(len(feature.input_ids))) if by_token else row] = feature.target
    weight = (np.arange(batch_size) < len(chosen)).astype(np.float32)
    return TaskBatch(ids, types, target, weight, seeds)


def outputs(
    compute: Callable[[np.ndarray, np.ndarray], np.ndarray],
    features: Sequence[Feature],
    batch_size: int,
    lengths: Sequence[int],
    pad: int,
    is_cut_short: Callable[[], bool] = lambda: False,
) -> list[np.ndarray] | None:
    """What a model says of each feature, in their order.

    Args:
      compute: (input_ids, token_type_ids), `[batch_size, L]` each -> `[batch_size, ...]`; where that has more than two axes,
        the second one is tokens, and a feature gets only those of its own.
      features: in any order.
      batch_size, lengths, pad: of the batches.
      is_cut_short: asked before each batch; where it says so, the result is None.
    """
    sizes = sizes_of(features)
    found: list[Any] = [None] * len(features)
    for planned in plan(sizes, batch_size, lengths):
        if is_cut_short():
            return None
        said = np.asarray(compute(*_inputs(planned, features, batch_size, pad)))
        for row, index in enumerate(planned.features):
            found[index] = said[row, : sizes[index]] if said.ndim > 2 else said[row]
    return found


def _inputs(planned: Planned, features: Sequence[Feature], batch_size: int, pad: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids and token types, `[batch_size, L]` int32 each."""
    shape = (batch_size, planned.length)
    ids, types = np.full(shape, pad, np.int32), np.zeros(shape, np.int32)
    for row, index in enumerate(planned.features):
        feature = features[index]
        size = len(feature.input_ids)
        ids[row, :size], types[row, :size] = feature.input_ids, feature.token_type_ids
    return ids, types


def sizes_of(features: Sequence[Feature]) -> np.ndarray:
    """Tokens of each, `[N]`."""
    return np.asarray([len(feature.input_ids) for feature in features])


def training(
    features: Sequence[Feature],
    batch_size: int,
    lengths: Sequence[int],
    pad: int,
    by_token: bool,
    seed: int,
    step: int,
) -> Iterator[TaskBatch]:
    """Batches of a run of `seed` from `step` on, without end; each epoch in an order of its own."""
    sizes = sizes_of(features)
    per_epoch = math.ceil(len(features) / batch_size)
    while True:
        epoch, first = divmod(step, per_epoch)
        for planned in plan(sizes, batch_size, lengths, np.random.default_rng([seed, epoch]))[first:]:
            noise = np.random.default_rng([seed, step, 1]).integers(2**32, size=(batch_size, 2), dtype=np.uint32)
            yield batch(planned, features, batch_size, pad, by_token, noise)
            step += 1
