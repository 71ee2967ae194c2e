"""Several runs of one task, one after the other: a seed each, collapsed ones repeated, all put together."""

import dataclasses
import json
from collections.abc import Callable
from typing import Any

from etils import epath

from electra_jax import config_loading, config_values, distributed, storage
from electra_jax.errors import RunFailed, UserError
from electra_jax.reporting.writers import rows
from electra_jax.tasks import finetuning, results
from electra_jax.tasks.job import Job
from electra_jax.tasks.results import SeedResult
from electra_jax.training import checkpoint
from electra_jax.training.interrupts import Interrupts


def run(job: Job, workdir: epath.Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Runs every seed that is not done yet, and writes results, predictions and the best seed's model.

    Args:
      job: the task.
      workdir: holds a folder for each seed, `results.json`, predictions, `model/`.
      say: takes lines of text.

    Raises:
      UserError: where `workdir` holds another task's or configuration's runs.
      tasks.finetuning.Stopped: after a signal.
    """
    fingerprint = job.fingerprint()
    distributed.first_then_others(lambda: _check_same(job, fingerprint, workdir), "--workdir")
    config, done, collapsed = job.config, [], []
    following, restarts = config.seed + config.seeds, 0
    with Interrupts(job.program.mesh, config.train.hang_timeout) as interrupts:
        waiting = list(range(config.seed, config.seed + config.seeds))
        while waiting:
            seed, reason, one = waiting.pop(0), "it is no better than chance", None
            try:
                one = _one(job, seed, workdir / f"seed-{seed}", interrupts, say)
            except RunFailed as failure:
                if restarts == config.max_restarts:
                    raise
                reason = str(failure)
            if one is not None and not one.is_collapsed:
                done.append(one)
                continue
            collapsed.append({"seed": seed, "figures": one.figures if one else {}})
            if restarts < config.max_restarts:
                say(f"WARNING: seed {seed} collapsed, {reason}; seed {following} takes its place")
                waiting.insert(0, following)
                following, restarts = following + 1, restarts + 1
            else:
                say(
                    f"WARNING: seed {seed} collapsed, {reason}; it counts, as config.max_restarts={config.max_restarts}"
                )
                done.append(one)
    return _finish(job, workdir, done, collapsed, say)


def _one(job: Job, seed: int, workdir: epath.Path, interrupts: Interrupts, say: Callable[[str], None]) -> SeedResult:
    found = results.load(workdir, job)
    if found is not None:
        return found
    workdir.mkdir(parents=True, exist_ok=True)
    outcome = finetuning.run(job, seed, workdir, interrupts)
    if distributed.is_first():
        results.save(workdir, job, outcome)
        for scratch in (workdir / "checkpoints", *workdir.glob(f"{finetuning.BEST}*")):
            scratch.rmtree(missing_ok=True)
    shown = "; ".join(
        f"{split} " + ", ".join(f"{name} {value:.4f}" for name, value in figures.items())
        for split, figures in outcome.figures.items()
    )
    say(f"seed {seed}, step {outcome.step}, {outcome.seconds:.0f} s: {shown}")
    return results.of(outcome)


def _finish(
    job: Job, workdir: epath.Path, done: list[SeedResult], collapsed: list[dict[str, Any]], say: Callable[[str], None]
) -> dict[str, Any]:
    best = results.best_of(job, done)
    for name, value in best.settings.items():
        setattr(job.kind, name, value)
    outputs = results.average(job, done)
    found = results.combine(job, done, collapsed, outputs)
    if not distributed.is_first():
        return found
    if warning := _still_rising(workdir, done, job):
        say(f"WARNING: {warning}")
    for path in results.write_predictions(workdir, job, outputs):
        say(f"wrote {path}")
    storage.copy_folder(workdir / f"seed-{best.seed}" / "model", workdir / "model")
    say(f"wrote {workdir / 'model'}, of seed {best.seed}: transformers loads it, and so does electra_jax.predict")
    storage.write(workdir / "results.json", json.dumps(found, indent=1) + "\n")
    return found


# How much of the error the last of several evaluations takes away where training was long enough; most is less than half of it.
_USUAL = 0.1


def _still_rising(workdir: epath.Path, done: list[SeedResult], job: Job) -> str | None:
    """What to say where most seeds ended while the validation figure still rose steeply: they compare who learns first."""
    rising = []
    for one in done:
        history = rows(workdir / f"seed-{one.seed}" / "metrics.jsonl")
        values = [row[f"eval/{job.metric}"] for row in history if row.get(f"eval/{job.metric}") is not None]
        if len(values) > 1 and values[-1] - values[-2] > _USUAL * (1 - values[-2]):
            rising.append(f"seed {one.seed} {values[-2]:.4f}, then {values[-1]:.4f}")
    if 2 * len(rising) <= len(done):
        return None
    return f"validation {job.metric} was still rising as training ended ({rising[0]}): raise train.epochs"


def _check_same(job: Job, fingerprint: str, workdir: epath.Path) -> None:
    """Refuses to mix runs of different encoders, data or configurations, except in settings that change no result."""
    file = workdir / "config.json"
    if (workdir / "checkpoints").is_dir():
        raise UserError(f"--workdir={workdir} holds a pretraining run; fine-tuning needs a directory of its own")
    # With what the data decide of the task, such as the labels that `info.json` names.
    config = dataclasses.replace(job.config, task=job.data.task)
    about = {"init": job.encoder.name, "encoder": fingerprint, "data": job.data.digest}
    text = json.dumps(about | config_loading.to_dict(config), indent=1)
    leaves = config_values.leaves(config).items()
    free = {"init", *(name for name, (_, field) in leaves if field.metadata["on_resume"] == "free")}
    if file.is_file() and _has_begun(workdir):
        before, after = (_flat(json.loads(one)) for one in (file.read_text(), text))
        if before.get("encoder") != fingerprint:
            raise UserError(
                f"{workdir} holds runs of another encoder, from {before.get('init')}, now from {job.encoder.name}: put it back, "
                "or use another --workdir"
            )
        for name in before.keys() | after.keys():
            if name not in free and before.get(name) != after.get(name):
                raise UserError(
                    f"{workdir} holds runs with {name}={before.get(name)!r}, now {after.get(name)!r}: put it back, or use "
                    "another --workdir"
                )
    if distributed.is_first():
        workdir.mkdir(parents=True, exist_ok=True)
        storage.write(file, text + "\n")


def _has_begun(workdir: epath.Path) -> bool:
    """Whether there is anything of a seed's training that another configuration could not go on from."""
    return any(
        (folder / "result.json").is_file() or checkpoint.saved_steps(folder / "checkpoints")
        for folder in workdir.glob("seed-*")
    )


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(values, dict):
        return {prefix.rstrip("."): values}
    return {name: x for key, part in values.items() for name, x in _flat(part, f"{prefix}{key}.").items()}
