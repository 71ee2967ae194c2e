"""The configuration: every setting with its default, its meaning and what it may become on resume.

A file in `configs/` names what its recipe sets; everything else comes from the defaults here. The way is
one: `ConfigDict` -> `from_dict` (types, unknown names) -> `validate` (combinations) -> frozen, hashable
dataclasses -> `to_dict`, which is saved with every run and checkpoint. What needs devices (the mesh) is
checked when the mesh is made.
"""

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal

from electra_jax.errors import UserError

# What a changed setting means for a run that is resumed.
FREE = "free"  # no effect on the numbers, or only on how they are computed
WARN = "warn"  # allowed, but the run is no longer the one that was started
REFUSE = "refuse"  # the checkpoint or the data would no longer fit


def setting(default: Any, doc: str, on_resume: str) -> Any:
    """A dataclass field with its one-line documentation and its rule for resumed runs."""
    return dataclasses.field(default=default, metadata={"doc": doc, "on_resume": on_resume})


@dataclasses.dataclass(frozen=True)
class DataConfig:
    source: str = setting("embedded", "files or globs, comma-separated (.txt, .jsonl; also .gz, .xz, .zst), or `embedded`", REFUSE)
    text_field: str = setting("text", "the field of a JSON line that holds the text", REFUSE)
    document_separator: Literal["blank_line", "line"] = setting("blank_line", "what ends a document in plain text: a blank line, or each line", REFUSE)
    max_seq_length: int = setting(128, "tokens in a record, [CLS] and [SEP] included", REFUSE)
    packing: Literal["packed", "two_segments"] = setting("packed", "`packed`: whole text, documents isolated; `two_segments`: the reference's padded pairs", REFUSE)
    validation_fraction: float = setting(0.01, "share of the documents held out, chosen by hash of the text", REFUSE)
    directory: str = setting("datasets", "where prepared data sets and trained tokenizers are kept", FREE)


@dataclasses.dataclass(frozen=True)
class TokenizerConfig:
    kind: Literal["wordpiece", "unigram", "bpe"] = setting("wordpiece", "WordPiece, or SentencePiece unigram or BPE", REFUSE)
    vocab_size: int = setting(30522, "size of a vocabulary that is trained", REFUSE)
    vocab_file: str = setting("", "an existing vocab.txt (WordPiece) or .model (SentencePiece) instead of training one", REFUSE)
    lowercase: bool = setting(True, "lower-case the text", REFUSE)
    strip_accents: bool | None = setting(None, "strip accents (WordPiece); None: when lower-casing, as BERT does", REFUSE)
    training_bytes: int = setting(200_000_000, "bytes of text, sampled over all files, that a vocabulary is trained on", REFUSE)


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
    """One tower's sizes, derived from `ModelConfig`; not set by hand."""

    embedding_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    hidden_dropout_prob: float
    attention_probs_dropout_prob: float
    initializer_range: float
    layer_norm_eps: float
    dtype: str
    remat: str


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    embedding_size: int = setting(128, "width of the embedding tables both towers share", REFUSE)
    hidden_size: int = setting(256, "width of the discriminator", REFUSE)
    num_hidden_layers: int = setting(12, "layers of the discriminator", REFUSE)
    num_attention_heads: int = setting(4, "attention heads of the discriminator", REFUSE)
    intermediate_size: int = setting(1024, "width of its feed-forward layers", REFUSE)
    generator_hidden_size: float = setting(0.25, "the generator's width, feed-forward and heads as a fraction of the discriminator's", REFUSE)
    generator_layers: float = setting(1.0, "the generator's layers as a fraction of the discriminator's", REFUSE)
    max_position_embeddings: int = setting(512, "rows of the position table", REFUSE)
    type_vocab_size: int = setting(2, "rows of the token-type table", REFUSE)
    hidden_dropout_prob: float = setting(0.1, "dropout on embeddings and on each sub-layer's output", WARN)
    attention_probs_dropout_prob: float = setting(0.1, "dropout on attention weights", WARN)
    initializer_range: float = setting(0.02, "standard deviation of the truncated normal", REFUSE)
    layer_norm_eps: float = setting(1e-12, "added to the variance in LayerNorm", REFUSE)
    dtype: Literal["float32", "bfloat16"] = setting("float32", "of the computation; parameters are always float32", WARN)
    remat: Literal["none", "dots", "full"] = setting("none", "what the backward pass computes again in each layer: nothing, all but matrix products, all", FREE)

    @property
    def discriminator(self) -> EncoderConfig:
        return self._tower(self.hidden_size, self.num_hidden_layers, self.num_attention_heads, self.intermediate_size)

    @property
    def generator(self) -> EncoderConfig:
        # Rounded, not truncated: a third of 768 given as 0.33333 must be 256.
        hidden = round(self.generator_hidden_size * self.hidden_size)
        return self._tower(
            hidden,
            max(1, round(self.generator_layers * self.num_hidden_layers)),
            max(1, hidden * self.num_attention_heads // self.hidden_size),
            round(self.generator_hidden_size * self.intermediate_size),
        )

    def _tower(self, hidden: int, layers: int, heads: int, intermediate: int) -> EncoderConfig:
        return EncoderConfig(
            embedding_size=self.embedding_size, hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads,
            intermediate_size=intermediate, hidden_dropout_prob=self.hidden_dropout_prob,
            attention_probs_dropout_prob=self.attention_probs_dropout_prob, initializer_range=self.initializer_range,
            layer_norm_eps=self.layer_norm_eps, dtype=self.dtype, remat=self.remat,
        )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig:
    mask_prob: float = setting(0.15, "share of the real tokens that is predicted", WARN)
    mask_token_prob: float = setting(0.85, "share of those that the generator sees as [MASK]; the rest it sees unchanged", WARN)
    gen_weight: float = setting(1.0, "weight of the generator's masked-LM loss", WARN)
    disc_weight: float = setting(50.0, "weight of the discriminator's loss", WARN)
    temperature: float = setting(1.0, "of the softmax that replacements are sampled from", WARN)

    def max_predictions(self, length: int) -> int:
        """Slots for masked positions in a sequence of `length` tokens (the reference's formula)."""
        return max(1, int((self.mask_prob + 0.005) * length))


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    learning_rate: float = setting(5e-4, "the peak", WARN)
    schedule: Literal["linear", "cosine", "wsd"] = setting("linear", "linear decay (the reference's), cosine, or warm-up-stable-decay", WARN)
    warmup_steps: int = setting(10_000, "steps of linear warm-up", WARN)
    cooldown_steps: int = setting(0, "`wsd`: steps of linear decay to zero at the end of the run", WARN)
    beta1: float = setting(0.9, "of Adam", WARN)
    beta2: float = setting(0.999, "of Adam", WARN)
    eps: float = setting(1e-6, "of Adam", WARN)
    weight_decay: float = setting(0.01, "decoupled; not on biases and LayerNorm", WARN)
    clip_norm: float = setting(1.0, "global norm that gradients are clipped to", WARN)


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    batch_size: int = setting(128, "sequences a step, over all devices", WARN)
    num_train_steps: int = setting(1_000_000, "where the run and its schedule end", WARN)
    gradient_accumulation_steps: int = setting(1, "parts a batch is computed in; does not change the numbers beyond rounding", FREE)
    skip_steps: tuple[int, ...] = setting((), "steps whose update is left out, to pass a batch that gave NaN", FREE)


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    interval_steps: int = setting(10_000, "steps between evaluations on held-out records; also at the end", FREE)
    batch_size: int = setting(128, "sequences a batch; does not change the figures", FREE)
    max_records: int = setting(10_000, "held-out records used; 0: all", FREE)


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    save_interval_steps: int = setting(1000, "steps between checkpoints; also at the end and on Ctrl-C", FREE)
    max_to_keep: int = setting(3, "newest checkpoints that are kept", FREE)
    keep_period: int = setting(0, "checkpoints at multiples of this step are kept for good; 0: none", FREE)


@dataclasses.dataclass(frozen=True)
class ReportingConfig:
    interval_steps: int = setting(100, "steps between reports", FREE)


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    data: int = setting(-1, "devices along the data axis; -1: all that the other axes leave", FREE)
    fsdp: int = setting(1, "devices that share parameters and optimizer state as well as the batch", FREE)
    tensor: int = setting(1, "devices that share heads, feed-forward and vocabulary", FREE)


@dataclasses.dataclass(frozen=True)
class Config:
    seed: int = setting(0, "of initial weights, data order, masks, samples and dropout", REFUSE)
    data: DataConfig = DataConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    model: ModelConfig = ModelConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    train: TrainConfig = TrainConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    reporting: ReportingConfig = ReportingConfig()
    mesh: MeshConfig = MeshConfig()


def from_dict(values: Mapping[str, Any]) -> Config:
    """Builds and validates a `Config` from nested mappings; what is absent keeps its default.

    Raises:
      UserError: for an unknown name, a value of the wrong type or a combination that cannot work.
    """
    config = _build(Config, values, "")
    validate(config)
    return config


def to_dict(config: Config) -> dict[str, Any]:
    """The resolved configuration as nested plain values, ready for JSON."""
    return dataclasses.asdict(config)


def override(values: Mapping[str, Any], name: str, text: str) -> dict[str, Any]:
    """`values` with the dotted field `name` set to what `text` spells, read by the field's type."""
    section, *path = Config, *name.split(".")
    for part in path[:-1]:
        section = _field_type(section, part, name)
        if not dataclasses.is_dataclass(section):
            raise UserError(f"config.{name} does not exist: config.{name.rpartition('.')[0]} is a value, not a section")
    kind = _field_type(section, path[-1], name)
    if dataclasses.is_dataclass(kind):
        raise UserError(f"config.{name}={text} sets a whole section; set one of its fields: {', '.join(_names(kind))}")
    return _set(values, path, _parse(text, kind, name))


def leaves(config: Config) -> dict[str, tuple[Any, dataclasses.Field]]:
    """Every setting by its dotted name: (value, dataclass field)."""
    found = {}

    def visit(section, prefix):
        for field in dataclasses.fields(section):
            value = getattr(section, field.name)
            if dataclasses.is_dataclass(value):
                visit(value, f"{prefix}{field.name}.")
            else:
                found[prefix + field.name] = (value, field)

    visit(config, "")
    return found


def check_resume(saved: Config, current: Config) -> list[str]:
    """Compares the configuration of a checkpoint with the one it is to be resumed under.

    Returns:
      One warning a changed setting that makes the run another one than was started.

    Raises:
      UserError: names every changed setting that the checkpoint does not allow.
    """
    now = leaves(current)
    changed = [(n, old, now[n][0], f.metadata["on_resume"]) for n, (old, f) in leaves(saved).items() if old != now[n][0]]
    refused = [f"{n} was {old!r}, now {new!r}" for n, old, new, rule in changed if rule == REFUSE]
    if refused:
        raise UserError(
            f"cannot resume: {'; '.join(f'config.{r}' for r in refused)}. Put back the old value, or start a new run "
            "in another --workdir"
        )
    return [f"config.{n} was {old!r} when this run was saved and is now {new!r}" for n, old, new, rule in changed if rule == WARN]


def validate(config: Config) -> None:
    """Refuses combinations that cannot work, one line each; raises `UserError`."""
    data, model, objective, optimizer, train = config.data, config.model, config.objective, config.optimizer, config.train
    for name, (value, field) in leaves(config).items():
        if field.name in _POSITIVE and value <= 0:
            _fail(name, value, "a number above 0")
        if field.name in _NOT_NEGATIVE and value < 0:
            _fail(name, value, "0 or more")
        if field.name in _FRACTIONS and not 0 <= value < 1:
            _fail(name, value, "a fraction of at least 0 and below 1")
    if not 0 <= config.seed < 2**31:
        _fail("seed", config.seed, "a number from 0 to 2147483647")
    if not data.source.strip(" ,"):
        _fail("data.source", data.source, "files, globs or `embedded`")
    if data.max_seq_length < 8:
        _fail("data.max_seq_length", data.max_seq_length, "8 or more")
    if data.max_seq_length > model.max_position_embeddings:
        _fail("data.max_seq_length", data.max_seq_length, f"at most model.max_position_embeddings, {model.max_position_embeddings}")
    if data.packing == "two_segments" and model.type_vocab_size < 2:
        _fail("model.type_vocab_size", model.type_vocab_size, "2 or more with data.packing=two_segments")
    if config.tokenizer.vocab_size < 64:
        _fail("tokenizer.vocab_size", config.tokenizer.vocab_size, "64 or more")
    if model.hidden_size % model.num_attention_heads:
        _fail("model.num_attention_heads", model.num_attention_heads, f"a divisor of model.hidden_size, {model.hidden_size}")
    if model.generator.hidden_size < 1 or model.generator.hidden_size % model.generator.num_attention_heads:
        heads = model.generator.num_attention_heads
        _fail("model.generator_hidden_size", model.generator_hidden_size, f"a fraction that makes the generator's width, now {model.generator.hidden_size}, a multiple of its {heads} heads")
    if not 0 < objective.mask_prob < 1:
        _fail("objective.mask_prob", objective.mask_prob, "a fraction above 0 and below 1")
    if not 0 <= objective.mask_token_prob <= 1:
        _fail("objective.mask_token_prob", objective.mask_token_prob, "a fraction from 0 to 1")
    if optimizer.cooldown_steps > train.num_train_steps:
        _fail("optimizer.cooldown_steps", optimizer.cooldown_steps, f"at most train.num_train_steps, {train.num_train_steps}")
    if optimizer.schedule != "wsd" and optimizer.cooldown_steps:
        _fail("optimizer.cooldown_steps", optimizer.cooldown_steps, "0 unless optimizer.schedule=wsd")
    if train.batch_size % train.gradient_accumulation_steps:
        _fail("train.gradient_accumulation_steps", train.gradient_accumulation_steps, f"a divisor of train.batch_size, {train.batch_size}")
    sizes = dataclasses.asdict(config.mesh)
    for axis, size in sizes.items():
        if size != -1 and size < 1:
            _fail(f"mesh.{axis}", size, "a number of devices, or -1 for all that are left")
    if list(sizes.values()).count(-1) > 1:
        _fail("mesh", sizes, "-1 for one axis at the most")


_POSITIVE = {
    "vocab_size", "training_bytes", "embedding_size", "hidden_size", "num_hidden_layers", "num_attention_heads",
    "intermediate_size", "generator_hidden_size", "generator_layers", "max_position_embeddings", "type_vocab_size",
    "initializer_range", "layer_norm_eps", "temperature", "learning_rate", "eps", "clip_norm", "batch_size",
    "num_train_steps", "gradient_accumulation_steps", "interval_steps", "save_interval_steps", "max_to_keep",
}  # fmt: skip
_NOT_NEGATIVE = {"gen_weight", "disc_weight", "warmup_steps", "cooldown_steps", "weight_decay", "max_records", "keep_period"}
_FRACTIONS = {"validation_fraction", "hidden_dropout_prob", "attention_probs_dropout_prob", "beta1", "beta2"}


def _fail(name: str, value: Any, expected: str) -> typing.NoReturn:
    raise UserError(f"config.{name}={value!r} cannot work: it must be {expected}")


def _names(section: type) -> list[str]:
    return [field.name for field in dataclasses.fields(section)]


def _field_type(section: type, part: str, full_name: str) -> Any:
    hints = typing.get_type_hints(section)
    if part not in hints:
        close = difflib.get_close_matches(part, hints, n=1)
        prefix = full_name[: full_name.rfind(part)]
        known = f"did you mean config.{prefix}{close[0]}?" if close else f"known here: {', '.join(hints)}"
        raise UserError(f"config.{full_name} does not exist; {known}")
    return hints[part]


def _build(section: type, values: Any, prefix: str) -> Any:
    if not isinstance(values, Mapping):
        raise UserError(f"config.{prefix.rstrip('.')}={values!r} is a value; it must be a section with {', '.join(_names(section))}")
    fields = {}
    for name, value in values.items():
        kind = _field_type(section, name, prefix + name)
        is_section = dataclasses.is_dataclass(kind)
        fields[name] = _build(kind, value, f"{prefix}{name}.") if is_section else _typed(value, kind, prefix + name)
    return section(**fields)


def _typed(value: Any, kind: Any, name: str) -> Any:
    """`value` as the annotated type, or a `UserError`; an int is a float, nothing else is converted."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        if value not in args:
            _fail(name, value, f"one of {', '.join(args)}")
        return value
    if origin is types.UnionType:
        return None if value is None else _typed(value, args[0], name)
    if origin is tuple:
        if not isinstance(value, (tuple, list)):
            _fail(name, value, f"a tuple of {args[0].__name__}")
        return tuple(_typed(item, args[0], name) for item in value)
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        _fail(name, value, f"of type {kind.__name__}, not {type(value).__name__}")
    return value


def _parse(text: str, kind: Any, name: str) -> Any:
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is types.UnionType:
        return None if text == "None" else _parse(text, args[0], name)
    if origin is tuple:
        return tuple(_parse(part, args[0], name) for part in text.strip("()[] ").split(",") if part.strip())
    if kind is bool:
        if text.lower() not in ("true", "false"):
            _fail(name, text, "true or false")
        return text.lower() == "true"
    if kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            _fail(name, text, f"of type {kind.__name__}")
    return text


def _set(values: Mapping[str, Any], path: list[str], value: Any) -> dict[str, Any]:
    result = dict(values)
    result[path[0]] = _set(result.get(path[0], {}), path[1:], value) if len(path) > 1 else value
    return result
