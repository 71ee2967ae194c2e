"""The towers, against plain NumPy and against themselves run another way."""

import dataclasses
import math
import operator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from electra_jax.config import ModelConfig
from electra_jax.models.attention import attention
from electra_jax.models.electra import Architecture, by_name
from electra_jax.models.layers import LayerNorm, add, gelu
from electra_jax.models.noise import Noise, dropout
from electra_jax.objectives.layout import TokenIds, read_layout
from electra_jax.training.setup import choose_layers

VOCAB = 90
CONFIG = ModelConfig(
    embedding_size=16, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
    generator_hidden_size=0.5, max_position_embeddings=48, initializer_range=0.3,
)  # fmt: skip
ARCHITECTURE = Architecture(CONFIG, VOCAB)
IDS = TokenIds(0, 2, 3, 4, two_segments=False)


@pytest.fixture(scope="module")
def params():
    made = ARCHITECTURE.init(jax.random.key(0))
    # Biases and LayerNorms away from zero and one, so that leaving one out is seen.
    return jax.tree.map(lambda x: x + 0.1 * jax.random.normal(jax.random.key(x.size), x.shape), made)


def run(params, ids, architecture=ARCHITECTURE, noise=None):
    """Hidden states of the discriminator and both towers' logits, everywhere."""
    batch = read_layout(jnp.asarray(ids), jnp.arange(len(ids)), IDS)
    model = architecture.merge(params)
    everywhere = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
    generated = model.generator_logits(batch.text, everywhere, noise).reshape(*ids.shape, -1)
    hidden = model.discriminator_hidden(batch.text, noise)
    return hidden, model.discriminator.logits(hidden), generated


def erf(x):
    return np.vectorize(math.erf)(x)


def numpy_layer_norm(x, p):
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + CONFIG.layer_norm_eps) * p["scale"] + p["bias"]


def numpy_linear(x, p):
    return x @ p["kernel"] + p["bias"]


def numpy_gelu(x):
    return x * 0.5 * (1 + erf(x / math.sqrt(2)))


def numpy_encoder(x, p, segment_ids, heads):
    """BERT's post-LayerNorm encoder, one head and one example at a time, in float64."""
    size = x.shape[-1] // heads
    for i in range(CONFIG.num_hidden_layers):
        layer = jax.tree.map(operator.itemgetter(i), p)
        q, k, v = (numpy_linear(x, layer["attention"][name]) for name in ("query", "key", "value"))
        mixed = np.zeros_like(x)
        for b in range(len(x)):
            for h in range(heads):
                part = slice(h * size, (h + 1) * size)
                scores = q[b][:, part] @ k[b][:, part].T / math.sqrt(size)
                scores[segment_ids[b][:, None] != segment_ids[b][None]] = -np.inf
                weights = np.exp(scores - scores.max(-1, keepdims=True))
                mixed[b][:, part] = weights / weights.sum(-1, keepdims=True) @ v[b][:, part]
        x = numpy_layer_norm(x + numpy_linear(mixed, layer["attention"]["output"]), layer["attention_norm"])
        inner = numpy_gelu(numpy_linear(x, layer["intermediate"]))
        x = numpy_layer_norm(x + numpy_linear(inner, layer["output"]), layer["output_norm"])
    return x


PACKED = np.asarray([
    [2, 10, 11, 12, 3, 2, 20, 21, 3, 2, 30, 31, 32, 33, 3, 0, 0],
    [2, 40, 41, 42, 43, 44, 45, 46, 47, 48, 49, 50, 51, 52, 53, 54, 3],
])  # fmt: skip


def test_both_towers_equal_plain_numpy(params):
    hidden, scores, logits = run(params, PACKED)
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    batch = read_layout(jnp.asarray(PACKED), jnp.arange(2), IDS)
    segment_ids, positions = np.asarray(batch.segment_ids), np.asarray(batch.position_ids)
    shared, generator, discriminator = p["shared"], p["generator"], p["discriminator"]
    embedded = shared["word"][PACKED] + shared["position"][positions] + shared["token_type"][0]
    embedded = numpy_layer_norm(embedded, shared["norm"])
    x = numpy_encoder(
        numpy_linear(embedded, discriminator["encoder"]["embeddings_project"]),
        discriminator["encoder"]["layers"],
        segment_ids,
        4,
    )
    np.testing.assert_allclose(hidden, x, atol=2e-5)
    expected = numpy_linear(numpy_gelu(numpy_linear(x, discriminator["head"])), discriminator["head_output"])[..., 0]
    np.testing.assert_allclose(scores, expected, atol=1e-4)
    x = numpy_encoder(
        embedded, generator["encoder"]["layers"], segment_ids, 2
    )  # as wide as the embeddings: no projection
    x = numpy_layer_norm(numpy_gelu(numpy_linear(x, generator["transform"])), generator["transform_norm"])
    expected = x @ shared["word"].T + generator["output_bias"]
    np.testing.assert_allclose(logits[..., :VOCAB], expected, atol=2e-4)


def test_packed_equals_one_by_one(params):
    packed = run(params, PACKED)
    for start, end in ((0, 5), (5, 9), (9, 15)):
        alone = run(params, PACKED[:1, start:end])
        for one, whole in zip(alone, packed, strict=True):
            np.testing.assert_allclose(whole[:1, start:end], one, atol=2e-5)


def test_attention_never_crosses_documents(params):
    """By gradient: no output of one document depends on another's input. Within a document it does."""
    batch = read_layout(jnp.asarray(PACKED[:1]), jnp.arange(1), IDS)
    x = jax.random.normal(jax.random.key(1), (1, 17, 16))

    # One output at a time: jax 0.10.2 on a CPU gives wrong results for a vmap over this vjp, and so for jacrev.
    @jax.jit
    def gradient(x, position):
        encoder = ARCHITECTURE.merge(params).discriminator.encoder
        return jax.grad(lambda x: jnp.square(encoder(x, batch.segment_ids, None)[0, position]).sum())(x)

    influence = np.stack([np.abs(gradient(x, i)).sum(axis=(0, 2)) for i in range(17)])  # [to, from]
    segment_ids = np.asarray(batch.segment_ids)[0]
    same = segment_ids[:, None] == segment_ids[None]
    assert (influence[~same] == 0).all()
    assert (influence[same] > 0).all()


def test_padding_has_no_influence(params):
    short = run(params, PACKED[:1, :15])
    long = run(params, np.pad(PACKED[:1], ((0, 0), (0, 8))))
    for one, other in zip(short, long, strict=True):
        np.testing.assert_allclose(other[:, :15], one, atol=2e-5)


def test_padded_vocabulary_is_never_predicted(params):
    _, _, logits = run(params, PACKED)
    assert logits.shape[-1] == 128
    probabilities = jax.nn.softmax(logits, axis=-1)
    assert (np.asarray(probabilities[..., VOCAB:]) == 0).all()
    np.testing.assert_allclose(probabilities[..., :VOCAB].sum(-1), 1, rtol=1e-5)


def test_what_is_computed_again(params):
    """Counts the products in the program: `dots` computes only the attention scores again, `full` all products of a layer."""
    noise = Noise(jax.random.bits(jax.random.key(5), (2, 2)))
    counts = {}
    for remat in ("none", "dots", "full"):
        architecture = Architecture(dataclasses.replace(CONFIG, remat=remat), VOCAB)
        gradient = jax.grad(lambda p: jnp.square(run(p, PACKED, architecture, noise)[1]).sum())  # noqa: B023
        counts[remat] = jax.jit(gradient).lower(params).as_text().count("stablehlo.dot_general")
    layers = CONFIG.num_hidden_layers  # of the discriminator, the one tower that this gradient goes through
    # At most: versions of jax differ in whether layers that are alike share a function of the program.
    assert 0 < counts["dots"] - counts["none"] <= layers
    # Queries, keys, values, scores, mix, output, and both of the feed-forward.
    assert 8 <= counts["full"] - counts["none"] <= 8 * layers


def gradients(architecture, params, seeds):
    """One tree for each seed of dropout."""

    def total(params, noise):  # of both towers' outputs
        return sum(jnp.square(x).sum() for x in run(params, PACKED, architecture, noise)[1:])

    compute = jax.jit(jax.grad(total))
    return [compute(params, Noise(jax.random.bits(jax.random.key(seed), (2, 2)))) for seed in seeds]


def gradient(architecture, params):
    return gradients(architecture, params, [5])[0]


def test_the_way_of_accelerators_gives_the_same_gradients(params, request):
    on_cpu = by_name(gradient(ARCHITECTURE, params))
    request.getfixturevalue("as_on_accelerators")
    elsewhere, others = map(by_name, gradients(ARCHITECTURE, params, (5, 6)))
    for name, leaf in on_cpu.items():
        if "key/bias" not in name:  # nothing but rounding: softmax does not see it
            assert np.abs(elsewhere[name] - leaf).max() < 1e-5 * np.abs(leaf).max(), name
    assert any(np.abs(others[name] - leaf).max() > 0.01 * np.abs(leaf).max() for name, leaf in on_cpu.items())


def test_the_way_of_accelerators_in_bfloat16_is_as_close_to_float32_as_that_of_the_cpu(params, request):
    exact, rounded = ARCHITECTURE, Architecture(dataclasses.replace(CONFIG, dtype="bfloat16"), VOCAB)
    expected, on_cpu = ([*map(by_name, gradients(a, params, (5, 6, 7)))] for a in (exact, rounded))
    request.getfixturevalue("as_on_accelerators")
    elsewhere = [*map(by_name, gradients(rounded, params, (5, 6, 7)))]

    def error(found):  # relative, a mean over parameters and seeds
        return np.mean([
            np.linalg.norm(one[name] - leaf) / np.linalg.norm(leaf)
            for one, other in zip(found, expected, strict=True) for name, leaf in other.items() if "key/bias" not in name
        ])  # fmt: skip

    assert 0 < error(on_cpu) < 0.03
    assert error(elsewhere) < 1.1 * error(on_cpu)


def test_layers_written_out_or_in_a_loop_are_the_same(params):
    loop, written = (
        by_name(gradient(Architecture(dataclasses.replace(CONFIG, unroll=unroll), VOCAB), params))
        for unroll in ("none", "all")
    )
    for name, leaf in loop.items():
        if "key/bias" not in name:
            np.testing.assert_allclose(written[name], leaf, atol=1e-4 * np.abs(leaf).max(), err_msg=name)


@pytest.mark.parametrize("mean", [0.0, 30.0])
def test_layer_norm_against_float64(mean):
    x = np.random.default_rng(0).normal(mean, 1.0, (64, 256)).astype(np.float32)
    with nnx.use_eager_sharding(False):
        norm = LayerNorm(256, 1e-12, "embed", rngs=nnx.Rngs(0))
    exact = x.astype(np.float64) - x.astype(np.float64).mean(-1, keepdims=True)
    exact /= exact.std(-1, keepdims=True)
    np.testing.assert_allclose(norm(jnp.asarray(x)), exact, atol=2e-3 if mean else 2e-6)
    assert np.isfinite(norm(jnp.full((1, 256), 7.3))).all()  # variance 0, which rounding must not make negative


@pytest.mark.parametrize("remat", ["dots", "full"])
def test_rematerialisation_changes_nothing(params, remat):
    plain, other = (Architecture(dataclasses.replace(CONFIG, remat=r), VOCAB) for r in ("none", remat))
    noise = Noise(jax.random.bits(jax.random.key(5), (2, 2)))

    def gradient(architecture):
        return jax.jit(jax.grad(lambda p: jnp.square(run(p, PACKED, architecture, noise)[1]).sum()))

    jaxprs = [str(jax.make_jaxpr(gradient(a))(params)) for a in (plain, other)]
    assert "remat" not in jaxprs[0] and "checkpoint" not in jaxprs[0]
    assert "remat" in jaxprs[1] or "checkpoint" in jaxprs[1]
    for one, two in zip(
        jax.tree.leaves(gradient(plain)(params)), jax.tree.leaves(gradient(other)(params)), strict=True
    ):
        np.testing.assert_allclose(one, two, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("rates", [{"hidden_dropout_prob": 0.5}, {"attention_probs_dropout_prob": 0.5}])
def test_dropout_acts_in_every_layer(params, rates):
    """With one of the two rates at zero, and noise given only to the layers, dropout still changes each layer's output."""
    off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    architecture = Architecture(dataclasses.replace(CONFIG, **{**off, **rates}), VOCAB)
    encoder = architecture.merge(params).discriminator.encoder
    graph, stacked = nnx.split(encoder.layers)
    x, segment_ids = jax.random.normal(jax.random.key(1), (2, 17, 32)), jnp.ones((2, 17), jnp.int32)
    noise = Noise(jax.random.bits(jax.random.key(5), (2, 2)))
    for index in range(CONFIG.num_hidden_layers):
        layer = nnx.merge(graph, jax.tree.map(operator.itemgetter(index), stacked))
        change = layer(x, segment_ids, noise.at(index)) - layer(x, segment_ids, None)
        assert float(jnp.abs(change).max()) > 0.1
    # The encoder is those layers one after the other, each with noise of its own.
    embedded = jax.random.normal(jax.random.key(2), (2, 17, 16))

    def one_by_one(places):
        x = encoder.embeddings_project(embedded)
        for index, place in enumerate(places):
            layer = nnx.merge(graph, jax.tree.map(operator.itemgetter(index), stacked))
            x = layer(x, segment_ids, noise.at(place))
        return x

    found = encoder(embedded, segment_ids, noise)
    np.testing.assert_allclose(found, one_by_one(range(CONFIG.num_hidden_layers)), atol=1e-5)
    assert float(jnp.abs(found - one_by_one([0] * CONFIG.num_hidden_layers)).max()) > 0.1  # the control


def test_the_sublayers_drop_apart(params):
    """Dropout on attention's weights, after attention and after the feed-forward network uses separate draws."""
    config = dataclasses.replace(CONFIG, hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5)
    encoder = Architecture(config, VOCAB).merge(params).discriminator.encoder
    graph, stacked = nnx.split(encoder.layers)
    layer = nnx.merge(graph, jax.tree.map(operator.itemgetter(1), stacked))
    x, segment_ids = jax.random.normal(jax.random.key(1), (2, 17, 32)), jnp.ones((2, 17), jnp.int32)
    noise = Noise(jax.random.bits(jax.random.key(5), (2, 2)))

    def written_out(*places):
        weights, first, second = map(noise.at, places)
        middle = layer.attention_norm(add(x, layer.attention(x, segment_ids, weights), 0.5, first))
        inner = gelu(layer.intermediate(middle))
        return layer.output_norm(add(middle, layer.output(inner, dtype=jnp.float32), 0.5, second))

    found = layer(x, segment_ids, noise)
    np.testing.assert_allclose(found, written_out(0, 1, 2), atol=1e-5)
    assert float(jnp.abs(found - written_out(0, 1, 1)).max()) > 0.1  # the control
    noise = Noise(jax.random.bits(jax.random.key(5), (64, 2)))
    masks = [np.asarray(dropout(jnp.ones((64, 100)), 0.5, noise.at(place))) > 0 for place in range(3)]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert abs((masks[one] == masks[other]).mean() - 0.5) < 0.03


def test_dropout_of_attention_weights():
    projected = jax.random.normal(jax.random.key(0), (3, 4, 16, 2, 8))
    segment_ids = jnp.ones((4, 16), jnp.int32)
    plain = attention(projected, segment_ids, 0.5, None)
    draws = jnp.stack([
        attention(projected, segment_ids, 0.5, Noise(jax.random.bits(jax.random.key(i), (4, 2)))) for i in range(400)
    ])  # fmt: skip
    assert float(jnp.abs(draws[0] - plain).max()) > 0.1
    error = jnp.abs(draws.mean(0) - plain) / (draws.std(0) / 20)
    assert float(error.max()) < 6  # unbiased: the mean over draws is the plain result


def test_initial_values():
    made = Architecture(ModelConfig(), 30522).init(jax.random.key(3))
    assert sum(x.size for x in jax.tree.leaves((made["shared"], made["discriminator"]))) == 13_549_057  # HF's 13.5M
    word = np.asarray(made["shared"]["word"])
    assert abs(word.std() - 0.02 * 0.8796) < 2e-4  # truncated at two standard deviations
    assert np.abs(word).max() <= 0.04
    kernel = np.asarray(made["discriminator"]["encoder"]["layers"]["attention"]["query"]["kernel"])
    assert np.abs(kernel).max() <= 0.04
    assert len({layer.tobytes() for layer in kernel}) == 12
    output = np.asarray(made["discriminator"]["head_output"]["kernel"])
    limit = math.sqrt(6 / (256 + 1))  # Glorot's uniform, TensorFlow's default
    assert 0.9 * limit < np.abs(output).max() <= limit
    zeros = [made["generator"]["output_bias"], made["discriminator"]["head"]["bias"], made["shared"]["norm"]["bias"]]
    assert all((np.asarray(x) == 0).all() for x in zeros)


def test_compute_dtype(params):
    half = Architecture(dataclasses.replace(CONFIG, dtype="bfloat16"), VOCAB)
    hidden, scores, logits = run(params, PACKED, half)
    assert hidden.dtype == jnp.bfloat16
    assert scores.dtype == logits.dtype == jnp.float32
    for one, other in zip(run(params, PACKED), (hidden, scores, logits), strict=True):
        error = jnp.abs(one - other.astype(jnp.float32)).mean() / jnp.abs(one).clip(0, 1e3).mean()
        assert float(error) < 0.05


def test_how_layers_are_laid_out_where_nobody_says():
    @dataclasses.dataclass
    class Device:
        platform: str

    def chosen(platform, **model):
        return choose_layers(dataclasses.replace(CONFIG, **model), Device(platform))

    assert chosen("cpu", num_hidden_layers=4) == ("all", "none")
    assert chosen("cpu", num_hidden_layers=12) == chosen("gpu", num_hidden_layers=12) == ("none", "dots")
    assert chosen("tpu", num_hidden_layers=12) == ("all", "none")
    assert chosen("tpu", num_hidden_layers=24) == ("all", "none")
    assert chosen("tpu", num_hidden_layers=48) == ("none", "dots")
    assert chosen("tpu", num_hidden_layers=12, unroll="none") == ("none", "dots")
    assert chosen("tpu", num_hidden_layers=12, unroll="none", remat="full") == ("none", "full")
