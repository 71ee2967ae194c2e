"""Checkpoints: `checkpoints/STEP/`, each complete in itself.

params/, opt_state/   arrays (Orbax)
run/                  JSON: the configuration, the step, the sequences consumed, the data's digest
tokenizer/            JSON: the tokenizer
"""

import functools
import json
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from etils import epath
from flax.traverse_util import unflatten_dict
from orbax.checkpoint import checkpoint_managers

from electra_jax import storage
from electra_jax.config import CheckpointConfig, Config
from electra_jax.config_loading import from_dict, to_dict
from electra_jax.errors import OthersFailed, UserError
from electra_jax.models.electra import Params, by_name
from electra_jax.training.state import TrainState


class Saved(NamedTuple):
    """What a checkpoint says of its run."""

    config: Config
    step: int
    sequences: int  # consumed at the present length: the position in the data
    data: str  # digest of the data set; empty for imported weights, which have seen none
    tokenizer: dict[str, str]
    trained_length: int  # tokens of the longest text that the weights have been trained on, whoever did


class Origin(NamedTuple):
    """A checkpoint: its directory `checkpoints/` and its step."""

    directory: epath.Path
    step: int

    @property
    def path(self) -> epath.Path:
        """Its own folder."""
        return self.directory / str(self.step)

    def __str__(self) -> str:
        return str(self.path)


class Checkpoints:
    """The checkpoints of one work directory. Saving is asynchronous and atomic."""

    def __init__(self, directory: epath.Path, policy: CheckpointConfig, landmark: int | None = None):
        """`landmark` is a step that is saved and kept whatever `policy` says."""
        kept = [checkpoint_managers.LatestN(policy.max_to_keep)]
        kept += [checkpoint_managers.EveryNSteps(policy.keep_period)] if policy.keep_period else []
        kept += [checkpoint_managers.CustomSteps([landmark])] if landmark else []
        intervals = [steps for steps in (policy.save_interval_steps, policy.keep_period) if steps]
        options = ocp.CheckpointManagerOptions(
            should_save_fn=lambda step, last: step == landmark or any(step % steps == 0 for steps in intervals),
            preservation_policy=checkpoint_managers.AnyPreservationPolicy(kept),
            cleanup_tmp_directories=True,
        )
        self._manager = ocp.CheckpointManager(storage.absolute(directory), options=options)
        self._seconds = 60 * policy.save_interval_minutes
        self._last_time, self._last_step = time.monotonic(), 0

    def latest_step(self) -> int | None:
        """The step of the newest checkpoint."""
        return self._manager.latest_step()

    def is_due(self) -> bool:
        """Whether the last save is `save_interval_minutes` or more ago, by the clock of this process."""
        return bool(self._seconds) and time.monotonic() - self._last_time >= self._seconds

    def should_save(self, step: int, is_due: bool) -> bool:
        """Whether to save `step`: by its number, or because all processes have agreed that a checkpoint `is_due`."""
        # Right after a save, `is_due` does not count: processes may have agreed on it before that save was made.
        return (is_due and step > self._last_step + 1) or self._manager.should_save(step)

    def save(self, state: TrainState, saved: Saved) -> None:
        """Saves `state` as step `saved.step`; returns once it is copied, before it is written."""
        if saved.step == self.latest_step():
            return
        run = {"config": to_dict(saved.config), "step": saved.step, "sequences": saved.sequences, "data": saved.data,
               "trained_length": saved.trained_length}  # fmt: skip
        items = ocp.args.Composite(
            params=ocp.args.StandardSave(state.params),
            opt_state=ocp.args.StandardSave(state.opt_state),
            run=ocp.args.JsonSave(run),
            tokenizer=ocp.args.JsonSave(saved.tokenizer),
        )
        self._manager.save(saved.step, args=items, force=True)
        self._last_time, self._last_step = time.monotonic(), saved.step

    def close(self) -> None:
        """Waits until everything is written."""
        self._manager.close()


class NoCheckpoints:
    """In place of `Checkpoints` where nothing is worth going on from."""

    def is_due(self) -> None:
        """Neither due nor not: what the processes of the run around it have agreed on stays."""

    def should_save(self, step: int, is_due: bool) -> bool:
        del step, is_due
        return False

    def save(self, state: TrainState, saved: Saved) -> None:
        """Does nothing."""

    def close(self) -> None:
        """Does nothing."""


def find(path: str) -> Origin:
    """The checkpoint that `DIR[@STEP]` names, the newest without a step; `DIR` is a work directory.

    Raises:
      UserError: where there is no such checkpoint.
    """
    name, at, step = path.rpartition("@")
    is_step = at and step.isdigit() and not is_workdir(path)  # an @ may be part of the directory's name
    return find_in(name, int(step)) if is_step else find_in(path)


def find_in(workdir: str, step: int | None = None) -> Origin:
    """The checkpoint of a step, or the newest; raises `UserError` where there is none."""
    directory = epath.Path(workdir).expanduser() / "checkpoints"
    steps = saved_steps(directory)
    if not steps:
        raise UserError(f"{workdir}: no checkpoint there; expected folders {directory}/STEP")
    if step is not None and step not in steps:
        raise UserError(f"{workdir}@{step}: no such step; {directory} has {', '.join(map(str, steps))}")
    return Origin(directory, steps[-1] if step is None else step)


def is_workdir(path: str) -> bool:
    """Whether it is a folder with checkpoints."""
    return (epath.Path(path).expanduser() / "checkpoints").is_dir()


def saved_steps(directory: epath.Path) -> list[int]:
    """Steps with a complete checkpoint, ascending; in a bucket, which cannot rename, Orbax marks those that are."""
    return sorted(ocp.utils.checkpoint_steps(directory)) if directory.is_dir() else []


def read_saved(origin: Origin) -> Saved:
    """What a checkpoint says of its run.

    Raises:
      UserError: where it is damaged.
      OthersFailed: where its bucket cannot be reached.
    """
    folder = origin.path
    try:
        run, tokenizer = (json.loads((folder / name / "metadata").read_text()) for name in ("run", "tokenizer"))
        return Saved(
            from_dict(run["config"]), run["step"], run["sequences"], run["data"], tokenizer, run["trained_length"]
        )
    except (OSError, json.JSONDecodeError, KeyError) as error:
        if storage.is_unreachable(error):
            raise OthersFailed(f"{folder} cannot be reached ({error})") from None
        raise UserError(f"{folder} is no complete checkpoint ({error}); remove it to go on from an older one") from None


def restore(origin: Origin, abstract: TrainState) -> TrainState:
    """The state of a checkpoint, laid out as `abstract` says, whatever mesh it was saved from."""
    params = restore_params(origin, abstract.params)
    opt_state = _restore(origin.path / "opt_state", abstract.opt_state)
    scalar = functools.partial(jax.device_put, device=abstract.step.sharding)
    return TrainState(scalar(jnp.int32(origin.step)), params, opt_state, scalar(jnp.int32(-1)))


def restore_params(origin: Origin, abstract: Params, fresh: Params | None = None) -> Params:
    """The parameters alone of a checkpoint, laid out as `abstract` says.

    Args:
      origin: the checkpoint.
      abstract: shapes, types and shardings.
      fresh: where given, the source of parameters that the checkpoint lacks, such as the head of a new objective.

    Raises:
      UserError: where shapes differ from those of `abstract`.
    """
    path = origin.path / "params"
    with ocp.StandardCheckpointer() as checkpointer:
        stored = by_name(checkpointer.metadata(storage.absolute(path)).item_metadata)
    expected = by_name(abstract)
    missing = expected.keys() - stored.keys() if fresh else set()
    for name in sorted((stored.keys() | expected.keys()) - missing):
        there, here = (tuple(tree[name].shape) if name in tree else "absent" for tree in (stored, expected))
        if there != here:
            raise UserError(
                f"{path.parent}: parameter {name} is {there} there and {here} under this configuration; set the same config.model"
            )
    if not missing:
        return _restore(path, abstract)
    restored = _restore(path, unflatten_dict({name: expected[name] for name in stored}, sep="/"))
    return unflatten_dict(by_name(fresh) | by_name(restored), sep="/")


def save_weights(path: epath.Path, params: Params) -> None:
    """Saves parameters alone, in place of what was there."""
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(storage.absolute(path), params, force=True)


def restore_weights(path: epath.Path, abstract: Params) -> Params:
    """What `save_weights` saved, laid out as `abstract` says."""
    return _restore(path, abstract)


def _restore(path: epath.Path, abstract: Any) -> Any:
    with ocp.StandardCheckpointer() as checkpointer:
        # Copied: what Orbax hands over may share memory with its buffers, and the step will donate it.
        return jax.tree.map(jnp.copy, checkpointer.restore(storage.absolute(path), abstract))
