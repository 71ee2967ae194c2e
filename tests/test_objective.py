"""Masking, sampling, labels and measures, each against an independent computation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sk

from electra_jax.config import Config, ModelConfig, ObjectiveConfig
from electra_jax.models import vocabulary
from electra_jax.models.electra import Architecture
from electra_jax.objectives import losses, masking, sampling
from electra_jax.objectives.layout import TokenIds, read_layout
from electra_jax.objectives.replaced_tokens import replaced_token_detection
from electra_jax.objectives.terms import Example, randomness
from electra_jax.reporting.metrics import Sums, area_under_roc, figures

IDS = TokenIds(0, 2, 3, 4, two_segments=False)
CONFIG = ObjectiveConfig()
VOCAB, LENGTH = 200, 64
ARCHITECTURE = Architecture(
    ModelConfig(embedding_size=16, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
                generator_hidden_size=0.5, max_position_embeddings=64, initializer_range=0.5), VOCAB
)  # fmt: skip


def random_batch(examples: int, seed: int = 0, first_index: int = 0):
    """Records of two documents, some with padding, some with [MASK] and [UNK] in the text."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(5, VOCAB, (examples, LENGTH))
    ids[rng.random(ids.shape) < 0.03] = 1
    ids[rng.random(ids.shape) < 0.03] = IDS.mask
    ids[:, 0], ids[:, 29], ids[:, 30] = IDS.cls, IDS.sep, IDS.cls
    for row, end in zip(ids, rng.integers(40, LENGTH + 1, examples), strict=True):
        row[end - 1] = IDS.sep
        row[end:] = IDS.pad
    return read_layout(jnp.asarray(ids), jnp.arange(first_index, first_index + examples), IDS)


def draw(batch, step=0, seed=0, dropout=False):
    return randomness(jax.random.fold_in(jax.random.key(seed), step), batch.index, dropout)


def mask(batch, step=0, seed=0, config=CONFIG):
    return jax.jit(masking.choose, static_argnums=(2, 3))(draw(batch, step, seed).masking, batch, IDS, config)


def test_slots():
    assert [CONFIG.max_predictions(length) for length in (128, 512)] == [19, 79]
    assert ObjectiveConfig(mask_prob=0.25).max_predictions(512) == 130


def test_masked_positions_are_distinct_candidates():
    batch = random_batch(200)
    masked = mask(batch)
    ids = np.asarray(batch.input_ids)
    for row in range(200):
        used = np.asarray(masked.weights[row]) > 0
        positions = np.asarray(masked.positions[row])[used]
        assert len(set(positions)) == len(positions)
        assert not set(ids[row][positions]) & {IDS.pad, IDS.cls, IDS.sep, IDS.mask}
        # Counted over real tokens, [CLS] and [SEP] included, as in the reference.
        assert len(positions) == min(9, max(1, round((ids[row] != IDS.pad).sum() * 0.15)))
    assert (ids == 1).any()
    assert np.isin(
        1, ids[np.arange(200)[:, None], masked.positions][np.asarray(masked.weights) > 0]
    )  # [UNK] may be masked


def test_every_candidate_is_as_likely():
    batch = random_batch(4)
    masked = jax.jit(jax.vmap(functools.partial(mask, batch)))(jnp.arange(2000))
    counts = np.zeros((4, LENGTH))
    np.add.at(counts, (np.arange(4)[:, None], np.asarray(masked.positions)), np.asarray(masked.weights))
    for row in range(4):
        ids = np.asarray(batch.input_ids[row])
        candidates = ~np.isin(ids, (IDS.pad, IDS.cls, IDS.sep, IDS.mask))
        assert counts[row][~candidates].sum() == 0
        observed = counts[row][candidates]
        # Without replacement the counts vary a little less than independent ones, so this bound is generous.
        assert stats.chisquare(observed).pvalue > 1e-3


def test_shares_of_mask_tokens():
    batch = random_batch(2000)
    masked = mask(batch)
    rows = np.arange(2000)[:, None]
    seen = np.asarray(masked.input_ids)[rows, masked.positions][np.asarray(masked.weights) > 0]
    original = np.asarray(batch.input_ids)[rows, masked.positions][np.asarray(masked.weights) > 0]
    assert set(seen[seen != original]) == {IDS.mask}  # 85 % [MASK], 15 % unchanged, none random
    share = (seen == IDS.mask).mean()
    assert abs(share - 0.85) < 5 * np.sqrt(0.85 * 0.15 / len(seen))
    untouched = np.asarray(masked.input_ids) == np.asarray(batch.input_ids)
    assert (~untouched).sum() == (seen == IDS.mask).sum()


def test_masks_depend_on_seed_step_and_index_alone():
    whole = mask(random_batch(16), step=5)
    batch = jax.tree.map(lambda x: x[8:], random_batch(16))
    part = mask(batch, step=5)
    np.testing.assert_array_equal(part.positions, whole.positions[8:])
    np.testing.assert_array_equal(part.input_ids, whole.input_ids[8:])
    for other in (
        mask(batch, step=6),
        mask(batch, step=5, seed=1),
        mask(batch._replace(index=batch.index - 8), step=5),
    ):
        assert not np.array_equal(other.positions, part.positions)


def test_samples_depend_on_seed_step_and_index_alone():
    params = ARCHITECTURE.init(jax.random.key(0))

    def samples(batch, step=5, seed=0):
        masked = mask(random_batch(16), step=5)  # the same masks throughout: only the sampling differs
        masked = jax.tree.map(lambda x: x[16 - len(batch.index) :], masked)
        draws = draw(batch, step, seed)
        run = jax.jit(
            lambda: (
                replaced_token_detection(
                    ARCHITECTURE.merge(params), Example(batch, masked, draws), Config()
                ).sampled_ids
            )
        )
        return np.asarray(run())

    whole, batch = samples(random_batch(16)), jax.tree.map(lambda x: x[8:], random_batch(16))
    np.testing.assert_array_equal(samples(batch), whole[8:])
    for other in (samples(batch, step=6), samples(batch, seed=1), samples(batch._replace(index=batch.index - 8))):
        assert not np.array_equal(other, whole[8:])


def test_nothing_to_mask():
    ids = np.zeros((3, LENGTH), np.int32)
    ids[1, :2] = (IDS.cls, IDS.sep)
    ids[2, :3] = (IDS.cls, 9, IDS.sep)
    masked = mask(read_layout(jnp.asarray(ids), jnp.arange(3), IDS))
    assert np.asarray(masked.weights).sum(1).tolist() == [0, 0, 1]
    assert masked.positions[2, 0] == 1
    np.testing.assert_array_equal(masked.input_ids[:2], ids[:2])


@pytest.mark.parametrize("temperature", [1.0, 0.5, 3.0])
def test_samples_have_the_generators_distribution(temperature):
    rng = np.random.default_rng(0)
    logits = np.full((3, 256), -1e9, np.float32)
    logits[:, :VOCAB] = rng.normal(0, 2, (3, VOCAB))
    logits[2, 130:] = -1e9
    draws = rng.random((3, 100_000, 2)).astype(np.float32)
    samples = jax.jit(sampling.sample, static_argnums=2)(
        jnp.broadcast_to(logits[:, None], (3, 1, 256)).repeat(1, 1), jnp.asarray(draws[:, :1]), temperature
    )
    assert samples.shape == (3, 1)
    for row in range(3):
        many = sampling.sample(
            jnp.broadcast_to(logits[row], (1, 100_000, 256)), jnp.asarray(draws[row][None]), temperature
        )
        counts = np.bincount(np.asarray(many).ravel(), minlength=256)
        scaled = logits[row].astype(np.float64) / temperature
        expected = np.exp(scaled - scaled.max())
        expected *= counts.sum() / expected.sum()
        assert counts[expected == 0].sum() == 0
        common = expected > 5
        observed = np.append(counts[common], counts[~common].sum())
        wanted = np.append(expected[common], expected[~common].sum())
        assert stats.chisquare(observed[wanted > 0], wanted[wanted > 0]).pvalue > 1e-3


@pytest.mark.parametrize("at_once", [256, 65_536])
def test_samples_on_accelerators_are_those_of_the_cpu(request, monkeypatch, at_once):
    """Also of a vocabulary whose blocks are summed in several products, the last one smaller."""
    monkeypatch.setattr(vocabulary, "_AT_ONCE", at_once)
    rng = np.random.default_rng(1)
    logits, draws = rng.normal(0, 3, (5000, 640)).astype(np.float32), rng.random((5000, 2)).astype(np.float32)
    on_cpu = np.asarray(jax.jit(sampling.sample)(logits, draws))
    request.getfixturevalue("as_on_accelerators")
    elsewhere = np.asarray(jax.jit(lambda *x: sampling.sample(*x))(logits, draws))
    assert (on_cpu == elsewhere).mean() > 0.999  # except where rounding moves a draw across an edge
    assert (on_cpu == np.asarray(sampling.sample(logits, draws[::-1]))).mean() < 0.5


def test_extreme_draws_stay_within_the_distribution():
    logits = np.full((1, 1, 384), -1e9, np.float32)
    logits[0, 0, [3, 140]] = (0.0, -3.0)
    for u in (0.0, 0.5, np.nextafter(np.float32(1), np.float32(0)), 1.0):
        for v in (0.0, 1.0):
            assert int(sampling.sample(jnp.asarray(logits), jnp.asarray([[[u, v]]], jnp.float32))[0, 0]) in (3, 140)


def test_no_gradient_through_sampling():
    """The discriminator's loss does not reach the generator; the generator's own does."""
    batch, params = random_batch(4), ARCHITECTURE.init(jax.random.key(0))
    example = Example(batch, mask(batch), draw(batch))

    def loss(params, name):
        terms = replaced_token_detection(ARCHITECTURE.merge(params), example, Config())
        return terms.losses[name].total

    disc = jax.grad(loss)(params, "disc_loss")
    assert all((np.asarray(x) == 0).all() for x in jax.tree.leaves(disc["generator"]))
    assert any((np.asarray(x) != 0).any() for x in jax.tree.leaves(disc["discriminator"]))
    generator = jax.grad(loss)(params, "masked_lm_loss")
    assert any((np.asarray(x) != 0).any() for x in jax.tree.leaves(generator["generator"]))
    assert all((np.asarray(x) == 0).all() for x in jax.tree.leaves(generator["discriminator"]))


def terms_of(batch, masked, sampled_ids=None):
    params = ARCHITECTURE.init(jax.random.key(0))
    run = jax.jit(
        lambda given: replaced_token_detection(
            ARCHITECTURE.merge(params), Example(batch, masked, draw(batch), given), Config()
        )
    )
    return params, run(sampled_ids)


def test_labels_and_terms():
    """A sample equal to the original is original; every real token counts; [MASK] never reaches the discriminator."""
    batch = random_batch(8)
    masked = mask(batch)
    rows = np.arange(8)[:, None]
    original = np.asarray(batch.input_ids)[rows, masked.positions]
    sampled = np.where(np.arange(original.shape[1]) % 2, original, 7)  # every second sample is the original token
    params, terms = terms_of(batch, masked, jnp.asarray(sampled))

    corrupted = np.asarray(batch.input_ids).copy()
    used = np.asarray(masked.weights) > 0
    for row in range(8):
        corrupted[row][np.asarray(masked.positions)[row][used[row]]] = sampled[row][used[row]]
    labels, real = corrupted != np.asarray(batch.input_ids), np.asarray(batch.input_ids) != IDS.pad
    assert 0 < labels.sum() < used.sum()

    model = ARCHITECTURE.merge(params)
    scores = np.asarray(model.discriminator_logits(batch.text._replace(input_ids=jnp.asarray(corrupted))), np.float64)
    probability = 1 / (1 + np.exp(-scores))
    expected = -np.where(labels, np.log(probability), np.log1p(-probability))[real].mean()
    got = figures(jax.device_get({"means": {**terms.losses, **terms.metrics}, "histogram": terms.histogram}))
    np.testing.assert_allclose(got["disc_loss"], expected, rtol=1e-5)
    assert terms.losses["disc_loss"].weight == real.sum()
    y, s = labels[real], scores[real]
    np.testing.assert_allclose(got["disc_accuracy"], sk.accuracy_score(y, s > 0), rtol=1e-6)
    np.testing.assert_allclose(got["disc_precision"], sk.precision_score(y, s > 0, zero_division=0), rtol=1e-6)
    np.testing.assert_allclose(got["disc_recall"], sk.recall_score(y, s > 0), rtol=1e-6)
    np.testing.assert_allclose(got["disc_auc"], sk.roc_auc_score(y, s), atol=2e-3)
    np.testing.assert_allclose(got["replaced_share"], y.mean(), rtol=1e-6)

    logits = model.generator_logits(batch.text._replace(input_ids=masked.input_ids), masked.positions)
    logits = np.asarray(logits, np.float64).reshape(*original.shape, -1)[..., :VOCAB]
    log_probability = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    expected = -np.take_along_axis(log_probability, original[..., None], -1)[..., 0][used].mean()
    np.testing.assert_allclose(got["masked_lm_loss"], expected, rtol=1e-5)
    np.testing.assert_allclose(got["masked_lm_accuracy"], (logits.argmax(-1) == original)[used].mean(), rtol=1e-6)
    np.testing.assert_allclose(got["sampled_masked_lm_accuracy"], (sampled == original)[used].mean(), rtol=1e-6)
    expected = -np.take_along_axis(log_probability, sampled[..., None], -1)[..., 0][used].mean()
    np.testing.assert_allclose(got["generator_entropy"], expected, rtol=1e-5)


def test_area_under_roc():
    rng = np.random.default_rng(0)
    labels, weights = rng.random(20_000) < 0.1, rng.random(20_000) < 0.8
    scores = (rng.normal(0, 2, 20_000) + labels).astype(np.float32)
    histogram = losses.score_histogram(jnp.asarray(scores), jnp.asarray(labels), jnp.asarray(weights))
    assert histogram.sum() == weights.sum()
    expected = sk.roc_auc_score(labels[weights], scores[weights])
    assert abs(area_under_roc(np.asarray(histogram)) - expected) < 1e-4
    assert area_under_roc(np.zeros((2, 8))) == 0.5
    assert area_under_roc(np.asarray([[1, 0, 0], [0, 0, 1]])) == 1.0
    assert area_under_roc(np.asarray([[0, 2, 0], [0, 5, 0]])) == 0.5


def test_padding_is_no_easy_negative():
    """The reference's AUC counts padding; ours does not change with it."""
    scores, labels = jnp.asarray([[1.0, -2.0, 0.5, -9.0]]), jnp.asarray([[1, 0, 0, 0]])
    with_padding = losses.score_histogram(scores, labels, jnp.asarray([[1, 1, 1, 0]]))
    without = losses.score_histogram(scores[:, :3], labels[:, :3], jnp.ones((1, 3)))
    np.testing.assert_array_equal(with_padding, without)


def test_sums_add_up_over_parts():
    parts = [{"means": {"a": losses.Mean(np.float32(3), np.float32(4)), "b": losses.Mean(np.float32(0), np.float32(0))},
              "histogram": np.eye(2)}] * 3  # fmt: skip
    sums = Sums()
    for part in parts:
        sums.add(part)
    assert sums.figures() == {"a": 0.75, "b": 0.0, "disc_auc": 1.0}
