"""Records: nothing lost, nothing crossing, the layout read back from the ids alone."""

import jax.numpy as jnp
import numpy as np
import pytest

from electra_jax.data.packing import SpecialTokens, pack, two_segments
from electra_jax.objectives.layout import TokenIds, read_layout

SPECIAL = SpecialTokens(pad=0, unk=1, cls=2, sep=3, mask=4)


def random_documents(count: int, longest: int, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(5, 1000, rng.integers(0, longest)).astype(np.int32) for _ in range(count)]


def pieces(records: list[np.ndarray]) -> list[tuple[int, ...]]:
    """The texts between [CLS] and [SEP], by plain Python."""
    found = []
    for record in records:
        piece = None
        for token in record.tolist():
            if token == SPECIAL.cls:
                assert piece is None
                piece = []
            elif token == SPECIAL.sep:
                found.append(tuple(piece))
                piece = None
            elif token != SPECIAL.pad:
                piece.append(token)
        assert piece is None
    return found


@pytest.mark.parametrize("length", [8, 33, 128])
def test_no_token_is_lost(length):
    documents = random_documents(800, 3 * length)
    records = list(pack(documents, length, SPECIAL))
    assert all(record.shape == (length,) and record.dtype == np.int32 for record in records)
    window = length - 2
    expected = [tuple(d[i : i + window].tolist()) for d in documents for i in range(0, len(d), window)]
    assert sorted(pieces(records)) == sorted(expected)
    assert [tuple(r) for r in pack(documents, length, SPECIAL)] == [tuple(r) for r in records]


def test_padding_is_small_and_last():
    records = np.stack(list(pack(random_documents(5000, 200), 128, SPECIAL)))
    padding = records == SPECIAL.pad
    assert padding.mean() < 0.02
    assert (np.diff(padding.astype(int), axis=1) >= 0).all()


def test_more_documents_than_the_buffer_holds():
    documents = random_documents(40_000, 12)
    assert sorted(pieces(list(pack(documents, 16, SPECIAL)))) == sorted(tuple(d.tolist()) for d in documents if len(d))


def test_layout_of_packed_records():
    ids = jnp.asarray([[2, 9, 9, 3, 2, 8, 3, 0], [2, 7, 7, 7, 7, 7, 7, 3]])
    batch = read_layout(ids, jnp.arange(2), TokenIds(0, 2, 3, 4, two_segments=False))
    assert batch.segment_ids.tolist() == [[1, 1, 1, 1, 2, 2, 2, 0], [1] * 8]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 0, 1, 2, 3], list(range(8))]
    assert batch.token_type_ids.tolist() == [[0] * 8, [0] * 8]


def test_layout_of_two_segments():
    ids = jnp.asarray([[2, 9, 9, 3, 8, 8, 3, 0], [2, 7, 3, 0, 0, 0, 0, 0]])
    batch = read_layout(ids, jnp.arange(2), TokenIds(0, 2, 3, 4, two_segments=True))
    assert batch.segment_ids.tolist() == [[1] * 7 + [0], [1, 1, 1] + [0] * 5]
    assert batch.position_ids.tolist() == [list(range(8)), list(range(8))]
    assert batch.token_type_ids.tolist() == [[0, 0, 0, 0, 1, 1, 1, 0], [0] * 8]


def test_two_segments_follow_the_references_rules():
    """Form, shares and limits of google-research/electra's build_pretraining_dataset.py."""
    rng = np.random.default_rng(1)
    documents = [[rng.integers(5, 1000, rng.integers(1, 30)).astype(np.int32) for _ in range(40)] for _ in range(400)]
    length = 64
    records = list(two_segments(documents, length, SPECIAL))
    separators = [int((record == SPECIAL.sep).sum()) for record in records]
    assert set(separators) == {1, 2}
    for record, count in zip(records, separators, strict=True):
        real = record[record != SPECIAL.pad]
        assert len(record) == length
        assert record[0] == SPECIAL.cls
        assert real[-1] == SPECIAL.sep
        assert (record[: len(real)] != SPECIAL.pad).all()
        assert (real == SPECIAL.cls).sum() == 1
        if count == 2:
            first = int(np.argmax(real == SPECIAL.sep)) - 1
            assert first >= 1
    single = separators.count(1) / len(records)
    assert 0.07 < single < 0.25  # 10 % on purpose, and where one line filled the example
    short = np.mean([(record == SPECIAL.pad).sum() > length // 3 for record in records])
    assert 0.005 < short < 0.15  # 5 % have a random target length
    assert [r.tolist() for r in two_segments(documents, length, SPECIAL)] == [r.tolist() for r in records]


def test_two_segments_of_lines_of_one_token():
    """Then it is known to the token where each example begins, ends and is split: only what overflows is lost."""
    length, lines = 64, 600
    document = [np.asarray([5 + i], np.int32) for i in range(lines)]
    records = np.asarray(list(two_segments([document] * 300, length, SPECIAL)))
    texts = [record[record > SPECIAL.mask] for record in records]
    starts = np.asarray([text[0] for text in texts]) - 5
    is_first, is_last = starts == 0, np.roll(starts, -1) == 0
    taken = np.where(is_last, lines, np.roll(starts, -1)) - starts
    separators = (records == SPECIAL.sep).sum(1)
    assert is_first.sum() == 300 and taken.min() > 0 and taken[~is_last].max() == length
    for text, start, count, ends in zip(texts, starts, taken, separators, strict=True):
        np.testing.assert_array_equal(text, 5 + start + np.arange(min(count, length - 1 - ends)))
    # An example takes as many tokens as its target length, except for a document's last. The target is drawn for each, also
    # for the first of a document: the original draws it when the example before is done, which may be the last of another.
    assert 0.01 < (taken[is_first] < length).mean() < 0.1
    middle = taken[~is_last]
    shorter = middle[middle < length]
    assert 0.03 < len(shorter) / len(middle) < 0.07  # 5 % have a random target length
    assert shorter.min() < 15 and shorter.max() > 55 and 25 < shorter.mean() < 43
    assert 0.08 < (separators[taken == length] == 1).mean() < 0.12
    first = np.argmax(records == SPECIAL.sep, 1)[(separators == 2) & (taken == length)] - 1
    half = (length - 3) // 2
    assert {*first.tolist()} == {half - 1, half} and 0.45 < (
        first == half
    ).mean() < 0.55  # the line at the middle goes to either segment, by a coin


def test_two_segments_of_lines_without_tokens():
    nothing = np.zeros(0, np.int32)
    assert list(two_segments([[nothing], []], 16, SPECIAL)) == []
    (record,) = two_segments([[np.full(20, 7, np.int32), nothing]], 16, SPECIAL)
    assert (record == 7).sum() > 10


def test_two_segments_keep_the_order_of_the_text():
    lines = [np.arange(5 + 10 * i, 15 + 10 * i, dtype=np.int32) for i in range(20)]
    for record in two_segments([lines], 48, SPECIAL):
        text = record[record > 4]
        assert (np.diff(text) > 0).all()
