"""Where figures go: `metrics.jsonl`, TensorBoard, the terminal."""

import importlib.util
import json
import math
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import tqdm
from etils import epath

from electra_jax import storage
from electra_jax.errors import UserError, missing_extra

# The figures of the console line, in its order, with their form.
_SHOWN = {
    "loss": "{:.3f}",
    "masked_lm_loss": "{:.3f}",
    "disc_loss": "{:.4f}",
    "masked_lm_accuracy": "{:.3f}",
    "disc_auc": "{:.3f}",
    "disc_recall": "{:.3f}",
    "accuracy": "{:.4f}",
    "matthews": "{:.4f}",
    "macro_f1": "{:.4f}",
    "f1": "{:.4f}",
    "span_f1": "{:.4f}",
    "exact_match": "{:.4f}",
    "spearman": "{:.4f}",
    "pearson": "{:.4f}",
    "pearson_spearman": "{:.4f}",
    "learning_rate": "{:.2e}",
    "tokens_per_second": "{:,.0f}",
    "utilisation": "{:.1%}",
}


class Writer(Protocol):
    """Takes the figures of a step, once for each step."""

    def write(self, step: int, figures: Mapping[str, float]) -> None: ...

    def flush(self) -> None: ...

    def close(self) -> None: ...


class JsonLines:
    """`metrics.jsonl`: a JSON object a line, each step once, in ascending order.

    On remote storage, where files cannot be appended to, it is written anew with each `flush`.
    """

    def __init__(self, path: epath.Path, resume_step: int):
        """Cuts what an interrupted run wrote beyond `resume_step`, a broken last line included."""
        self._path, self._is_remote = path, storage.is_remote(path)
        self._rows = [row for row in rows(path) if row["step"] <= resume_step]
        self._rewrite()

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """A figure that is not finite is written as null, since JSON has no NaN or infinity."""
        row = {name: value if math.isfinite(value) else None for name, value in figures.items()}
        if self._rows and self._rows[-1]["step"] == step:  # an evaluation, made late for a step already written
            self._rows[-1] |= row
            self._rewrite()
            return
        self._rows.append({"step": step, **row})
        if not self._is_remote:
            self._file.write(json.dumps(self._rows[-1]) + "\n")

    def flush(self) -> None:
        if self._is_remote:
            self._rewrite()

    def close(self) -> None:
        self.flush()
        if not self._is_remote:
            self._file.close()

    def _rewrite(self) -> None:
        text = "".join(json.dumps(row) + "\n" for row in self._rows)
        if self._is_remote:
            _copy_to_bucket(self._path, text)
        else:
            storage.write(self._path, text)
            self._file = open(self._path, "a", buffering=1)  # noqa: SIM115 - epath's own takes no buffering


def is_evaluated(path: epath.Path, step: int) -> bool:
    """Whether `metrics.jsonl` holds held-out figures of `step`."""
    return any(row["step"] == step and any(name.startswith("eval/") for name in row) for row in rows(path))


def _copy_to_bucket(path: epath.Path, content: bytes | str) -> None:
    """Writes a file into a bucket. A run is worth more than its reports: where that fails, the next `flush` tries again."""
    try:
        storage.write(path, content)
    except Exception as error:  # each kind of storage has its own
        print(f"WARNING: {path} could not be written ({error}); tried again with the next checkpoint", flush=True)


def _tensorboardx() -> tuple[Any, Any, Any]:
    """tensorboardX's writer, `Event` and `Summary`, without torch: loading it takes seconds, and no scalar needs it."""
    is_loaded = "torch" in sys.modules
    if not is_loaded:
        sys.modules["torch"] = None
    try:
        from tensorboardX import event_file_writer
        from tensorboardX.proto import event_pb2, summary_pb2
    finally:
        if not is_loaded:
            del sys.modules["torch"]
    return event_file_writer.EventsWriter, event_pb2, summary_pb2.Summary


class TensorBoard:
    """TensorBoard events, without TensorFlow: a file for each start, in a bucket written anew with each `flush`.

    Written synchronously, not by tensorboardX's `SummaryWriter`: its thread loses what a killed run reported last, and if it
    fails, as an upload may, the run waits for it forever.
    """

    def __init__(self, directory: epath.Path, resume_step: int):
        self._remote = directory if storage.is_remote(directory) else None
        self._local = Path(tempfile.mkdtemp(prefix="tensorboard-") if self._remote else directory)
        self._local.mkdir(parents=True, exist_ok=True)
        make_writer, self._events, self._summary = _tensorboardx()
        self._writer = make_writer(str(self._local / "events"))
        # Makes TensorBoard hide what an interrupted run wrote beyond `resume_step`.
        begin = self._events.SessionLog(status=self._events.SessionLog.START)
        self._add(step=resume_step + 1, session_log=begin)

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        named = {name if "/" in name else f"train/{name}": float(value) for name, value in figures.items()}
        values = [self._summary.Value(tag=name, simple_value=value) for name, value in named.items()]
        self._add(step=step, summary=self._summary(value=values))

    def _add(self, **event: Any) -> None:
        self._writer.write_event(self._events.Event(wall_time=time.time(), **event))
        self._writer.flush()

    def flush(self) -> None:
        if self._remote:
            for file in self._local.iterdir():
                _copy_to_bucket(self._remote / file.name, file.read_bytes())

    def close(self) -> None:
        self._writer.close()
        self.flush()
        if self._remote:
            shutil.rmtree(self._local)


class WeightsAndBiases:
    """A run of Weights & Biases, which a resumed run continues; needs the extra `[wandb]`.

    Whether it is online depends on the environment (`WANDB_MODE`, `WANDB_API_KEY`), as usual.
    """

    def __init__(self, project: str, workdir: epath.Path, resume_step: int, config: Mapping[str, Any]):
        """`config` is shown beside the figures."""
        import wandb

        known = workdir / "wandb_id"
        if not (resume_step and known.exists()):
            storage.write(known, secrets.token_hex(8))
        local = tempfile.gettempdir() if storage.is_remote(workdir) else str(workdir)
        name = "/".join(workdir.parts[-2:])
        try:
            self._run = wandb.init(
                project=project, id=known.read_text(), name=name, resume="allow", dir=local, config=dict(config)
            )
        except (wandb.errors.Error, OSError) as error:  # no network, no key
            raise UserError(
                f"config.reporting.wandb_project={project!r}: {type(error).__name__}: {error}; WANDB_MODE=offline in the "
                f"environment keeps the figures in {local}/wandb, for `wandb sync`"
            ) from None
        self._run.define_metric("*", step_metric="step")

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        # Not as W&B's own step, which never goes back: a resumed run repeats steps, and makes up for evaluations.
        self._run.log(
            {"step": step, **{name if "/" in name else f"train/{name}": value for name, value in figures.items()}}
        )

    def flush(self) -> None:
        pass

    def close(self) -> None:
        self._run.finish()


def writers_of(workdir: epath.Path, resume_step: int, wandb_project: str, config: Mapping[str, Any]) -> list[Writer]:
    """All writers of a run in `workdir` except the terminal's; `config` is what Weights & Biases shows of it."""
    found = [JsonLines(workdir / "metrics.jsonl", resume_step), TensorBoard(workdir / "tensorboard", resume_step)]
    if wandb_project:
        found.append(WeightsAndBiases(wandb_project, workdir, resume_step, config))
    return found


def require_wandb(project: str) -> None:
    """Raises `UserError` where `project` asks for what is not installed."""
    if project and getattr(importlib.util.find_spec("wandb"), "origin", None) is None:
        raise missing_extra(f"config.reporting.wandb_project={project!r}", "wandb")


class Console:
    """A live bar on a terminal; one plain line a report in a file or pipe."""

    def __init__(self, total_steps: int, initial_step: int, is_silent: bool = False):
        self._is_silent = is_silent  # on all processes but the first
        self._live = sys.stderr.isatty() and not is_silent
        self._bar = tqdm.tqdm(
            total=total_steps, initial=initial_step, unit="step", disable=not self._live, dynamic_ncols=True
        )
        self._total = total_steps

    def advance(self, step: int) -> None:
        """Moves the bar to `step`."""
        self._bar.update(step - self._bar.n if self._live else 0)

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        if self._is_silent:
            return
        text = format_figures(figures)
        if self._live:
            self._bar.set_postfix_str(text)
        held_out = format_figures({k.removeprefix("eval/"): v for k, v in figures.items() if k.startswith("eval/")})
        if held_out:
            self.say(f"step {step:,}/{self._total:,}  held out: {held_out}")
        if text and not self._live:
            left = f"  {format_seconds(figures['seconds_left'])} left" if "seconds_left" in figures else ""
            print(f"step {step:,}/{self._total:,}  {text}{left}", flush=True)

    def flush(self) -> None:
        pass

    def say(self, text: str) -> None:
        """A line of its own."""
        if self._is_silent:
            return
        if self._live:
            self._bar.write(text, file=sys.stderr)
        else:
            print(text, flush=True)

    def close(self) -> None:
        self._bar.close()


def format_figures(figures: Mapping[str, float]) -> str:
    """The figures worth a place on one line."""
    shown = [f"{name} {form.format(figures[name])}" for name, form in _SHOWN.items() if name in figures]
    return "  ".join([*shown, *(f"{name} {value:.4f}" for name, value in figures.items() if name.startswith("probe_"))])


def format_seconds(seconds: float) -> str:
    """`1:02:03`."""
    return tqdm.tqdm.format_interval(seconds)


def rows(path: epath.Path) -> list[dict[str, Any]]:
    """The rows of a JSON Lines file of steps, such as `metrics.jsonl`; none where it is absent."""
    found = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue  # cut short when the run was killed
        if isinstance(row, dict) and "step" in row:
            found.append(row)
    return found
