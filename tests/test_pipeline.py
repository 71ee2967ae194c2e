"""Batches as a function of the position."""

import itertools

import numpy as np
import pytest

from electra_jax.data import pipeline


@pytest.fixture(scope="module")
def records(prepared):
    return pipeline.Records(prepared.directory, "train")


def take(records, count, **options) -> np.ndarray:
    options = {"seed": 3, "start": 0, "batch_size": 8} | options
    return np.concatenate(list(itertools.islice(pipeline.training_batches(records, **options), count)))


def test_each_epoch_has_every_record_once_in_its_own_order(records):
    order = pipeline.training_order(len(records), seed=3)
    epochs = [[int(order[i]) for i in range(k * len(records), (k + 1) * len(records))] for k in range(3)]
    assert all(sorted(epoch) == list(range(len(records))) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert epochs[0] != [int(pipeline.training_order(len(records), seed=4)[i]) for i in range(len(records))]


def test_batches_go_on_from_any_position(records):
    everything = take(records, 12)
    np.testing.assert_array_equal(take(records, 5, start=7 * 8), everything[56:96])
    assert not np.array_equal(take(records, 5, start=7 * 8 + 1), everything[56:96])


def test_another_batch_size_neither_repeats_nor_skips(records):
    np.testing.assert_array_equal(
        np.concatenate([take(records, 4), take(records, 3, start=32, batch_size=12)]), take(records, 17, batch_size=4)
    )


def test_batches_cross_the_end_of_an_epoch(records):
    start = len(records) - 5
    order = pipeline.training_order(len(records), seed=3)
    np.testing.assert_array_equal(
        take(records, 1, start=start), records.read([int(order[start + i]) for i in range(8)])
    )


def test_processes_read_their_rows_of_the_same_batch(records):
    whole = take(records, 1)
    parts = [take(records, 1, rows=slice(i, i + 2)) for i in range(0, 8, 2)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


@pytest.mark.parametrize("batch_size", [5, 8, 64])
def test_evaluation_has_each_record_once(records, batch_size):
    batches = list(pipeline.evaluation_batches(records, batch_size, max_records=23, pad=0))
    assert all(batch.input_ids.shape == (batch_size, 32) for batch in batches)
    index = np.concatenate([batch.record for batch in batches])
    ids = np.concatenate([batch.input_ids for batch in batches])
    assert index[:23].tolist() == list(range(23))
    np.testing.assert_array_equal(ids[:23], records.read(range(23)))
    assert (ids[23:] == 0).all()
