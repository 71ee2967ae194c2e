"""Batches as a function of the position."""

import collections
import dataclasses
import itertools
import os

import numpy as np
import pytest

from conftest import sequences, small_config, with_data
from electra_jax.config import DataConfig
from electra_jax.data import build, order, pipeline
from electra_jax.data.dataset import RECORD_SEQUENCES
from electra_jax.errors import UserError

BLOCKS = {"shuffle": "blocks", "shuffle_block": 32, "shuffle_window": 4}


def of(prepared, seed=3, **data) -> pipeline.Sequences:
    return sequences(small_config(seed=seed, data=data), prepared)


def take(made, count, start=0, batch_size=8, **options) -> np.ndarray:
    return np.concatenate(list(itertools.islice(pipeline.training_batches(made, start, batch_size, **options), count)))


def blocks_of(sizes, lanes, seed=0):
    return order.shuffled_by_blocks(sizes, lanes, seed)


ORDERS = {
    "full": (lambda seed: order.fully_shuffled(150, seed), 150),
    "blocks": (lambda seed: blocks_of([32, 32, 11, 32, 32, 11], 2, seed), 150),
    "one lane": (lambda seed: blocks_of([32, 32, 11, 32, 32, 11], 1, seed), 150),
    "lanes of one or two": (lambda seed: blocks_of([32, 32, 11, 32, 32, 11], 100, seed), 150),
}


@pytest.mark.parametrize("kind", ORDERS)
def test_each_epoch_has_every_sequence_once_in_its_own_order(kind):
    make, count = ORDERS[kind]
    made = make(3)
    epochs = [made(np.arange(k * count, (k + 1) * count)).tolist() for k in range(3)]
    assert all(sorted(epoch) == list(range(count)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert epochs[0] != make(4)(np.arange(count)).tolist()
    # A pure function: any positions, in any order, at any time, across the end of an epoch.
    some = np.asarray([449, 3, 150, 149, 151, 7])
    assert made(some).tolist() == [[*epochs[0], *epochs[1], *epochs[2]][i] for i in some]


def test_each_lane_reads_its_blocks_one_by_one():
    sizes = [16] * 40
    found = blocks_of(sizes, 4)(np.arange(640))
    lanes = [found[k::4] for k in range(4)]
    for lane in lanes:  # of ten blocks each, in random order, and the sequences of each in random order
        blocks = [set((lane[i : i + 16] // 16).tolist()) for i in range(0, 160, 16)]
        assert all(len(block) == 1 for block in blocks)
        assert [block.pop() for block in blocks] != sorted(set((lane // 16).tolist()))
        assert lane[:16].tolist() != sorted(lane[:16])
    assert all(len(set(found[i : i + 4] // 16)) == 4 for i in range(0, 640, 4))  # neighbours are of different blocks
    assert len(set(order.fully_shuffled(640, 0)(np.arange(64)) // 16)) > 20  # the control


def test_lanes_that_end_at_different_places_have_each_sequence_once_an_epoch():
    """Whatever the blocks' sizes: a block that lies across two lanes is shared by them."""
    rng = np.random.default_rng(0)
    for lanes in (1, 3, 7, 40):
        sizes = rng.integers(1, 20, 30).tolist()
        made, count = blocks_of(sizes, lanes), sum(sizes)
        for epoch in range(3):
            assert sorted(made(epoch * count + np.arange(count)).tolist()) == list(range(count))


def test_blocks_are_read_once_and_whole(prepared):
    """Counts the bytes read per byte used; a sequence that is read by itself costs the whole record it is in."""
    one, other = of(prepared, **BLOCKS), of(prepared)
    count = len(one)
    for made in (one, other):
        for first in range(0, count, 8):
            made.read(np.arange(first, min(first + 8, count)))
    # The last block of the data set is padded up to whole records; a block across two of the four lanes is read once for each.
    whole = -(-count // 16) * 16
    assert whole <= one.read_per_used() * count <= whole + 3 * 32
    assert 1.5 < other.read_per_used() <= RECORD_SEQUENCES


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_processes_read_their_part_of_the_blocks(prepared, processes, monkeypatch):
    monkeypatch.setattr(pipeline, "_READ_AHEAD", 8)
    count = len(of(prepared)) // 8

    def read_per_used(batch_size: int, rows: slice) -> float:
        made = of(prepared, **BLOCKS)
        take(made, count, batch_size=batch_size, rows=rows)
        return made.read_per_used()

    parts = [slice(i * 8 // processes, (i + 1) * 8 // processes) for i in range(processes)]
    # The blocks across two lanes, and what is read ahead of the last batch, come on top.
    assert max(read_per_used(8, rows) for rows in parts) < 1.3
    # The control: if the batch size is no multiple of the lanes, a row is of another lane than in the batch before.
    assert read_per_used(7, slice(0, 1)) > 3


def ordered(batches: np.ndarray) -> list[bytes]:
    return sorted(ids.tobytes() for ids in batches)


@pytest.mark.parametrize("shuffle", [{}, BLOCKS], ids=["full", "blocks"])
def test_batches_go_on_from_any_position(prepared, shuffle):
    made = of(prepared, **shuffle)
    everything = take(made, 12)
    np.testing.assert_array_equal(take(of(prepared, **shuffle), 5, start=7 * 8), everything[56:96])
    assert not np.array_equal(take(made, 5, start=7 * 8 + 1), everything[56:96])
    # Another batch size neither repeats nor skips.
    several = [*take(made, 4), *take(made, 3, start=32, batch_size=12), *take(made, 1, start=68, batch_size=7)]
    assert ordered(several) == ordered(take(made, 15, batch_size=5)) and len(several) == 75
    # Processes read their rows of the same batch.
    parts = [take(of(prepared, **shuffle), 1, rows=slice(i, i + 2)) for i in range(0, 8, 2)]
    np.testing.assert_array_equal(np.concatenate(parts), everything[:8])


def test_batches_cross_the_end_of_an_epoch(prepared):
    made = of(prepared)
    expected = order.fully_shuffled(len(made), 3)(np.arange(len(made) - 5, len(made) + 3))
    records = pipeline.Records(prepared.sets[32][0], "train")
    np.testing.assert_array_equal(take(made, 1, start=len(made) - 5), records.read(expected))


@pytest.mark.parametrize("weights", [(1.0, 1.0), (3.0, 1.0), (0.15, 0.8, 0.05), (1e-3, 1.0)])
def test_shares_of_a_mixture(weights):
    mixed = order.mixed(weights, 1, 0)
    which, places = mixed(np.arange(1_200_000))
    for source, weight in enumerate(weights):
        of_source = which == source
        assert of_source.mean() == pytest.approx(weight / sum(weights), abs=1e-4)
        assert places[of_source].tolist() == list(range(of_source.sum()))  # none twice, none left out
        if weight > 0.01:  # also over short stretches: the figure of each 1,000 lies within 1 % of all
            shares = of_source.reshape(-1, 1000).mean(1)
            assert np.abs(shares - weight / sum(weights)).max() <= 0.01
    some = np.asarray([40_000, 5, 12_345])
    np.testing.assert_array_equal(np.stack(mixed(some)), np.stack([which[some], places[some]]))


def test_lanes_of_a_mixture():
    """Each lane has the mixture's shares, neighbours are of different sources, and lane k reads lane k of each source."""
    which, places = order.mixed((3.0, 1.0), 8, 0)(np.arange(80_000))
    assert (places % 8 == np.arange(80_000) % 8).all()
    for lane in range(8):
        assert (which[lane::8] == 0).mean() == pytest.approx(0.75, abs=1e-3)
        for source in range(2):  # none twice, none left out
            of_lane = places[lane::8][which[lane::8] == source]
            assert of_lane.tolist() == list(range(lane, lane + 8 * len(of_lane), 8))
    shares = (which == 0).reshape(-1, 8).mean(1)
    assert 0.05 < shares.std() < 0.25  # lanes in step would give shares of 0 or 1: 0.43


@pytest.fixture(scope="module")
def two_sources(tmp_path_factory, corpus_file):
    """The test corpus in two files, one three times as large as the other."""
    folder = tmp_path_factory.mktemp("mixture")
    texts = corpus_file.read_text().split("\n\n")
    (folder / "large.txt").write_text("\n\n".join(texts[:300]))
    (folder / "small.txt").write_text("\n\n".join(texts[300:]))
    return folder


def mixture(folder, **data):
    source = f"{folder}/large.txt,{folder}/small.txt"
    config = with_data(small_config(), "embedded", folder / "datasets")
    return dataclasses.replace(config, data=dataclasses.replace(config.data, source=source, **data))


@pytest.mark.parametrize(
    ("weights", "are", "share"),
    [((1.0, 3.0), "shares", 0.75), ((1.0, 3.0), "epochs", None), ((1.0, 1.0), "epochs", None)],
)
def test_a_mixture_in_shares_and_epochs(two_sources, weights, are, share):
    config = mixture(two_sources, weights=weights, weights_are=are)
    prepared = build.prepare(config, say=lambda text: None)
    assert len(prepared.sets[32]) == 2
    made = sequences(config, prepared)
    large, small = (pipeline.Records(one, "train") for one in prepared.sets[32])
    # In epochs, one pass reads each as often as its weight says.
    total = round(sum(w * len(r) for w, r in zip(weights, (large, small)))) if are == "epochs" else 4000
    counts = collections.Counter(ids.tobytes() for ids in take(made, -(-total // 8))[:total])
    of_small = sum(counts[ids.astype(np.int32).tobytes()] for ids in small.read(range(len(small))))
    expected = share or weights[1] * len(small) / total
    assert of_small / total == pytest.approx(expected, abs=0.01)
    np.testing.assert_array_equal(take(sequences(config, prepared), 3, start=80), take(made, 13)[80:104])


def test_other_weights_need_no_preparing_with_the_same_vocabulary(two_sources):
    said = []
    build.prepare(mixture(two_sources, weights=(1.0, 3.0), weights_are="shares"), say=lambda text: None)
    one = build.prepare(mixture(two_sources, weights=(1.0, 3.0), weights_are="shares"), say=said.append)
    assert not said
    tokenizer = one.tokenizer
    other = build.prepare(mixture(two_sources, weights=(1.0, 2.0)), said.append, tokenizer)
    assert other.directories == one.directories and not said


def test_a_mixture_by_blocks_is_read_in_parts(two_sources):
    prepared = build.prepare(mixture(two_sources, weights=(1.0, 1.0)), say=lambda text: None)
    config = mixture(two_sources, weights=(1.0, 1.0), **BLOCKS)
    count = len(sequences(config, prepared))
    whole = take(sequences(config, prepared), count // 8)
    parts = [
        (made, take(made, count // 8, rows=slice(i, i + 4))) for i in (0, 4) for made in [sequences(config, prepared)]
    ]
    np.testing.assert_array_equal(np.stack([ids.reshape(-1, 4, 32) for _, ids in parts], 1).reshape(whole.shape), whole)
    assert all(made.read_per_used() < 1.5 for made, _ in parts)


@pytest.mark.parametrize("batch_size", [5, 8, 64])
def test_evaluation_has_each_record_once(prepared, batch_size):
    (made,) = prepared.sets[32]
    records = pipeline.Records(made, "validation")
    assert len(records) > 23
    batches = list(pipeline.evaluation_batches(pipeline.held_out([made]), batch_size, max_records=23, pad=0))
    assert all(batch.input_ids.shape == (batch_size, 32) for batch in batches)
    index = np.concatenate([batch.record for batch in batches])[:23]
    ids = np.concatenate([batch.input_ids for batch in batches])
    assert len(set(index.tolist())) == 23 and index.max() > 23  # spread over all records
    np.testing.assert_array_equal(ids[:23], records.read(index))
    assert (ids[23:] == 0).all()
    everything = list(pipeline.evaluation_batches(pipeline.held_out([made]), batch_size, max_records=0, pad=0))
    assert np.concatenate([batch.record for batch in everything])[: len(records)].tolist() == list(range(len(records)))


def test_evaluation_of_a_mixture(two_sources):
    sets = build.prepare(mixture(two_sources, weights=(1.0, 1.0)), say=lambda text: None).sets[32]
    large, small = (pipeline.Records(made, "validation") for made in sets)
    expected = np.concatenate([large.read(range(len(large))), small.read(range(len(small)))])
    batches = list(pipeline.evaluation_batches(pipeline.held_out(sets), 8, 0, 0))
    np.testing.assert_array_equal(np.concatenate([b.input_ids for b in batches])[: len(expected)], expected)
    two = [list(pipeline.evaluation_batches(pipeline.held_out(sets), 8, 0, 0, slice(i, i + 4))) for i in (0, 4)]
    for whole, one, other in zip(batches, *two, strict=True):
        np.testing.assert_array_equal(np.concatenate([one.record, other.record]), whole.record)
        np.testing.assert_array_equal(np.concatenate([one.input_ids, other.input_ids]), whole.input_ids)


def test_a_part_too_small_to_be_mixed_in_is_refused(two_sources):
    prepared = build.prepare(mixture(two_sources, weights=(1.0, 1.0)), say=lambda text: None)
    with pytest.raises(UserError, match=r"part 2 of data.source has a share of 5.0e-05"):
        sequences(mixture(two_sources, weights=(1.0, 5e-5), weights_are="shares"), prepared)


def test_more_shards_than_files_may_be_open(corpus_file, tmp_path, monkeypatch):
    config = small_config(data={"source": str(corpus_file), "directory": str(tmp_path), "shard_bytes": 4000})
    prepared = build.prepare(config, say=lambda text: None)
    (made,) = prepared.sets[32]
    assert len(made.metadata["train"]["shards"]) > 40
    expected = sequences(config, prepared).read(np.arange(len(sequences(config, prepared))))
    monkeypatch.setattr(pipeline, "_open_files", lambda: 3)
    limited = sequences(config, prepared)
    files = len(os.listdir("/proc/self/fd"))
    for first in range(0, len(limited), 50):
        found = limited.read(np.arange(first, min(first + 50, len(limited))))
        np.testing.assert_array_equal(found, expected[first : first + 50])
        assert len(os.listdir("/proc/self/fd")) <= files + 10


def test_defaults_shuffle_fully():
    assert DataConfig().shuffle == "full" and DataConfig().shuffle_block % RECORD_SEQUENCES == 0


def test_epochs_are_of_the_part_that_is_read_most_often():
    mixed = object.__new__(pipeline.Sequences)
    mixed.shares, mixed._sources = [0.5, 0.5], [range(90), range(10)]
    assert mixed.epochs(100) == 5.0
    mixed.shares = [90.0, 10.0]  # each once an epoch
    assert mixed.epochs(100) == 1.0
