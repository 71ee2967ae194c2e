"""What all command lines share: arguments, the configuration, how they end."""

import argparse
import errno
import gc
import importlib.util
import io
import json
import os
import secrets
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import absl.logging
import ml_collections
from etils import epath

from electra_jax import config_loading, config_values, storage
from electra_jax.config import Config
from electra_jax.errors import OthersFailed, RunFailed, UserError, missing_extra
from electra_jax.tasks import config as task_config
from electra_jax.tasks.config import FinetuneConfig

_OVERRIDE = "--config."
_STATUS = {UserError: 2, RunFailed: 3, OthersFailed: 75}


def run(main: Callable[[list[str]], int | None]) -> NoReturn:
    """Runs a command line: a `UserError` is one line and status 2, a failed run 3, failed others 75, Ctrl-C 130."""
    # Through absl, libraries warn of things that do not concern the user; what does, we say ourselves.
    absl.logging.set_verbosity(absl.logging.ERROR)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # no label is worth a crash in an old locale
    # What the imports have made stays: not having it searched for garbage, over and over while JAX traces, saves 6 % of a start.
    gc.freeze()
    try:
        status = main(sys.argv[1:]) or 0
    except tuple(_STATUS) as error:
        status = _say(error)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        status = 130
    except Exception as error:
        failure = _exhausted(error)
        if failure is None:
            raise
        status = _say(failure)
    sys.stdout.flush()
    sys.exit(status)


def _exhausted(error: Exception) -> RunFailed | None:
    """The failure behind an error that means a full disk or device memory, which every library reports differently; else None."""
    from electra_jax import memory  # not at the top: it loads JAX, which reading a configuration does not need

    text = str(error)
    first = text.splitlines()[0][:200] if text else ""
    if isinstance(error, OSError) and error.errno == errno.ENOSPC or "No space left on device" in text:
        return RunFailed(
            f"a disk is full ({first}); what was saved before is whole, and the same command goes on from it"
        )
    if memory.is_exhausted(error):
        less = (
            "in training, train.gradient_accumulation_steps=2, a smaller batch, mesh.fsdp and, of pretraining, model.remat=full "
            "take less"
        )
        return RunFailed(f"out of device memory ({first}); {less}")
    return None


def _say(error: Exception) -> int:
    """Prints one line; returns the exit status."""
    print("error:", " ".join(str(error).split()), file=sys.stderr)
    return next(status for kind, status in _STATUS.items() if isinstance(error, kind))


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (--help shows the arguments)")  # one line, as any other mistake


def parser(module: str, description: str, with_config: bool = True) -> argparse.ArgumentParser:
    """An argument parser; `--config.SECTION.FIELD=VALUE` is taken by `parse`."""
    epilog = "--config.SECTION.FIELD=VALUE overrides any field of the configuration." if with_config else None
    made = _Parser(prog=f"python -m {module}", description=description, epilog=epilog, allow_abbrev=False)
    if with_config:
        made.add_argument("--config", required=True, metavar="FILE", help="a file of configs/, or one of your own")
    return made


def add_json(made: argparse.ArgumentParser) -> None:
    """Adds `--json`, for `write_json`."""
    made.add_argument("--json", type=output_file, metavar="FILE", help="where the figures go besides the terminal")


def write_json(path: Path | None, figures: dict[str, Any]) -> None:
    """Writes what a command found to the file that `--json` named, if any."""
    if path:
        path.write_text(json.dumps(figures, indent=1) + "\n")


def positive(text: str) -> int:
    """A number above 0, as the type of an argument."""
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"invalid int value: {text!r}") from None
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value}; it must be 1 or more")
    return value


def output_file(text: str) -> Path:
    """A file to be written at the end of the work, as the type of an argument.

    Raises:
      UserError: for a folder, or where its parent is not a folder that can be written to.
    """
    path = Path(text).expanduser()
    if path.is_dir():
        raise UserError(f"{text} is a folder; it must be a file")
    if not os.access(path.absolute().parent, os.W_OK):
        raise UserError(f"{text} cannot be written: {path.absolute().parent} is no folder that can be written to")
    return path


def end_at_once(*_: Any) -> NoReturn:
    """Handles SIGTERM while there is nothing to save: before the first step, and between the runs of several seeds.

    The other processes of a run, if they got no signal themselves, end once this one's heartbeat stops.
    """
    print("preempted with nothing to be saved; the same command goes on", flush=True)
    os._exit(0)


def parse(made: argparse.ArgumentParser, argv: Sequence[str]) -> tuple[argparse.Namespace, list[tuple[str, str]]]:
    """The arguments, and the overrides as (field, text)."""
    overrides, rest = [], []
    pending = iter(argv)
    for argument in pending:
        if argument.startswith(_OVERRIDE):
            name, equals, text = argument.removeprefix(_OVERRIDE).partition("=")
            if not equals:
                text = next(pending, None)
                if text is None:
                    raise UserError(f"{argument} has no value; write {argument}=VALUE")
            overrides.append((name, text))
        else:
            rest.append(argument)
    return made.parse_args(rest), overrides


def arguments(made: argparse.ArgumentParser, argv: Sequence[str]) -> argparse.Namespace:
    """The arguments of a command that has no configuration; raises `UserError` for an override of one."""
    override = next((argument for argument in argv if argument.startswith(_OVERRIDE)), None)
    if override:
        raise UserError(f"{override}: this command has no configuration; leave it out")
    return made.parse_args(argv)


def load_config(path: str, overrides: Sequence[tuple[str, str]]) -> Config:
    """The configuration of `get_config()` in the Python file `path`, with overrides.

    Raises:
      UserError: for a file that is not there or has no `get_config`, and for anything wrong in it.
    """
    return apply_overrides(read_config(path), overrides)


def load_finetune_config(path: str, overrides: Sequence[tuple[str, str]]) -> FinetuneConfig:
    """The configuration of fine-tuning in `FILE` or `FILE:WORD`, with overrides.

    Raises:
      UserError: as `load_config`.
    """
    values = read_config(path)
    for name, text in overrides:
        values = config_values.override(values, name, text, FinetuneConfig)
    return task_config.from_dict(values)


def split_word(path: str) -> tuple[str, str]:
    """`FILE.py:WORD` as (file, word); the word is empty where there is none."""
    name, _, word = path.rpartition(":")
    return (name, word) if name.endswith(".py") else (path, "")


def run_name(file: str, word: str) -> str:
    """What a run of a configuration is called where nobody names it: by the file, and by its word or task, if there is one."""
    return "-".join(part.replace("/", "-").replace(",", "-") for part in (Path(file).stem, word) if part)


def read_config(path: str) -> dict[str, Any]:
    """What `get_config()` of the Python file `path` returns, as nested values; `FILE:WORD` calls `get_config(WORD)`.

    Raises:
      UserError: for a file that is not there or has no `get_config`.
    """
    name, word = split_word(path)
    file, words = Path(name), [word] if word else []
    if not file.is_file():
        raise UserError(
            f"--config={path}: no such file"
            + ("" if path.endswith(".py") else "; give a .py file such as configs/small.py")
        )
    spec = importlib.util.spec_from_file_location(file.stem, file)
    if spec is None:
        raise UserError(f"--config={path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        if not hasattr(module, "get_config"):
            raise UserError(f"--config={path} has no function get_config()")
        values = module.get_config(*words)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"--config={path} cannot be run: {type(error).__name__}: {error}") from error
    if not isinstance(values, ml_collections.ConfigDict):
        raise UserError(
            f"--config={path}: get_config() returned a {type(values).__name__}; it must be an ml_collections.ConfigDict"
        )
    return values.to_dict()


def apply_overrides(values: dict[str, Any], overrides: Sequence[tuple[str, str]]) -> Config:
    """A configuration from nested values and overrides."""
    for name, text in overrides:
        values = config_values.override(values, name, text, Config)
    config = config_loading.from_dict(values)
    directory("config.data.directory", config.data.directory)
    if storage.is_remote(config.tokenizer.vocab_file):
        directory("config.tokenizer.vocab_file", config.tokenizer.vocab_file)
    for part in config.data.source.split(","):
        if storage.is_remote(part):
            directory("config.data.source", part.strip())
    return config


def local_path(name: str, value: str) -> Path:
    """`value` as a path on this machine; raises `UserError` for one on remote storage."""
    if storage.is_remote(value):
        raise UserError(f"{name}={value}: this must be a path on this machine")
    return Path(value).expanduser()


def directory(name: str, value: str) -> epath.Path:
    """A path on this machine or in a bucket; raises `UserError` for one that cannot be reached."""
    if not storage.is_remote(value):
        return storage.absolute(value)
    if not value.startswith("gs://"):
        raise UserError(f"{name}={value}: of remote storage, gs://BUCKET/PATH alone is supported")
    if importlib.util.find_spec("gcsfs") is None:
        raise missing_extra(f"{name}={value}", "gcs")
    return epath.Path(value)


def make_directory(name: str, path: epath.Path) -> None:
    """Makes a directory and those above it.

    Raises:
      UserError: where that cannot be.
      OthersFailed: where a bucket cannot be reached.
    """
    probe = path / f".probe-{secrets.token_hex(8)}"  # in containers, all processes have the same number
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe.write_text("")
        probe.unlink(missing_ok=True)
    except Exception as error:  # each kind of storage has its own
        why = getattr(error, "strerror", None) or str(error) or type(error).__name__
        if storage.is_unreachable(error):
            raise OthersFailed(f"{name}={path} cannot be reached ({why})") from None
        raise UserError(f"{name}={path} cannot be written to ({why})") from None


def use_compilation_cache(place: epath.Path) -> None:
    """Keeps compiled programs, so that a run that is started again starts quickly.

    The environment's JAX_COMPILATION_CACHE_DIR takes precedence.
    """
    import jax

    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(storage.absolute(place)))
