"""Reads, checks, compares and saves configurations.

The way is one: `ConfigDict` or JSON -> `override` -> `from_dict` (unknown names, types) ->
`validate` (combinations) -> frozen, hashable dataclasses -> `to_dict`, which is saved with every run
and checkpoint.
"""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from electra_jax.config import Config
from electra_jax.config_values import REFUSE, WARN, build, fail, leaves
from electra_jax.errors import UserError


def from_dict(values: Mapping[str, Any]) -> Config:
    """Builds and validates a `Config` from nested mappings; what is absent keeps its default.

    Raises:
      UserError: for an unknown name, a value of the wrong type or a combination that cannot work.
    """
    config = build(Config, values)
    validate(config)
    return config


def to_dict(config: Any) -> dict[str, Any]:
    """The resolved configuration as nested plain values, ready for JSON."""
    return dataclasses.asdict(config)


def check_resume(saved: Config, current: Config, only: tuple[str, ...] = ("",)) -> list[str]:
    """Compares the configuration of a checkpoint with the one it is to be resumed under.

    Args:
      saved, current: the two.
      only: prefixes of the settings that are compared.

    Returns:
      One warning for each changed setting that makes this a different run from the one that was started.

    Raises:
      UserError: names every changed setting that the checkpoint does not allow.
    """
    now = leaves(current)
    changed = [
        (n, old, now[n][0], f.metadata["on_resume"])
        for n, (old, f) in leaves(saved).items()
        if old != now[n][0] and n.startswith(only)
    ]
    refused = [f"{n} was {old!r}, now {new!r}" for n, old, new, rule in changed if rule == REFUSE]
    if refused:
        raise UserError(
            f"cannot resume: {'; '.join(f'config.{r}' for r in refused)}. Put back the old value, or start a new run "
            "in another --workdir"
        )
    return [
        f"config.{n} was {old!r} when this run was saved and is now {new!r}: it is no longer the run that was started"
        for n, old, new, rule in changed
        if rule == WARN
    ]


def validate(config: Config) -> None:
    """Raises a `UserError` of one line for the first value or combination that cannot work."""
    # In this order: later checks divide by values that earlier ones have found to be above 0.
    refuse(config, itertools.chain(
        ranges(config), _pretraining_ranges(config), _data_and_model(config), _sources(config), _training(config)
    ))  # fmt: skip
    sizes = dataclasses.asdict(config.mesh)
    if list(sizes.values()).count(-1) > 1:
        fail("mesh", sizes, "-1 for one axis at the most")


Check = tuple[bool, str, str]  # whether it fits, the field, what would be right


def refuse(config: Any, checks: Iterable[Check]) -> None:
    """Raises `UserError` for the first of `checks` that does not fit."""
    values = {name: value for name, (value, _) in leaves(config).items()}
    for fits, name, expected in checks:
        if not fits:
            fail(name, values[name], expected)


def ranges(config: Any) -> Iterator[Check]:
    """The ranges of single settings, by their names."""
    for name, (value, field) in leaves(config).items():
        if field.name in _POSITIVE:
            yield value > 0, name, "a number above 0"
        if field.name in _NOT_NEGATIVE:
            yield value >= 0, name, "0 or more"
        if field.name in _FRACTIONS:
            yield 0 <= value < 1, name, "a fraction of at least 0 and below 1"
        if name.startswith("mesh."):
            yield value == -1 or value >= 1, name, "a number of devices, or -1 for all that are left"
    yield 0 <= config.seed < 2**31, "seed", "a number from 0 to 2147483647"


def _pretraining_ranges(config: Config) -> Iterator[Check]:
    objective = config.objective
    yield 0 < objective.mask_prob < 1, "objective.mask_prob", "a fraction above 0 and below 1"
    yield 0 <= objective.mask_token_prob <= 1, "objective.mask_token_prob", "a fraction from 0 to 1"
    yield config.optimizer.layerwise_decay <= 1, "optimizer.layerwise_decay", "at most 1"
    yield config.tokenizer.vocab_size >= 64, "tokenizer.vocab_size", "64 or more"


def _data_and_model(config: Config) -> Iterator[Check]:
    data, model = config.data, config.model
    yield bool(data.source.strip(" ,")), "data.source", "files, globs or `embedded`"
    yield data.max_seq_length >= 8, "data.max_seq_length", "8 or more"
    positions = model.max_position_embeddings
    yield data.max_seq_length <= positions, "data.max_seq_length", f"at most model.max_position_embeddings, {positions}"
    fits = data.packing != "two_segments" or model.type_vocab_size >= 2
    yield fits, "model.type_vocab_size", "2 or more with data.packing=two_segments"
    fits = model.hidden_size % model.num_attention_heads == 0
    yield fits, "model.num_attention_heads", f"a divisor of model.hidden_size, {model.hidden_size}"
    generator = model.generator
    if generator:
        width, heads = generator.hidden_size, generator.num_attention_heads
        expected = f"a fraction that makes the generator's width, now {width}, a multiple of its {heads} heads"
        yield width >= 1 and width % heads == 0, "model.generator_hidden_size", expected
    fits = model.tied_embeddings or model.towers == "separate"
    yield fits, "model.tied_embeddings", f"true where model.towers={model.towers}: one tower has nothing to untie"


def _sources(config: Config) -> Iterator[Check]:
    data = config.data
    parts = [part for part in data.source.split(",") if part.strip()]
    fields = [field for field in data.text_field.split(",") if field.strip()]
    of = f"{len(parts)}, for each comma-separated part of data.source"
    yield len(fields) in (1, len(parts)), "data.text_field", f"one name, or {of}"
    named = list(zip(parts, fields * len(parts) if len(fields) == 1 else fields))
    yield (
        len({*named}) == len(named),
        "data.source",
        "different parts; to read one more often, give it a larger weight",
    )
    yield len(data.weights) in (0, len(parts)), "data.weights", f"none, or {of}"
    yield all(weight > 0 for weight in data.weights), "data.weights", "numbers above 0"
    expected = "a similarity of at most 0.95 (data.deduplicate finds those that are equal); 0: none are left out"
    yield data.near_duplicates <= 0.95, "data.near_duplicates", expected
    yield data.shuffle_block % 16 == 0, "data.shuffle_block", "a multiple of 16, the sequences that are stored together"
    lengths, steps = data.curriculum_lengths, data.curriculum_steps
    yield (
        len(lengths) == len(steps),
        "data.curriculum_steps",
        f"one step for each of data.curriculum_lengths, {lengths}",
    )
    yield (
        list(steps) == sorted({step for step in steps if step > 0}),
        "data.curriculum_steps",
        "steps above 0, each later than the one before",
    )
    fits = all(8 <= n < data.max_seq_length for n in lengths)
    yield fits, "data.curriculum_lengths", f"lengths of 8 or more below data.max_seq_length, {data.max_seq_length}"
    yield len({*lengths}) == len(lengths), "data.curriculum_lengths", "different lengths"
    sizes = config.train.curriculum_batch_sizes
    yield len(sizes) in (0, len(lengths)), "train.curriculum_batch_sizes", f"none, or one for each of {lengths}"
    yield all(size > 0 for size in sizes), "train.curriculum_batch_sizes", "numbers above 0"


def _training(config: Config) -> Iterator[Check]:
    objective, optimizer, train = config.objective, config.optimizer, config.train
    interval, probe = config.evaluation.interval_steps, config.probe
    fits = not probe.config or probe.interval_steps % interval == 0
    yield fits, "probe.interval_steps", f"a multiple of evaluation.interval_steps, {interval}"
    fits = not probe.config or config.data.validation_fraction > 0
    yield fits, "data.validation_fraction", "above 0 with a probe, which runs only where held-out figures are computed"
    fits = optimizer.cooldown_steps <= train.num_train_steps
    yield fits, "optimizer.cooldown_steps", f"at most train.num_train_steps, {train.num_train_steps}"
    fits = optimizer.schedule == "wsd" or not optimizer.cooldown_steps
    yield fits, "optimizer.cooldown_steps", "0 unless optimizer.schedule=wsd"
    fits = train.replicas == 1 or "per_replica" in (objective.loss_mean, optimizer.clipping)
    yield fits, "train.replicas", "1 unless objective.loss_mean or optimizer.clipping is per_replica"
    named = [("train.batch_size", train.batch_size)]
    named += [("train.curriculum_batch_sizes", size) for size in train.curriculum_batch_sizes]
    for name, size in named:
        yield size % train.replicas == 0, "train.replicas", f"a divisor of {name}, {size}"
        of = name if train.replicas == 1 else f"{name} / train.replicas"
        share = size // train.replicas
        fits = share % train.gradient_accumulation_steps == 0
        yield fits, "train.gradient_accumulation_steps", f"a divisor of {of}, {share}"


_POSITIVE = {
    "vocab_size", "training_bytes", "embedding_size", "hidden_size", "num_hidden_layers", "num_attention_heads",
    "intermediate_size", "generator_hidden_size", "generator_layers", "max_position_embeddings", "type_vocab_size",
    "initializer_range", "layer_norm_eps", "temperature", "learning_rate", "eps", "clip_norm", "batch_size",
    "num_train_steps", "gradient_accumulation_steps", "replicas", "interval_steps",
    "layerwise_decay", "max_to_keep", "heartbeat_timeout", "join_timeout",
    "shuffle_block", "shuffle_window", "shard_bytes",
}  # fmt: skip
_NOT_NEGATIVE = {
    "gen_weight",
    "disc_weight",
    "warmup_steps",
    "cooldown_steps",
    "weight_decay",
    "max_records",
    "save_interval_minutes",
    "save_interval_steps",
    "keep_period",
    "profile_steps",
    "hang_timeout",
    "near_duplicates",
}
_FRACTIONS = {
    "validation_fraction",
    "max_broken_fraction",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "beta1",
    "beta2",
}
