"""The configuration: every setting with its default, its meaning and what it may become on resume.

A file in `configs/` names what its recipe sets; everything else comes from the defaults here. `electra_jax.config_loading`
makes these dataclasses of it. What needs devices (the mesh) is checked when the mesh is made.
"""

import dataclasses
from typing import Literal, NamedTuple

from electra_jax.config_values import FREE, REFUSE, WARN, setting


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Text, and the records made of it."""

    source: str = setting(
        "embedded",
        "what to read, comma-separated, here or in gs://: files and globs (.txt, .jsonl, also .gz, .xz, .zst; .parquet), folders "
        "of Hugging Face's or TFDS data sets, tfds:NAME[@SPLIT], or `embedded`",
        REFUSE,
    )
    text_field: str = setting("text", "field or column of the text; or comma-separated: one a part of source", REFUSE)
    weights: tuple[float, ...] = setting((), "how much of each part of source; none: all, once an epoch", REFUSE)
    weights_are: Literal["epochs", "shares"] = setting(
        "epochs",
        "what weights say: how often a part is read while one of 1 is read once, or its share of the sequences",
        REFUSE,
    )
    document_separator: Literal["blank_line", "line"] = setting(
        "blank_line", "what ends a document in plain text: a blank line, or each line", REFUSE
    )
    max_broken_fraction: float = setting(0.01, "share of broken or empty documents above which preparing stops", FREE)
    deduplicate: bool = setting(False, "leave out documents whose text has come before", REFUSE)
    near_duplicates: float = setting(
        0.0,
        "leave out documents this similar to an earlier one (Jaccard of words in fives; extra `[dedup]`); 0: none",
        REFUSE,
    )
    max_seq_length: int = setting(128, "tokens in a sequence, [CLS] and [SEP] included", REFUSE)
    curriculum_lengths: tuple[int, ...] = setting((), "shorter lengths the run begins with, such as (128,)", REFUSE)
    curriculum_steps: tuple[int, ...] = setting((), "the step at which each of those ends", REFUSE)
    packing: Literal["packed", "two_segments"] = setting(
        "packed", "`packed`: whole text, documents isolated; `two_segments`: the reference's padded pairs", REFUSE
    )
    validation_fraction: float = setting(0.01, "share of the documents held out, chosen by hash of the text", REFUSE)
    shuffle: Literal["full", "blocks"] = setting(
        "full",
        "`full`: any sequence next; `blocks`: blocks of neighbours, read at once, and sequences in a window of them",
        REFUSE,
    )
    shuffle_block: int = setting(256, "`blocks`: sequences in a block", REFUSE)
    shuffle_window: int = setting(64, "`blocks`: blocks that are mixed with each other, held in memory", REFUSE)
    shard_bytes: int = setting(64 * 2**20, "bytes of text that one worker prepares at a time", REFUSE)
    directory: str = setting("datasets", "where prepared data sets and trained tokenizers are kept", FREE)


@dataclasses.dataclass(frozen=True)
class TokenizerConfig:
    """The vocabulary: trained on the text, or given."""

    kind: Literal["wordpiece", "unigram", "bpe"] = setting("wordpiece", "WordPiece, or SentencePiece's", REFUSE)
    vocab_size: int = setting(30522, "size of a vocabulary that is trained", REFUSE)
    vocab_file: str = setting("", "an existing vocab.txt or SentencePiece .model instead of training one", REFUSE)
    lowercase: bool = setting(True, "lower-case the text", REFUSE)
    strip_accents: bool | None = setting(None, "strip accents (WordPiece); None: when lower-casing, as BERT", REFUSE)
    training_bytes: int = setting(50_000_000, "bytes of text to train it on; unigram holds 25 bytes for each", REFUSE)


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
    attention: str
    unroll: str


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Both towers, in Hugging Face's names; the generator is a fraction of the discriminator."""

    towers: Literal["separate", "tied", "uniform_generator", "masked_lm"] = setting(
        "separate",
        "`separate`: a small generator and the discriminator; `tied`: one encoder with both heads; `uniform_generator`: no "
        "generator, replacements are any token; `masked_lm`: one encoder with the generator's head alone (BERT)",
        REFUSE,
    )
    tied_embeddings: bool = setting(
        True, "one set of embeddings for both towers; else the generator has its own, of its own width", REFUSE
    )

    embedding_size: int = setting(128, "width of the embedding tables both towers share", REFUSE)
    hidden_size: int = setting(256, "width of the discriminator", REFUSE)
    num_hidden_layers: int = setting(12, "layers of the discriminator", REFUSE)
    num_attention_heads: int = setting(4, "attention heads of the discriminator", REFUSE)
    intermediate_size: int = setting(1024, "width of its feed-forward layers", REFUSE)
    generator_hidden_size: float = setting(0.25, "the generator's width and heads, as a fraction of those", REFUSE)
    generator_layers: float = setting(1.0, "the generator's layers as a fraction of the discriminator's", REFUSE)
    max_position_embeddings: int = setting(512, "rows of the position table", REFUSE)
    type_vocab_size: int = setting(2, "rows of the token-type table", REFUSE)
    hidden_dropout_prob: float = setting(0.1, "dropout on embeddings and on each sub-layer's output", WARN)
    attention_probs_dropout_prob: float = setting(0.1, "dropout on attention weights", WARN)
    initializer_range: float = setting(0.02, "standard deviation of the truncated normal", REFUSE)
    layer_norm_eps: float = setting(1e-12, "added to the variance in LayerNorm", REFUSE)
    dtype: Literal["float32", "bfloat16"] = setting("float32", "of the computation; parameters are float32", WARN)
    remat: Literal["auto", "none", "dots", "full"] = setting(
        "auto", "what the backward pass computes again of a layer; `dots`: all but products; `auto`: by unroll", FREE
    )
    attention: Literal["auto", "reference", "pallas", "cudnn"] = setting(
        "auto", "`auto`: our kernel on TPUs, cuDNN where it can (bfloat16, no dropout), else `reference`, plain", FREE
    )
    unroll: Literal["auto", "all", "none"] = setting("auto", "layers written out (remat none) or a loop (dots)", FREE)

    @property
    def discriminator(self) -> EncoderConfig:
        return self._tower(self.hidden_size, self.num_hidden_layers, self.num_attention_heads, self.intermediate_size)

    @property
    def generator(self) -> EncoderConfig | None:
        """The tower below the generator's head: its own, the discriminator's, or none."""
        match self.towers:
            case "tied" | "masked_lm":
                return self.discriminator
            case "uniform_generator":
                return None
        # Rounded, not truncated: a third of 768 given as 0.33333 must be 256.
        hidden = round(self.generator_hidden_size * self.hidden_size)
        tower = self._tower(
            hidden,
            max(1, round(self.generator_layers * self.num_hidden_layers)),
            max(1, hidden * self.num_attention_heads // self.hidden_size),
            round(self.generator_hidden_size * self.intermediate_size),
        )
        return tower if self.tied_embeddings else dataclasses.replace(tower, embedding_size=hidden)

    def _tower(self, hidden: int, layers: int, heads: int, intermediate: int) -> EncoderConfig:
        return EncoderConfig(
            embedding_size=self.embedding_size, hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads,
            intermediate_size=intermediate, hidden_dropout_prob=self.hidden_dropout_prob,
            attention_probs_dropout_prob=self.attention_probs_dropout_prob, initializer_range=self.initializer_range,
            layer_norm_eps=self.layer_norm_eps, dtype=self.dtype, remat=self.remat,
            attention=self.attention, unroll=self.unroll,
        )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig:
    """Replaced-token detection (Clark et al., 2020, section 2)."""

    mask_prob: float = setting(0.15, "share of the real tokens that is predicted", WARN)
    mask_token_prob: float = setting(0.85, "share of those shown to the generator as [MASK]; the rest as it is", WARN)
    gen_weight: float = setting(1.0, "weight of the generator's masked-LM loss", WARN)
    disc_weight: float = setting(50.0, "weight of the discriminator's loss", WARN)
    mask_sampling: Literal["without_replacement", "with_replacement"] = setting(
        "without_replacement", "whether a position can be drawn twice, as in the reference", WARN
    )
    duplicate_positions: Literal["first", "average"] = setting(
        "first", "what a position drawn twice gets: its first sample, or the reference's average of the token ids", WARN
    )
    temperature: float = setting(1.0, "of the softmax that replacements are sampled from", WARN)
    disallow_correct: bool = setting(False, "never sample the token that was masked", WARN)
    loss_mean: Literal["global", "per_replica"] = setting(
        "global",
        "over what a loss is a mean: the batch, or the reference's: each replica's part (`train.replicas`)",
        WARN,
    )

    def max_predictions(self, length: int) -> int:
        """Slots for masked positions in a sequence of `length` tokens (the reference's formula)."""
        return min(length, max(1, int((self.mask_prob + 0.005) * length)))


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW, and the learning rate."""

    learning_rate: float = setting(5e-4, "the peak", WARN)
    schedule: Literal["linear", "linear_after_warmup", "cosine", "wsd"] = setting(
        "linear",
        "`linear`: the reference's, which decays from step 0 on, also while it warms up; `linear_after_warmup` and `cosine`, "
        "from the peak; `wsd`: warm-up, stable, decay",
        WARN,
    )
    warmup_steps: int = setting(10_000, "steps of linear warm-up", WARN)
    cooldown_steps: int = setting(0, "`wsd`: steps of linear decay to zero at the end of the run", WARN)
    beta1: float = setting(0.9, "of Adam", WARN)
    beta2: float = setting(0.999, "of Adam", WARN)
    eps: float = setting(1e-6, "of Adam", WARN)
    bias_correction: bool = setting(False, "Adam's bias correction, as its moments start at 0", REFUSE)
    weight_decay: float = setting(0.01, "decoupled; not on biases and LayerNorm", WARN)
    decay_embeddings: bool = setting(True, "whether the embedding tables decay, as in the reference", WARN)
    clip_norm: float = setting(1.0, "norm of all gradients together that they are clipped to", WARN)
    clipping: Literal["global", "per_replica"] = setting(
        "global",
        "what is clipped: the batch's gradient, or the reference's: each replica's, which are then summed",
        WARN,
    )
    layerwise_decay: float = setting(1.0, "learning rate of a layer, as a fraction of that of the layer above", WARN)
    layerwise_rule: Literal["fixed", "reference"] = setting(
        "fixed", "the layer below the heads: `fixed`: decays once; `reference`: twice, off by one", WARN
    )


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Steps and batches."""

    batch_size: int = setting(128, "sequences a step, over all devices", WARN)
    curriculum_batch_sizes: tuple[int, ...] = setting(
        (), "sequences a step at each length of the curriculum; none: batch_size", WARN
    )
    num_train_steps: int = setting(1_000_000, "where the run and its schedule end", WARN)
    gradient_accumulation_steps: int = setting(1, "parts a batch is computed in; changes nothing but rounding", FREE)
    replicas: int = setting(1, "parts of a batch for the `per_replica` settings; the reference's TPU cores", WARN)
    hang_timeout: int = setting(
        1800, "seconds without a step, compilation included, after which a process ends with its stacks; 0: never", FREE
    )
    heartbeat_timeout: int = setting(100, "seconds after which the other processes give up on one that has died", FREE)
    join_timeout: int = setting(300, "seconds that a process waits for the others to come", FREE)
    skip_steps: tuple[int, ...] = setting((), "steps whose update is left out, to pass a batch that gave NaN", WARN)


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """Held-out figures."""

    interval_steps: int = setting(10_000, "steps between evaluations on held-out records; also at the end", FREE)
    batch_size: int = setting(
        128, "sequences a batch, rounded up to what the devices share evenly; does not change the figures", FREE
    )
    max_records: int = setting(10_000, "held-out records used; 0: all", FREE)
    disc_auc_padding: Literal["left_out", "counted"] = setting(
        "left_out", "whether padding enters disc_auc; `counted`: as certain negatives, as in the reference", FREE
    )


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """When to save and what to keep."""

    save_interval_minutes: float = setting(10.0, "minutes between checkpoints, also made at the end; 0: none", FREE)
    save_interval_steps: int = setting(0, "besides, one at each multiple of this step; 0: none", FREE)
    max_to_keep: int = setting(3, "newest checkpoints that are kept", FREE)
    keep_period: int = setting(0, "besides, one at each multiple of this step is made and kept for good; 0: none", FREE)


@dataclasses.dataclass(frozen=True)
class ReportingConfig:
    """What is written while a run goes on."""

    interval_steps: int = setting(100, "steps between reports", FREE)
    wandb_project: str = setting("", "project of Weights & Biases that is reported to as well (extra `[wandb]`)", FREE)
    profile_steps: int = setting(0, "steps that JAX's profiler records, soon after the start; 0: none", FREE)


@dataclasses.dataclass(frozen=True)
class ProbeConfig:
    """A task that the encoder is fine-tuned on now and then, to see what it is worth so far."""

    config: str = setting("", "of fine-tuning, as configs/finetune/jsonl.py: one seed, same mesh; none: no probe", FREE)
    path: str = setting("", "the task's folder, where that file does not name it", FREE)
    interval_steps: int = setting(10_000, "steps between probes; also at the end", FREE)


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices by axis; their product is the number of devices."""

    data: int = setting(-1, "devices along the data axis; -1: all that the other axes leave", FREE)
    fsdp: int = setting(1, "devices that share parameters and optimizer state as well as the batch", FREE)
    tensor: int = setting(1, "devices that share heads, feed-forward and vocabulary", FREE)


class Phase(NamedTuple):
    """Steps of a run that have one length."""

    length: int
    batch_size: int
    end: int | None  # the step at which the next begins


@dataclasses.dataclass(frozen=True)
class Config:
    """A whole run."""

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
    probe: ProbeConfig = ProbeConfig()
    mesh: MeshConfig = MeshConfig()

    @property
    def phases(self) -> tuple[Phase, ...]:
        """The lengths that the run goes through: those of the curriculum, then `data.max_seq_length`."""
        data, train = self.data, self.train
        sizes = train.curriculum_batch_sizes or (train.batch_size,) * len(data.curriculum_lengths)
        first = [Phase(*phase) for phase in zip(data.curriculum_lengths, sizes, data.curriculum_steps, strict=True)]
        return (*first, Phase(data.max_seq_length, train.batch_size, None))

    def phase(self, step: int) -> Phase:
        """That of the update after `step` others."""
        return next(phase for phase in self.phases if phase.end is None or step < phase.end)
