"""The configuration of fine-tuning, and what it comes to for a model and a data set."""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from electra_jax import config_loading, config_values
from electra_jax.config import (
    CheckpointConfig,
    Config,
    DataConfig,
    EvaluationConfig,
    MeshConfig,
    ModelConfig,
    OptimizerConfig,
    ReportingConfig,
    TrainConfig,
)
from electra_jax.config_loading import Check
from electra_jax.config_values import FREE, REFUSE, setting


@dataclasses.dataclass(frozen=True)
class TaskConfig:
    """The task, and where its data are."""

    kind: Literal["auto", "classification", "regression", "tagging", "question_answering"] = setting(
        "auto", "of one or two texts, of words, or spans of a context; `auto`: as info.json says", REFUSE
    )
    path: str = setting("", "a folder of files, or tfds:NAME; may change where the data do not", FREE)
    format: Literal["auto", "jsonl", "tsv", "squad", "conll", "conllu", "tfds"] = setting(
        "auto", "`auto`: by the names of the files", REFUSE
    )
    train: str = setting("", "file or split to train on (default: train.* in path)", FREE)
    validation: str = setting("", "to choose by; of several, comma-separated, the first (default: validation.*)", FREE)
    test: str = setting("", "to report, likewise; without labels it is only predicted (default: test.*)", FREE)
    text: str = setting("", "field or column of the text, or NAME|NAME: the first there is (default: text)", REFUSE)
    text_pair: str = setting("", "of the second text (default: text_b, beside text_a)", REFUSE)
    label: str = setting("label", "of the label; of the tag in columns: a name of CoNLL-U, or a number", REFUSE)
    labels: tuple[str, ...] = setting((), "their names in order (default: of info.json, or those of train)", REFUSE)
    metric: str = setting(
        "", "that models are chosen by, and that is reported (default: of info.json, or the kind's)", REFUSE
    )
    max_length: int = setting(128, "tokens of an example, special ones included; longer texts are cut", REFUSE)
    max_broken_fraction: float = setting(
        0.0, "share of a file's lines that may have too few or too many columns and are left out, but for test", FREE
    )
    double_unordered: bool = setting(
        False, "train on pairs in both orders, as the reference for MRPC and STS-B", REFUSE
    )
    tags: Literal["as_given", "bioes"] = setting("as_given", "spans in BIO may be predicted as BIOES", REFUSE)
    doc_stride: int = setting(32, "question answering: tokens from one window of a long context to the next", REFUSE)
    max_query_length: int = setting(64, "tokens of a question", REFUSE)
    max_answer_length: int = setting(30, "tokens of an answer", REFUSE)
    n_best: int = setting(20, "answers that are weighed against each other", REFUSE)
    submission: str = setting("", "files of test predictions as GLUE takes them, one a test split", FREE)
    published: float = setting(0.0, "the score to print beside ours; 0: none", FREE)


@dataclasses.dataclass(frozen=True)
class FinetuneModelConfig:
    """The settings of the model that the checkpoint does not determine."""

    hidden_dropout_prob: float = setting(0.1, "dropout on embeddings and on each sub-layer's output", REFUSE)
    attention_probs_dropout_prob: float = setting(0.1, "dropout on attention weights", REFUSE)
    classifier_dropout: float = setting(
        0.1,
        "dropout before each layer of the head, on the first token's vector or every one's; none for answers",
        REFUSE,
    )
    dtype: Literal["float32", "bfloat16"] = setting("float32", "of the training; predictions are float32", REFUSE)
    attention: Literal["auto", "reference", "pallas", "cudnn"] = setting("auto", "as in pretraining", FREE)


@dataclasses.dataclass(frozen=True)
class FinetuneOptimizerConfig:
    """AdamW, as in pretraining."""

    learning_rate: float = setting(1e-4, "the peak", REFUSE)
    schedule: Literal["linear", "linear_after_warmup", "cosine"] = setting("linear", "as in pretraining", REFUSE)
    warmup_fraction: float = setting(0.1, "share of the steps that warm up", REFUSE)
    layerwise_decay: float = setting(0.8, "learning rate of a layer, as a fraction of that of the layer above", REFUSE)
    layerwise_rule: Literal["fixed", "reference"] = setting(
        "fixed", "the layer below the head: decays once, or as in the reference twice", REFUSE
    )
    weight_decay: float = setting(0.01, "decoupled; not on biases and LayerNorm", REFUSE)
    bias_correction: bool = setting(False, "Adam's bias correction, as its moments start at 0", REFUSE)
    clip_norm: float = setting(1.0, "norm of all gradients together that they are clipped to", REFUSE)


@dataclasses.dataclass(frozen=True)
class FinetuneTrainConfig:
    """How long, in what batches."""

    epochs: float = setting(3.0, "times the training set is gone through", REFUSE)
    batch_size: int = setting(32, "examples a step", REFUSE)
    gradient_accumulation_steps: int = setting(1, "parts a batch is computed in", FREE)
    hang_timeout: int = setting(1800, "seconds without a step after which the process ends; 0: never", FREE)


@dataclasses.dataclass(frozen=True)
class FinetuneEvaluationConfig:
    """Figures on the validation set, and what is done by them."""

    interval_epochs: float = setting(1.0, "epochs between evaluations; also at the end", REFUSE)
    batch_size: int = setting(64, "examples a batch", FREE)
    select: Literal["last", "best"] = setting("last", "the weights kept: the last, or those best on validation", REFUSE)
    patience: int = setting(0, "evaluations without a better one after which training ends; 0: never", REFUSE)


@dataclasses.dataclass(frozen=True)
class FinetuneConfig:
    """A fine-tuning: one task, one or several seeds."""

    seed: int = setting(0, "the first seed: of the head, the order of examples and dropout", REFUSE)
    seeds: int = setting(1, "how many runs, with seed, seed + 1 ...", FREE)
    max_restarts: int = setting(2, "collapsed runs, of all, that are repeated with another seed", FREE)
    suite: tuple[str, ...] = setting((), "words of this file's other configurations, to run one after the other", FREE)
    task: TaskConfig = TaskConfig()
    model: FinetuneModelConfig = FinetuneModelConfig()
    optimizer: FinetuneOptimizerConfig = FinetuneOptimizerConfig()
    train: FinetuneTrainConfig = FinetuneTrainConfig()
    evaluation: FinetuneEvaluationConfig = FinetuneEvaluationConfig()
    checkpoint: CheckpointConfig = CheckpointConfig(max_to_keep=1)
    reporting: ReportingConfig = ReportingConfig()
    mesh: MeshConfig = MeshConfig()


def from_dict(values: Mapping[str, Any]) -> FinetuneConfig:
    """Builds and validates; raises `UserError` for anything that cannot work."""
    config = config_values.build(FinetuneConfig, values)
    config_loading.refuse(config, (*config_loading.ranges(config), *_checks(config)))
    check_windows(config.task)
    return config


def _checks(config: FinetuneConfig) -> Iterator[Check]:
    task, evaluation = config.task, config.evaluation
    yield config.suite or bool(task.path), "task.path", "a folder of data, or tfds:NAME"
    yield 0 <= task.max_broken_fraction < 1, "task.max_broken_fraction", "a fraction of at least 0 and below 1"
    yield task.max_length >= 8, "task.max_length", "8 or more"
    for name in ("doc_stride", "max_query_length", "max_answer_length", "n_best"):
        yield getattr(task, name) >= 1, f"task.{name}", "1 or more"
    yield len({*task.labels}) == len(task.labels), "task.labels", "different names"
    yield config.seeds >= 1, "seeds", "1 or more"
    yield config.max_restarts >= 0, "max_restarts", "0 or more"
    yield config.train.epochs > 0, "train.epochs", "a number above 0"
    yield evaluation.interval_epochs > 0, "evaluation.interval_epochs", "a number above 0"
    yield evaluation.patience >= 0, "evaluation.patience", "0 or more"
    yield 0 <= config.model.classifier_dropout < 1, "model.classifier_dropout", "a fraction of at least 0 and below 1"
    yield config.optimizer.layerwise_decay <= 1, "optimizer.layerwise_decay", "at most 1"
    yield (
        0 <= config.optimizer.warmup_fraction < 1,
        "optimizer.warmup_fraction",
        "a fraction of at least 0 and below 1",
    )
    yield not config.reporting.profile_steps, "reporting.profile_steps", "0: the profiler is for pretraining"
    yield not config.checkpoint.keep_period, "checkpoint.keep_period", "0: a seed that is done keeps its model alone"
    names = submission_files(task)
    fits = all(name.endswith(".tsv") and "/" not in name for name in names)
    yield fits, "task.submission", "names of .tsv files, comma-separated, without folders"
    fits = not evaluation.patience or evaluation.select == "best"
    yield fits, "evaluation.patience", "0 unless evaluation.select=best"


def submission_files(task: TaskConfig) -> list[str]:
    """The names of `task.submission`."""
    return [name.strip() for name in task.submission.split(",") if name.strip()]


def check_windows(task: TaskConfig) -> None:
    """Refuses windows over a context that would lose words; raises `UserError`. For a task whose kind is decided."""
    if task.kind != "question_answering":
        return
    room = task.max_length - task.max_query_length - 3
    if room < 1:
        config_values.fail(
            "task.max_query_length", task.max_query_length, f"below task.max_length - 3, {task.max_length - 3}"
        )
    if task.doc_stride > room:
        expected = f"at most {room}, what task.max_length leaves for the context: words between windows would be lost"
        config_values.fail("task.doc_stride", task.doc_stride, expected)


def encoder_alone(model: ModelConfig, **changes: Any) -> ModelConfig:
    """The configuration of the encoder of `model`, as one tower, with some settings changed."""
    return dataclasses.replace(model, towers="masked_lm", tied_embeddings=True, **changes)


_FEW_STEPS = 200


def check_steps(config: FinetuneConfig, num_examples: int) -> str | None:
    """A warning where a run of `num_examples` is so short that it says little of the encoder."""
    steps, per_epoch = _steps(config, num_examples)
    if steps >= _FEW_STEPS:
        return None
    enough = math.ceil(_FEW_STEPS / per_epoch)
    return (
        f"{config.train.epochs:g} epochs of {num_examples:,} examples are {steps} steps, too few for most tasks: set "
        f"train.epochs={enough} or more"
    )


def _steps(config: FinetuneConfig, num_examples: int) -> tuple[int, int]:
    """The steps of the run, and of an epoch."""
    per_epoch = math.ceil(num_examples / config.train.batch_size)
    return max(1, round(config.train.epochs * per_epoch)), per_epoch


def resolve(config: FinetuneConfig, model: ModelConfig, num_examples: int) -> Config:
    """The fine-tuning in terms of the train step and the loop, which know nothing of epochs.

    Args:
      config: of the fine-tuning.
      model: of the checkpoint.
      num_examples: in the training set.
    """
    steps, per_epoch = _steps(config, num_examples)
    interval = max(1, min(steps, round(config.evaluation.interval_epochs * per_epoch)))
    given, length = config.optimizer, config.task.max_length
    return Config(
        model=encoder_alone(
            model, remat="auto", unroll="auto",
            hidden_dropout_prob=config.model.hidden_dropout_prob,
            attention_probs_dropout_prob=config.model.attention_probs_dropout_prob,
            dtype=config.model.dtype, attention=config.model.attention,
        ),
        data=DataConfig(max_seq_length=length, validation_fraction=0.0),
        optimizer=OptimizerConfig(
            learning_rate=given.learning_rate, schedule=given.schedule,
            warmup_steps=round(given.warmup_fraction * steps), layerwise_decay=given.layerwise_decay,
            layerwise_rule=given.layerwise_rule, weight_decay=given.weight_decay,
            bias_correction=given.bias_correction, clip_norm=given.clip_norm,
        ),
        train=TrainConfig(
            batch_size=config.train.batch_size, num_train_steps=steps,
            gradient_accumulation_steps=config.train.gradient_accumulation_steps,
            hang_timeout=config.train.hang_timeout,
        ),
        evaluation=EvaluationConfig(interval_steps=interval, batch_size=config.evaluation.batch_size),
        checkpoint=config.checkpoint, reporting=config.reporting, mesh=config.mesh,
    )  # fmt: skip
