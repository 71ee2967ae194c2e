"""The way from a configuration file to a validated configuration."""

import dataclasses
import json

import pytest

from conftest import ROOT, small_config
from electra_jax import cli, config_loading, config_values
from electra_jax import config as config_lib
from electra_jax.errors import UserError
from electra_jax.tasks.config import FinetuneConfig

CONFIGS = sorted((ROOT / "configs").glob("*.py"))

# Field, value, and what the message must name: the field, the value, what would be right.
BAD = [
    ("model.num_attention_heads", "3", ["model.num_attention_heads=3", "divisor of model.hidden_size, 256"]),
    ("data.max_seq_length", "1024", ["data.max_seq_length=1024", "at most model.max_position_embeddings, 512"]),
    ("data.max_seq_length", "4", ["data.max_seq_length=4", "8 or more"]),
    ("objective.mask_prob", "0", ["objective.mask_prob=0.0", "above 0 and below 1"]),
    ("objective.mask_prob", "1.0", ["objective.mask_prob=1.0", "above 0 and below 1"]),
    ("objective.mask_token_prob", "1.5", ["objective.mask_token_prob=1.5"]),
    ("model.dtype", "float8", ["model.dtype='float8'", "float32, bfloat16"]),
    ("model.remat", "some", ["model.remat='some'", "auto, none, dots, full"]),
    ("model.hidden_size", "256.5", ["model.hidden_size='256.5'", "int"]),
    ("model.hidden_sizes", "256", ["model.hidden_sizes does not exist", "model.hidden_size?"]),
    ("modell.hidden_size", "256", ["modell.hidden_size does not exist", "did you mean config.model"]),
    ("model", "small", ["config.model=small", "hidden_size"]),
    ("seed.value", "3", ["seed.value does not exist"]),
    ("train.batch_size", "0", ["train.batch_size=0", "above 0"]),
    ("train.batch_size", "ten", ["train.batch_size='ten'", "int"]),
    (
        "train.gradient_accumulation_steps",
        "3",
        ["train.gradient_accumulation_steps=3", "divisor of train.batch_size, 128"],
    ),
    ("optimizer.schedule", "step", ["optimizer.schedule='step'", "linear, linear_after_warmup, cosine, wsd"]),
    ("optimizer.cooldown_steps", "100", ["optimizer.cooldown_steps=100", "wsd"]),
    ("optimizer.beta2", "1.0", ["optimizer.beta2=1.0"]),
    ("model.hidden_dropout_prob", "-0.1", ["model.hidden_dropout_prob=-0.1"]),
    ("tokenizer.lowercase", "yes", ["tokenizer.lowercase='yes'", "true or false"]),
    ("mesh.data", "0", ["mesh.data=0", "-1"]),
    ("mesh.fsdp", "-1", ["-1 for one axis"]),
    ("seed", "-1", ["seed=-1"]),
    ("tokenizer.vocab_size", "63", ["tokenizer.vocab_size=63", "64"]),
    ("model.type_vocab_size", "1", ["model.type_vocab_size=1", "two_segments"], ("data.packing", "two_segments")),
    ("model.tied_embeddings", "false", ["model.tied_embeddings=False", "model.towers=tied"], ("model.towers", "tied")),
    ("data.text_field", "a,b", ["data.text_field", "1, for each comma-separated part"]),
    ("data.weights", "1,2", ["data.weights=(1.0, 2.0)", "1, for each comma-separated part"]),
    ("data.weights", "-1", ["data.weights=(-1.0,)", "above 0"]),
    ("data.near_duplicates", "0.96", ["data.near_duplicates=0.96", "at most 0.95"]),
    ("data.shuffle_block", "24", ["data.shuffle_block=24", "multiple of 16"]),
    ("data.validation_fraction", "0", ["data.validation_fraction=0.0", "probe"], ("probe.config", "probe.py")),
    ("optimizer.cooldown_steps", "1_000_001", ["cooldown_steps=1000001", "at most"], ("optimizer.schedule", "wsd")),
    ("optimizer.layerwise_decay", "1.1", ["optimizer.layerwise_decay=1.1"]),
    ("train.replicas", "2", ["train.replicas=2", "per_replica"]),
    (
        "train.replicas",
        "3",
        ["train.replicas=3", "divisor of train.batch_size, 128"],
        ("objective.loss_mean", "per_replica"),
    ),
    ("optimizer.learning_rate", "nan", ["optimizer.learning_rate=nan", "finite"]),
    ("model.generator_layers", "inf", ["model.generator_layers=inf", "finite"]),
    ("train.skip_steps", "3,x", ["train.skip_steps='x'", "int"]),
]


@pytest.mark.parametrize(("name", "text", "parts", "others"), [(*row[:3], row[3:]) for row in BAD])
def test_bad_values_are_refused_by_name(name, text, parts, others):
    """`others` are settings with which the value is invalid."""
    with pytest.raises(UserError) as caught:
        cli.load_config(str(ROOT / "configs/small.py"), [(name, text), *others])
    message = str(caught.value)
    assert "\n" not in message
    if others:
        cli.load_config(str(ROOT / "configs/small.py"), others)
    for part in parts:
        assert part in message


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configs_are_valid(path):
    config = cli.load_config(str(path), [])
    assert config_loading.from_dict(json.loads(json.dumps(config_loading.to_dict(config)))) == config
    hash(config)


def test_shipped_configs_have_the_papers_numbers():
    rows = {  # Clark et al., 2020, table 6: layers, hidden, feed-forward, heads, embedding, generator's width and heads
        "small": (12, 256, 1024, 4, 128, 64, 1, 0.15, 5e-4, 128, 1_000_000, 128),
        "small_plus_plus": (12, 256, 1024, 4, 128, 256, 4, 0.15, 5e-4, 128, 4_000_000, 512),
        "base": (12, 768, 3072, 12, 768, 256, 4, 0.15, 2e-4, 256, 766_000, 512),
        "large": (24, 1024, 4096, 16, 1024, 256, 4, 0.25, 2e-4, 2048, 400_000, 512),
    }
    for name, row in rows.items():
        c = cli.load_config(str(ROOT / f"configs/{name}.py"), [])
        d, g = c.model.discriminator, c.model.generator
        assert row == (
            d.num_hidden_layers, d.hidden_size, d.intermediate_size, d.num_attention_heads, d.embedding_size,
            g.hidden_size, g.num_attention_heads, c.objective.mask_prob, c.optimizer.learning_rate,
            c.train.batch_size, c.train.num_train_steps, c.data.max_seq_length,
        )  # fmt: skip
        assert g.intermediate_size == 4 * g.hidden_size
        assert g.num_hidden_layers == d.num_hidden_layers
        assert (c.objective.gen_weight, c.objective.disc_weight, c.optimizer.warmup_steps) == (1, 50, 10_000)
        assert (c.optimizer.weight_decay, c.optimizer.eps, c.optimizer.schedule) == (0.01, 1e-6, "linear")


def test_checks_by_name_are_of_fields():
    names = {
        name.rpartition(".")[2]
        for config in (config_lib.Config(), FinetuneConfig())
        for name in config_values.leaves(config)
    }
    for of in (config_loading._POSITIVE, config_loading._NOT_NEGATIVE, config_loading._FRACTIONS):
        assert of <= names


def test_a_third_of_the_width_is_rounded():
    """0.33333 of 768 is 256, not 255 (google-research/electra rounds)."""
    config = cli.load_config(str(ROOT / "configs/base.py"), [("model.generator_hidden_size", "0.33333")])
    assert config.model.generator.hidden_size == 256
    assert config.model.generator.intermediate_size == 1024


def test_overrides_of_every_type():
    overrides = [
        ("train.num_train_steps", "1_000"), ("optimizer.learning_rate", "1e-4"), ("tokenizer.strip_accents", "false"),
        ("data.source", "a b.txt"), ("train.skip_steps", "3, 5"), ("objective.disc_weight", "25"), ("seed", "7"),
    ]  # fmt: skip
    config = cli.load_config(str(ROOT / "configs/small.py"), overrides)
    assert config.train.num_train_steps == 1000
    assert config.optimizer.learning_rate == 1e-4
    assert config.tokenizer.strip_accents is False
    assert config.data.source == "a b.txt"
    assert config.train.skip_steps == (3, 5)
    finetuning = str(ROOT / "configs/finetune/jsonl.py")
    for text, labels in {"('a b', \"c\")": ("a b", "c"), "a b,c": ("a b", "c"), "',''": ("'", "''")}.items():
        assert cli.load_finetune_config(finetuning, [("task.path", "x"), ("task.labels", text)]).task.labels == labels
    assert config.objective.disc_weight == 25.0
    assert config.seed == 7
    assert (
        cli.load_config(str(ROOT / "configs/small.py"), [("tokenizer.strip_accents", "None")]).tokenizer.strip_accents
        is None
    )


def test_a_wrong_type_in_a_config_file_is_refused():
    with pytest.raises(UserError, match=r"config\.train\.batch_size='8'.*int.*str"):
        config_loading.from_dict({"train": {"batch_size": "8"}})
    with pytest.raises(UserError, match=r"config\.train=3 is a value"):
        config_loading.from_dict({"train": 3})
    with pytest.raises(UserError, match=r"config\.tokenizer\.lowercase=1"):
        config_loading.from_dict({"tokenizer": {"lowercase": 1}})


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("x = 1", "no function get_config"),
        ("def get_config(): return {}", "ml_collections.ConfigDict"),
        ("import nothing_of_this_name", "ModuleNotFoundError"),
        ("def get_config(:", "SyntaxError"),
        ("def get_config(): return 1 / 0", "ZeroDivisionError"),
    ],
)
def test_broken_config_files(tmp_path, text, part):
    (tmp_path / "c.py").write_text(text)
    with pytest.raises(UserError, match=part):
        cli.load_config(str(tmp_path / "c.py"), [])
    with pytest.raises(UserError, match="no such file"):
        cli.load_config(str(tmp_path / "absent.py"), [])


def test_unknown_generator_width_is_refused():
    with pytest.raises(UserError, match=r"generator_hidden_size=0.3.*multiple of its"):
        small_config(model={"hidden_size": 64, "num_attention_heads": 8, "generator_hidden_size": 0.3})


def test_resume_rules_cover_every_field():
    for name, (_, field) in config_values.leaves(config_lib.Config()).items():
        assert field.metadata["on_resume"] in (config_lib.FREE, config_lib.WARN, config_lib.REFUSE), name
        assert field.metadata["doc"], name


def test_resume_rules():
    saved = small_config()
    free = small_config(reporting={"interval_steps": 7}, checkpoint={"save_interval_steps": 3}, mesh={"fsdp": 2})
    assert config_loading.check_resume(saved, free) == []
    warned = small_config(optimizer={"learning_rate": 1e-4}, train={"num_train_steps": 30, "batch_size": 16})
    warnings = config_loading.check_resume(saved, warned)
    assert len(warnings) == 3
    assert any("optimizer.learning_rate was 0.001" in w and "0.0001" in w for w in warnings)
    for name, changed in {
        "model.hidden_size": small_config(model={"hidden_size": 64}),
        "tokenizer.vocab_size": small_config(tokenizer={"vocab_size": 600}),
        "data.max_seq_length": small_config(data={"max_seq_length": 16}),
        "data.source": small_config(data={"source": "other.txt"}),
        "seed": small_config(seed=1),
    }.items():
        with pytest.raises(UserError, match=f"config.{name} was"):
            config_loading.check_resume(saved, changed)


def test_config_is_immutable():
    with pytest.raises(dataclasses.FrozenInstanceError):
        small_config().seed = 3


def test_configs_use_ml_collections_only():
    for path in CONFIGS:
        imports = [line for line in path.read_text().splitlines() if line.startswith(("import", "from"))]
        assert imports == ["import ml_collections"], path


@pytest.mark.parametrize(
    ("path", "parts"),
    [
        ("a/b.py", ("a/b.py", "")),
        ("a/b.py:x", ("a/b.py", "x")),
        ("b.py:x,y", ("b.py", "x,y")),
        ("a:b/c.py", ("a:b/c.py", "")),
    ],
)
def test_the_word_behind_a_file(path, parts):
    assert cli.split_word(path) == parts
