"""Whole updates, and the settings that reproduce the reference, against an independent implementation.

The other implementation is torch with Hugging Face's towers for losses and gradients, and NumPy for masks, labels,
clipping, Adam and the learning rate, each written out from the description of google-research/electra. Masks and
samples are given to both; dropout is off.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from electra_jax.config import Config, EvaluationConfig, ModelConfig, ObjectiveConfig, OptimizerConfig, TrainConfig
from electra_jax.interop import huggingface
from electra_jax.models.electra import Architecture
from electra_jax.objectives import masking, sampling
from electra_jax.objectives.layout import TokenIds, read_layout
from electra_jax.objectives.objective import Pretraining
from electra_jax.objectives.replaced_tokens import replaced_token_detection
from electra_jax.objectives.terms import Example, Randomness, randomness
from electra_jax.reporting.metrics import area_under_roc
from electra_jax.training.optimizer import Moments, layer_rates, learning_rate
from electra_jax.training.state import fresh_params, new_state
from electra_jax.training.step import loss_and_gradients, replay

VOCAB, LENGTH, BATCH, SLOTS = 90, 24, 8, 5
IDS = TokenIds(0, 2, 3, 4, two_segments=True)
MODEL = ModelConfig(
    embedding_size=16, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
    generator_hidden_size=0.5, max_position_embeddings=32, initializer_range=0.2,
    hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
)  # fmt: skip
FIXED = Config(
    model=MODEL,
    objective=ObjectiveConfig(disc_weight=20.0),
    optimizer=OptimizerConfig(learning_rate=1e-2, warmup_steps=3, clip_norm=1.0, weight_decay=0.1),
    train=TrainConfig(batch_size=BATCH, num_train_steps=12),
)
REFERENCE = dataclasses.replace(
    FIXED,
    objective=dataclasses.replace(
        FIXED.objective, mask_sampling="with_replacement", duplicate_positions="average", loss_mean="per_replica"
    ),
    optimizer=dataclasses.replace(
        FIXED.optimizer, clipping="per_replica", layerwise_decay=0.8, layerwise_rule="reference"
    ),
    train=dataclasses.replace(FIXED.train, replicas=2),
)
# Each of the other choices at once.
OTHER = dataclasses.replace(
    FIXED,
    model=dataclasses.replace(MODEL, tied_embeddings=False),
    objective=dataclasses.replace(FIXED.objective, loss_mean="per_replica"),
    optimizer=dataclasses.replace(
        FIXED.optimizer,
        schedule="linear_after_warmup",
        bias_correction=True,
        decay_embeddings=False,
        layerwise_decay=0.8,
    ),
    train=dataclasses.replace(FIXED.train, replicas=4),
)

# The whole batch's mean, clipped by replica.
MIXED = dataclasses.replace(
    FIXED,
    optimizer=dataclasses.replace(FIXED.optimizer, clipping="per_replica"),
    train=dataclasses.replace(FIXED.train, replicas=2),
)


def text(rng, examples=BATCH):
    """Padded pairs of segments."""
    ids = rng.integers(5, VOCAB, (examples, LENGTH))
    ids[:, 0] = IDS.cls
    for row, middle, end in zip(ids, rng.integers(4, 9, examples), rng.integers(12, LENGTH + 1, examples)):
        row[middle] = row[end - 1] = IDS.sep
        row[end:] = IDS.pad
    return ids


def draws(rng, ids):
    """Masked positions with duplicates among them and unused slots, masked ids and samples."""
    positions, weights = np.zeros((BATCH, SLOTS), np.int32), np.zeros((BATCH, SLOTS), np.float32)
    masked = ids.copy()
    for i, row in enumerate(ids):
        used = rng.integers(2, SLOTS + 1)
        positions[i, :used] = rng.choice(np.flatnonzero(row >= 5), used)
        positions[i, 1] = positions[i, 0]
        weights[i, :used] = 1
        masked[i, positions[i, : used - 1]] = IDS.mask  # one is left as it is
    samples = rng.integers(5, VOCAB, (BATCH, SLOTS))
    samples[0, 0] = samples[0, 1] = ids[0, positions[0, 0]]  # samples that are the original token
    return positions, weights, masked, samples


class Torch:
    """The other implementation."""

    def __init__(self, config, params, tmp_path):
        torch = pytest.importorskip("torch", reason="torch computes the reference")
        transformers = pytest.importorskip("transformers", reason="transformers has the reference's towers")
        self.torch, self.config = torch, config
        for part in ("discriminator", "generator"):
            (tmp_path / part).mkdir()
            huggingface.write(tmp_path / part, params, config.model, part, special=IDS)
        self.disc = transformers.ElectraForPreTraining.from_pretrained(tmp_path / "discriminator").eval()
        self.gen = transformers.ElectraForMaskedLM.from_pretrained(tmp_path / "generator").eval()
        if config.model.tied_embeddings:
            self.gen.electra.embeddings = self.disc.electra.embeddings
            self.gen.generator_lm_head.weight = self.disc.electra.embeddings.word_embeddings.weight
        named = [(f"disc.{n}", p) for n, p in self.disc.named_parameters()]
        seen = {id(p) for _, p in named}
        named += [(f"gen.{n}", p) for n, p in self.gen.named_parameters() if id(p) not in seen]
        self.named = dict(named)
        self.updates = 0
        self.m = {n: np.zeros(p.shape) for n, p in named}
        self.v = {n: np.zeros(p.shape) for n, p in named}

    def corrupted(self, ids, positions, weights, samples):
        """The discriminator's input, token by token."""
        result = ids.copy()
        for i in range(len(ids)):
            for position in set(positions[i][weights[i] > 0]):
                here = samples[i][(positions[i] == position) & (weights[i] > 0)]
                average = self.config.objective.duplicate_positions == "average"
                result[i, position] = here.sum() // len(here) if average else here[0]
        return result

    def losses(self, ids, positions, weights, masked, samples):
        """Sums and denominators of both losses."""
        t = self.torch.tensor
        real = ids != IDS.pad
        types = np.where(real, np.minimum(np.cumsum(ids == IDS.sep, 1) - (ids == IDS.sep), 1), 0)
        inputs = {"attention_mask": t(real.astype(int)), "token_type_ids": t(types)}
        logits = self.gen(input_ids=t(masked), **inputs).logits
        logits = self.torch.gather(logits, 1, t(positions).long()[..., None].expand(-1, -1, VOCAB))
        labels = np.take_along_axis(ids, positions, 1)
        cross = self.torch.nn.functional.cross_entropy(logits.transpose(1, 2), t(labels), reduction="none")
        corrupted = self.corrupted(ids, positions, weights, samples)
        scores = self.disc(input_ids=t(corrupted), **inputs).logits
        replaced = t((corrupted != ids).astype(np.float32))
        binary = self.torch.nn.functional.binary_cross_entropy_with_logits(scores, replaced, reduction="none")
        return ((cross * t(weights)).sum(), weights.sum()), ((binary * t(real.astype(np.float32))).sum(), real.sum())

    def gradient(self, divided):
        """Of gen_weight * masked-LM loss + disc_weight * discriminator loss, the losses divided as `divided` says."""
        for parameter in self.named.values():
            parameter.grad = None
        (gen, gen_weight), (disc, disc_weight) = divided
        objective = self.config.objective
        loss = objective.gen_weight * gen / gen_weight + objective.disc_weight * disc / disc_weight
        loss.backward()
        return loss.item(), {n: p.grad.numpy().astype(np.float64) for n, p in self.named.items()}

    def clip(self, gradients):
        norm = np.sqrt(sum((g**2).sum() for g in gradients.values()))
        assert norm > self.config.optimizer.clip_norm or self.updates, (
            "nothing to clip: the comparison would not show it"
        )
        return {n: g * min(1.0, self.config.optimizer.clip_norm / norm) for n, g in gradients.items()}

    def total_gradient(self, *given):
        """Loss and gradient as the optimizer gets it."""
        replicas, own = self.config.train.replicas, self.config.objective.loss_mean == "per_replica"
        per_replica_clip = self.config.optimizer.clipping == "per_replica"
        whole = [weight / replicas for _, weight in self.losses(*given)]
        found = []
        for r in range(replicas):
            sums = self.losses(*(x[r::replicas] for x in given))
            divisors = [weight + 1e-6 for _, weight in sums] if own else whole
            found.append(self.gradient([(total, by) for (total, _), by in zip(sums, divisors)]))
        loss = np.mean([loss for loss, _ in found])
        gradients = [self.clip(g) if per_replica_clip else g for _, g in found]
        total = {n: sum(g[n] for g in gradients) for n in self.named}
        if not per_replica_clip:
            total = self.clip({n: g / replicas for n, g in total.items()})
        return loss, total

    def rate_of(self, name):
        """The layer-wise factor of a parameter's learning rate."""
        decay = self.config.optimizer.layerwise_decay
        layers, head = MODEL.num_hidden_layers, 2 if self.config.optimizer.layerwise_rule == "reference" else 1
        if "embeddings" in name:
            return decay ** (layers + head)
        if ".layer." in name:
            return decay ** (layers - 1 + head - int(name.split(".layer.")[1].split(".")[0]))
        return 1.0

    def update(self, step, gradients):
        """Adam by hand."""
        o, end = self.config.optimizer, self.config.train.num_train_steps
        self.updates += 1
        warm = min(1.0, step / o.warmup_steps)
        if o.schedule == "linear":
            rate = o.learning_rate * (1 - step / end) * warm
        else:
            rate = o.learning_rate * warm * min(1.0, (end - step) / (end - o.warmup_steps))
        for name, parameter in self.named.items():
            g = gradients[name]
            self.m[name] = o.beta1 * self.m[name] + (1 - o.beta1) * g
            self.v[name] = o.beta2 * self.v[name] + (1 - o.beta2) * g * g
            m, v = self.m[name], self.v[name]
            if o.bias_correction:
                m, v = m / (1 - o.beta1 ** (step + 1)), v / (1 - o.beta2 ** (step + 1))
            change = m / (np.sqrt(v) + o.eps)
            value = parameter.detach().numpy().astype(np.float64)
            is_table = name.endswith(("_embeddings.weight", "lm_head.weight"))
            if "LayerNorm" not in name and not name.endswith("bias") and (o.decay_embeddings or not is_table):
                change = change + o.weight_decay * value
            value = value - rate * self.rate_of(name) * change
            parameter.data = self.torch.tensor(value, dtype=self.torch.float32)
        if self.config.model.tied_embeddings:
            self.gen.generator_lm_head.weight = self.disc.electra.embeddings.word_embeddings.weight

    def tree_like(self, config, tensors):
        """Our tree of parameters, filled from tensors by name, 0 where there is none."""
        tree = jax.tree.map(lambda s: np.zeros(s.shape, np.float32), Architecture(config.model, VOCAB).shapes)
        for part, short in (("generator", "gen"), ("discriminator", "disc")):
            for tensor in huggingface.model_tensors(config.model, part):
                name = f"{short}.{tensor.theirs}"
                if name in tensors:
                    tensor.put(tree, tensors[name].astype(np.float32))
        return tree


def start(config):
    architecture = Architecture(config.model, VOCAB)
    state = new_state(config, architecture, fresh_params(architecture, config.seed))
    # Biases and LayerNorms away from zero and one.
    params = jax.tree.map(lambda x: x + 0.05 * jax.random.normal(jax.random.key(x.size), x.shape), state.params)
    return state._replace(params=params)


@pytest.mark.parametrize("config", [FIXED, REFERENCE, OTHER, MIXED], ids=["fixed", "reference", "other", "mixed"])
def test_eight_updates_equal_an_independent_implementation(config, tmp_path):
    state = start(config)
    other = Torch(config, jax.tree.map(np.asarray, state.params), tmp_path)
    step = jax.jit(functools.partial(replay, config))
    rng = np.random.default_rng(1)
    for number in range(8):
        ids = text(rng)
        given = draws(rng, ids)
        batch = read_layout(jnp.asarray(ids), jnp.arange(BATCH), IDS)
        new, metrics = step(state, batch, *map(jnp.asarray, given))
        loss, gradients = other.total_gradient(ids, *given)
        np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
        (gen, gen_weight), (disc, disc_weight) = other.losses(ids, *given)
        np.testing.assert_allclose(metrics["masked_lm_loss"], gen.item() / gen_weight, rtol=1e-5)
        np.testing.assert_allclose(metrics["disc_loss"], disc.item() / disc_weight, rtol=1e-5)
        if number == 0:
            _, ours, _ = loss_and_gradients(
                state.params,
                Example(batch, masking.Masked(*map(jnp.asarray, given[:3])), Randomness(), jnp.asarray(given[3])),
                config,
                Architecture(config.model, VOCAB),
                Pretraining(config, IDS),
            )
            if config.optimizer.clipping == "global":
                norm = np.sqrt(sum(np.square(g).sum() for g in jax.tree.leaves(ours)))
                ours = jax.tree.map(functools.partial(np.multiply, 1 / norm), ours)
            expected = other.tree_like(config, gradients)
            jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=2e-5), ours, expected)
        other.update(number, gradients)
        state = new
    expected = other.tree_like(config, {n: p.detach().numpy() for n, p in other.named.items()})
    before = start(config).params
    assert max(float(jnp.abs(a - b).max()) for a, b in zip(*map(jax.tree.leaves, (before, state.params)))) > 1e-2
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-4), state.params, expected)
    assert int(state.step) == 8
    moments = next(x for x in jax.tree.leaves(state.opt_state, is_leaf=lambda x: hasattr(x, "mu")) if hasattr(x, "mu"))
    assert isinstance(moments, Moments) != config.optimizer.bias_correction


def test_the_options_change_the_result():
    """A negative control: each of the options that the comparison above sets gives another update."""
    rng = np.random.default_rng(1)
    ids = text(rng)
    given = [jnp.asarray(x) for x in draws(rng, ids)]
    batch = read_layout(jnp.asarray(ids), jnp.arange(BATCH), IDS)
    reference = dataclasses.replace(REFERENCE, model=dataclasses.replace(MODEL, num_hidden_layers=1))
    later = start(reference)._replace(step=jnp.int32(5))

    def after(section=None, **changes):
        config = reference
        if section:
            config = dataclasses.replace(config, **{section: dataclasses.replace(getattr(config, section), **changes)})
        state = later._replace(opt_state=new_state(config, Architecture(config.model, VOCAB), later.params).opt_state)
        return replay(config, state, batch, *given)[
            0
        ].params  # not compiled: that would be nine programs, each run once

    plain = jax.tree.leaves(after())
    for changes in (
        {"section": "objective", "duplicate_positions": "first"},
        {"section": "objective", "loss_mean": "global"},
        {"section": "optimizer", "clipping": "global"},
        {"section": "optimizer", "clip_norm": 1e6},
        {"section": "optimizer", "layerwise_rule": "fixed"},
        {"section": "optimizer", "decay_embeddings": False},
        {"section": "optimizer", "bias_correction": True},
        {"section": "optimizer", "schedule": "linear_after_warmup"},
    ):
        other = jax.tree.leaves(after(**changes))
        assert max(float(jnp.abs(a - b).max()) for a, b in zip(plain, other)) > 1e-6, changes


def test_accumulation_within_replicas_changes_nothing():
    rng = np.random.default_rng(2)
    ids = text(rng)
    given = [jnp.asarray(x) for x in draws(rng, ids)]
    batch = read_layout(jnp.asarray(ids), jnp.arange(BATCH), IDS)
    parts = dataclasses.replace(REFERENCE, train=dataclasses.replace(REFERENCE.train, gradient_accumulation_steps=2))
    one, _ = jax.jit(functools.partial(replay, REFERENCE))(start(REFERENCE), batch, *given)
    two, _ = jax.jit(functools.partial(replay, parts))(start(parts), batch, *given)
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-6), one.params, two.params)


def test_masks_with_replacement():
    """Drawn evenly over the candidates, duplicates among them; as many as the reference's formula says."""
    config = ObjectiveConfig(mask_sampling="with_replacement")
    rng = np.random.default_rng(0)
    ids = np.full((4000, 128), 7)
    ids[:, 0], ids[:, 60], ids[:, 5] = IDS.cls, IDS.mask, 1  # [UNK] is a candidate
    lengths = rng.integers(20, 129, 4000)
    for row, end in zip(ids, lengths):
        row[end - 1], row[end:] = IDS.sep, IDS.pad
    batch = read_layout(jnp.asarray(ids), jnp.arange(4000), IDS)
    keys = randomness(jax.random.key(0), batch.index, dropout=False).masking
    masked = jax.jit(masking.choose, static_argnums=(2, 3))(keys, batch, IDS, config)
    positions, weights = np.asarray(masked.positions), np.asarray(masked.weights)
    slots = int((0.15 + 0.005) * 128)
    expected = np.clip(np.round(lengths.astype(np.float32) * np.float32(0.15)), 1, slots)
    np.testing.assert_array_equal(weights.sum(1), expected)
    drawn = np.take_along_axis(ids, positions, 1)[weights > 0]
    assert not set(np.unique(drawn)) - {1, 7}
    full = lengths == 128
    unique = [len(set(p[w > 0])) for p, w in zip(positions[full], weights[full])]
    # Without replacement all 19 would differ.
    candidates = 125
    assert abs(np.mean(unique) - candidates * (1 - (1 - 1 / candidates) ** 19)) < 0.5
    counts = np.bincount(positions[full][weights[full] > 0], minlength=128)
    assert counts[[0, 60, 127]].tolist() == [0, 0, 0]
    assert counts[5] > 0


def test_disallowed_tokens_are_never_drawn_and_the_rest_keeps_its_shares():
    logits = np.zeros((1, 1, 128), np.float32) - 1e9
    logits[..., :4] = np.log([0.5, 0.3, 0.1, 0.1])
    draws = np.random.default_rng(0).random((1, 40_000, 2)).astype(np.float32)
    many = jnp.broadcast_to(logits, (1, 40_000, 128))
    drawn = np.asarray(sampling.sample(many, jnp.asarray(draws), 1.0, jnp.zeros((1, 40_000), jnp.int32))).ravel()
    shares = np.bincount(drawn, minlength=4)[:4] / drawn.size
    np.testing.assert_allclose(shares, [0, 0.6, 0.2, 0.2], atol=0.01)
    allowed = np.asarray(sampling.sample(many, jnp.asarray(draws), 1.0)).ravel()
    assert (allowed == 0).mean() > 0.4


def test_temperature_and_disallow_correct_leave_the_masked_lm_loss_alone():
    rng = np.random.default_rng(3)
    ids = text(rng)
    batch = read_layout(jnp.asarray(ids), jnp.arange(BATCH), IDS)
    architecture, found = Architecture(MODEL, VOCAB), []
    for objective in (ObjectiveConfig(), ObjectiveConfig(temperature=3.0), ObjectiveConfig(disallow_correct=True)):
        draws = randomness(jax.random.key(1), batch.index, dropout=False)
        masked = masking.choose(draws.masking, batch, IDS, objective)
        config = dataclasses.replace(FIXED, objective=objective)
        terms = replaced_token_detection(architecture.merge(start(FIXED).params), Example(batch, masked, draws), config)
        found.append((float(terms.losses["masked_lm_loss"].total), np.asarray(terms.sampled_ids), masked))
    assert found[0][0] == found[1][0] == found[2][0]
    assert not np.array_equal(found[0][1], found[1][1])
    labels = np.take_along_axis(ids, np.asarray(found[2][2].positions), 1)
    assert (found[2][1] != labels).all()


def test_uniform_replacements():
    """Any token is as likely, and the masked-LM loss is that of guessing."""
    config = dataclasses.replace(FIXED, model=dataclasses.replace(MODEL, towers="uniform_generator"))
    architecture = Architecture(config.model, VOCAB)
    assert "generator" not in architecture.shapes
    model = architecture.merge(architecture.init(jax.random.key(0)))
    ids = np.tile(text(np.random.default_rng(4)), (100, 1))
    batch = read_layout(jnp.asarray(ids), jnp.arange(len(ids)), IDS)
    draws = randomness(jax.random.key(2), batch.index, dropout=False)
    masked = masking.choose(draws.masking, batch, IDS, config.objective)
    terms = jax.jit(lambda e: replaced_token_detection(model, e, config))(Example(batch, masked, draws))
    used = np.asarray(masked.weights) > 0
    counts = np.bincount(np.asarray(terms.sampled_ids)[used], minlength=VOCAB)
    assert len(counts) == VOCAB
    assert (np.abs(counts - used.sum() / VOCAB) < 6 * np.sqrt(used.sum() / VOCAB)).all()
    loss = terms.losses["masked_lm_loss"]
    np.testing.assert_allclose(loss.total / loss.weight, np.log(VOCAB), rtol=1e-5)


@pytest.mark.parametrize("towers", ["tied", "masked_lm", "uniform_generator"])
def test_variants_train_all_they_have(towers):
    config = dataclasses.replace(FIXED, model=dataclasses.replace(MODEL, towers=towers))
    state, rng = start(config), np.random.default_rng(5)
    groups = {"tied": 3, "masked_lm": 3, "uniform_generator": 2}
    assert len(state.params) == groups[towers]
    assert ("head" in state.params["discriminator"]) == (towers != "masked_lm")
    assert "encoder" not in state.params.get("generator", {})
    ids = text(rng)
    given = [jnp.asarray(x) for x in draws(rng, ids)]
    batch = read_layout(jnp.asarray(ids), jnp.arange(BATCH), IDS)
    step = jax.jit(functools.partial(replay, config))
    first, losses_seen = state, []
    for _ in range(10):
        state, metrics = step(state, batch, *given)
        losses_seen.append(float(metrics["loss"]))
    assert losses_seen[-1] < losses_seen[1]
    assert ("disc_loss" in metrics) == (towers != "masked_lm")
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), first.params, state.params)
    assert all(jax.tree.leaves(moved))


@pytest.mark.parametrize("padding", ["left_out", "counted"])
def test_padding_in_the_references_auc(padding):
    """Padding counted as certainly original makes the figure better, by as much as scikit-learn says."""
    metrics = pytest.importorskip("sklearn.metrics")
    config = dataclasses.replace(FIXED, evaluation=EvaluationConfig(disc_auc_padding=padding))
    model = Architecture(config.model, VOCAB).merge(start(config).params)
    ids = text(np.random.default_rng(6), 64)
    batch = read_layout(jnp.asarray(ids), jnp.arange(len(ids)), IDS)
    draws = randomness(jax.random.key(2), batch.index, dropout=False)
    masked = masking.choose(draws.masking, batch, IDS, config.objective)
    terms = jax.jit(lambda e: replaced_token_detection(model, e, config))(Example(batch, masked, draws))
    real, is_replaced = ids != IDS.pad, np.asarray(terms.verdicts.corrupted != ids)
    probability = np.where(real, 1 / (1 + np.exp(-np.asarray(terms.verdicts.scores, np.float64))), 0)
    left_out = metrics.roc_auc_score(is_replaced[real], probability[real])
    counted = metrics.roc_auc_score(is_replaced.ravel(), probability.ravel())
    found = area_under_roc(np.asarray(terms.histogram))
    assert abs(found - {"left_out": left_out, "counted": counted}[padding]) < 1e-3
    assert counted > left_out + 0.02


def test_schedules_of_the_reference_and_after_warmup():
    optimizer = OptimizerConfig(learning_rate=1.0, warmup_steps=10)
    config = dataclasses.replace(FIXED, optimizer=optimizer, train=TrainConfig(num_train_steps=100))
    steps = np.arange(101)
    reference = np.asarray(learning_rate(jnp.asarray(steps), config))
    np.testing.assert_allclose(reference, (1 - steps / 100) * np.minimum(1, steps / 10), atol=1e-6)
    assert reference.max() < 0.95  # the peak is never reached
    fixed = dataclasses.replace(config, optimizer=dataclasses.replace(optimizer, schedule="linear_after_warmup"))
    rates = np.asarray(learning_rate(jnp.asarray(steps), fixed))
    np.testing.assert_allclose(rates, np.interp(steps, [0, 10, 100], [0, 1, 0]), atol=1e-6)


@pytest.mark.parametrize(("rule", "top"), [("fixed", 0.8), ("reference", 0.64)])
def test_layerwise_rates(rule, top):
    config = OptimizerConfig(layerwise_decay=0.8, layerwise_rule=rule)
    rates = layer_rates(Architecture(MODEL, VOCAB).shapes, config)
    layers = rates["discriminator"]["encoder"]["layers"]["intermediate"]
    np.testing.assert_allclose(layers["kernel"].ravel(), [top * 0.8, top], rtol=1e-6)
    assert layers["kernel"].shape == (2, 1, 1)
    assert layers["bias"].shape == (2, 1)
    assert rates["discriminator"]["head"]["kernel"] == rates["generator"]["transform"]["kernel"] == 1
    for below in (rates["shared"]["word"], rates["discriminator"]["encoder"]["embeddings_project"]["kernel"]):
        np.testing.assert_allclose(below, top * 0.8**2, rtol=1e-6)
