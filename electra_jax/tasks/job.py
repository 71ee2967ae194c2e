"""A task and an encoder, and all that is made of both once: features, compiled steps, predictions."""

import functools
import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from electra_jax import memory
from electra_jax.data import tokenizer as tokenizer_lib
from electra_jax.models.electra import Params
from electra_jax.tasks import batches, kinds
from electra_jax.tasks.config import FinetuneConfig, check_steps, resolve
from electra_jax.tasks.data import TaskData
from electra_jax.tasks.encoder import PretrainedEncoder
from electra_jax.tasks.examples import TaskExample, are_labelled
from electra_jax.tasks.kinds import Feature
from electra_jax.tasks.model import FineTuning, predictor
from electra_jax.tasks.of_kind import make_kind, module_of, predicting
from electra_jax.training.partitioning import replicated
from electra_jax.training.setup import Program, check_batches, mesh_of

_SOME = 500


class Split(NamedTuple):
    """A split as it is predicted."""

    name: str
    examples: list[TaskExample]
    features: list[Feature]

    @property
    def is_labelled(self) -> bool:
        return are_labelled(self.examples)


class Job:
    """A task, an encoder and everything that is made of both once: features, and compiled steps.

    Attributes:
      config: as given.
      data: the task's examples.
      kind: of the task.
      train: features that are trained on.
      lengths: of the batches they are trained on in.
      splits: those that are predicted: the first validation split first.
      is_probe: whether it has no progress to show, and nothing to go on from.
    """

    def __init__(
        self,
        config: FinetuneConfig,
        data: TaskData,
        encoder: PretrainedEncoder,
        say: Callable[[str], None],
        probed: Mesh | None = None,
    ):
        """`say` takes lines of text. `probed` is the mesh of the run that this is a probe of, in place of `config.mesh`."""
        self.is_probe = probed is not None
        self.config, self.data, self.encoder, self.say = config, data, encoder, say
        kinds.check_model(data.task, encoder.model, encoder.name)
        self.kind = make_kind(data.task, encoder.tokenizer)
        kinds.check_metric(self.kind)
        labelled = self.kind.training_examples([e for part in data.train.values() for e in part])
        self.kind.fit(labelled)
        self.train = self._features("train", labelled)
        warnings = [
            *data.warnings,
            kinds.check_labels(data.task, labelled),
            kinds.check_vocabulary(self.train, encoder.tokenizer, encoder.name),
            kinds.check_lengths(self.train, encoder.trained_length, encoder.name),
            check_steps(config, len(self.train)),
        ]
        self.splits = [
            Split(name, examples, self._features(name, examples))
            for part in (data.validation, data.test)
            for name, examples in part.items()
        ]
        self.run_config = resolve(config, encoder.model, len(self.train))
        if probed:
            check_batches(self.run_config, probed)
        mesh, dropout = probed or mesh_of(self.run_config), config.model.classifier_dropout
        self.program = Program(
            self.run_config, FineTuning(data.task.kind, encoder.tokenizer.special.pad), encoder.tokenizer.vocab_size,
            mesh, module_of(self.kind, dropout),
        )  # fmt: skip
        self.lengths = self._lengths(self.train, self.run_config.train.num_train_steps)
        predicted = [feature for split in self.splits for feature in split.features] or self.train
        times = config.train.epochs / config.evaluation.interval_epochs
        batches_once = len(predicted) / self.program.evaluation_batch_size
        self._lengths_of_predictions = self._lengths(predicted, times * batches_once)
        if not self.validation and (config.evaluation.patience or config.evaluation.select == "best"):
            warnings.append("there is no labelled validation set to choose by: the weights of the last step are kept")
        for warning in filter(None, warnings):
            say(f"WARNING: {warning}")
        self.train_step = memory.settled(self.program.train_step)
        self._predict = predictor(self.program, predicting(encoder.model, self.kind))
        self._pretrained = encoder.params and encoder.params(mesh)
        self._gathered = jax.jit(lambda params: params, out_shardings=replicated(mesh))

    def _features(self, name: str, examples: Sequence[TaskExample]) -> list[Feature]:
        found = self.kind.features(examples)
        if self.kind.num_cut:
            self.say(f"{self.kind.num_cut:,} of {len(examples):,} texts of {name} are cut: {self.kind.limit}")
        return found

    def _lengths(self, features: Sequence[Feature], num_batches: float) -> tuple[int, ...]:
        # The attention kernel takes lengths of whole blocks.
        multiple = 128 if self.program.model.attention == "pallas" else 8
        return batches.lengths_of(batches.sizes_of(features), self.data.task.max_length, num_batches, multiple)

    @property
    def metric(self) -> str:
        """The metric that models are chosen by, and that is reported."""
        return self.data.task.metric

    @functools.cached_property
    def validation(self) -> Split | None:
        """The labelled split that models are chosen by."""
        return next((s for s in self.splits if s.name in self.data.validation and s.is_labelled), None)

    @functools.cached_property
    def judged(self) -> Split:
        """What tells a collapsed run: the validation set, or without one some of the training set."""
        if self.validation:
            return self.validation
        every = [example for part in self.data.train.values() for example in part]
        some = every[:: math.ceil(len(every) / _SOME)]
        return Split("train", some, self.kind.features(some))

    def initial(self, seed: int) -> Params:
        """The pretrained weights with a fresh head, or all fresh."""
        params = self.program.fresh_params(seed)
        return params if self._pretrained is None else {**self._pretrained, "head": params["head"]}

    def fingerprint(self) -> str:
        """Identifies the encoder's weights and vocabulary, wherever they lie: sixteen characters."""
        found = hashlib.sha256(tokenizer_lib.digest(self.encoder.tokenizer).encode())
        if self._pretrained is None:
            found.update(repr(self.encoder.model).encode())
        else:
            for leaf in jax.tree.leaves(self.on_host(self._pretrained)):
                found.update(np.ascontiguousarray(leaf))
        return found.hexdigest()[:16]

    def start_from(self, params: Params) -> None:
        """Makes the runs that follow begin with these encoder weights."""
        self._pretrained = params

    def place(self, whole: Iterable[Any], batch_size: int) -> Iterator[Any]:
        """Batches, which every process makes whole, as global arrays on the mesh."""
        rows = self.program.rows(batch_size)
        return self.program.place((jax.tree.map(lambda x: x[rows], batch) for batch in whole), batch_size)

    def on_host(self, params: Params) -> Params:
        """All of the parameters as NumPy arrays, on every process."""
        return jax.tree.map(np.asarray, self._gathered(params))

    def outputs(
        self, params: Params, features: Sequence[Feature], is_cut_short: Callable[[], bool] = lambda: False
    ) -> list[np.ndarray] | None:
        """What the head says of each feature, for its own tokens; None where it was cut short."""
        size = self.program.evaluation_batch_size

        def logits(*inputs: np.ndarray) -> jax.Array:
            return self._predict(params, *next(self.place([inputs], size)))

        pad = self.kind.tokenizer.special.pad
        return batches.outputs(logits, features, size, self._lengths_of_predictions, pad, is_cut_short)

    def predictions(self, split: Split, outputs: Sequence[np.ndarray]) -> list[Any]:
        """What a model, or the average of several, says of a split; if it is the validation split, a threshold is chosen anew."""
        found = self.kind.predictions(split.examples, split.features, outputs)
        if split is self.validation:
            self.kind.tune(split.examples, found)
        return found
