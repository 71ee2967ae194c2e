"""Where figures go: `metrics.jsonl`, TensorBoard, the terminal."""

import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import tensorboardX
import tqdm

# The figures of the console line, in its order, with their form.
_SHOWN = {
    "loss": "{:.3f}",
    "masked_lm_loss": "{:.3f}",
    "disc_loss": "{:.4f}",
    "masked_lm_accuracy": "{:.3f}",
    "disc_auc": "{:.3f}",
    "disc_recall": "{:.3f}",
    "learning_rate": "{:.2e}",
    "tokens_per_second": "{:,.0f}",
    "utilisation": "{:.1%}",
}


class Writer(Protocol):
    """Takes the figures of a step, once for each step."""

    def write(self, step: int, figures: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class JsonLines:
    """`metrics.jsonl`: a JSON object a line, each step once, in ascending order."""

    def __init__(self, path: Path, resume_step: int):
        """Cuts what an interrupted run wrote beyond `resume_step`, a broken last line included."""
        kept = [line for line in _lines(path) if (step := _step_of(line)) is not None and step <= resume_step]
        partial = path.with_suffix(".partial")
        partial.write_text("".join(kept))
        partial.replace(path)
        self._file = path.open("a", buffering=1)

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """A figure that is not finite is written as null, since JSON has no other."""
        row = {name: value if math.isfinite(value) else None for name, value in figures.items()}
        self._file.write(json.dumps({"step": step, **row}) + "\n")

    def close(self) -> None:
        self._file.close()


class TensorBoard:
    """TensorBoard events, without TensorFlow."""

    def __init__(self, directory: Path, resume_step: int):
        # What an interrupted run wrote beyond `resume_step` is hidden by TensorBoard.
        self._writer = tensorboardX.SummaryWriter(str(directory), purge_step=resume_step + 1, write_to_disk=True)

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(name if "/" in name else f"train/{name}", value, step)
        self._writer.flush()  # a run that is killed keeps what it reported

    def close(self) -> None:
        self._writer.close()


class Console:
    """A live bar on a terminal; one plain line a report in a file or pipe."""

    def __init__(self, total_steps: int, initial_step: int):
        self._live = sys.stderr.isatty()
        self._bar = tqdm.tqdm(
            total=total_steps, initial=initial_step, unit="step", disable=not self._live, dynamic_ncols=True
        )
        self._total = total_steps

    def advance(self, step: int) -> None:
        """Moves the bar to `step`."""
        self._bar.update(step - self._bar.n if self._live else 0)

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        text = format_figures(figures)
        if self._live:
            self._bar.set_postfix_str(text)
        held_out = format_figures({k.removeprefix("eval/"): v for k, v in figures.items() if k.startswith("eval/")})
        if held_out:
            self.say(f"step {step:,}/{self._total:,}  held out: {held_out}")
        if text and not self._live:
            left = f"  {format_seconds(figures['seconds_left'])} left" if "seconds_left" in figures else ""
            print(f"step {step:,}/{self._total:,}  {text}{left}", flush=True)

    def say(self, text: str) -> None:
        """A line of its own."""
        if self._live:
            self._bar.write(text, file=sys.stderr)
        else:
            print(text, flush=True)

    def close(self) -> None:
        self._bar.close()


def format_figures(figures: Mapping[str, float]) -> str:
    """The figures worth a place on one line."""
    return "  ".join(f"{name} {form.format(figures[name])}" for name, form in _SHOWN.items() if name in figures)


def format_seconds(seconds: float) -> str:
    """`1:02:03`."""
    return tqdm.tqdm.format_interval(seconds)


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines(keepends=True) if path.exists() else []


def _step_of(line: str) -> int | None:
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError, TypeError):
        return None  # cut short when the run was killed
