"""The package's command lines in processes of their own, each forked from one that has done the imports.

These take longer than most of what the tests run. A forked process is as real as one started from a shell: it has its own
devices, signals, environment and exit status.
"""

import ast
import atexit
import contextlib
import importlib
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

MODULES = ("compile", "evaluate", "export", "finetune", "minimal_pairs", "predict", "prepare", "train")

_forking = multiprocessing.get_context("forkserver")
_forking.set_forkserver_preload(["sklearn.metrics", "scipy.stats", *(f"electra_jax.{name}" for name in MODULES)])


class Command:
    """`python -m electra_jax.MODULE ARGUMENTS` in `cwd`, with some of the methods of `subprocess.Popen`.

    Standard output and error are appended to files, to one if they are the same.
    """

    def __init__(self, module: str, *arguments, cwd: Path, env: dict[str, str], output: Path, errors: Path | None = None,
                 stdin: Path = Path(os.devnull)):  # fmt: skip
        self.path = output
        words, files = (
            [str(argument) for argument in arguments],
            [str(path) for path in (stdin, output, errors or output)],
        )
        self._process = _forking.Process(target=_run, args=(module, words, str(cwd), env, files))
        self._process.start()
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(str(self.pid), timeout)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def text(self) -> str:
        """What it has printed so far."""
        return self.path.read_text() if self.path.exists() else ""

    def output(self, timeout: float = 240) -> str:
        """Waits for its end; what it printed."""
        self.wait(timeout)
        return self.text()


def _run(module: str, arguments: list[str], cwd: str, env: dict[str, str], files: list[str]) -> None:
    """In the new process: what `python -m` does, but for the imports."""
    import jax

    from electra_jax import cli

    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    for name, text in env.items():  # JAX has read those of the process that this was forked from
        if name.startswith("JAX_") and hasattr(jax.config, name.lower()):
            value = text
            with contextlib.suppress(ValueError, SyntaxError):
                value = ast.literal_eval(text)
            jax.config.update(name.lower(), value)
    for fd, (path, mode) in enumerate(zip(files, ("rb", "ab", "ab"))):
        with open(path, mode) as file:
            os.dup2(file.fileno(), fd)
    sys.stdin = os.fdopen(0, closefd=False)
    sys.stdout.reconfigure(line_buffering=True)
    sys.path[0] = cwd
    sys.argv = [f"{module}.py", *arguments]
    try:
        cli.run(importlib.import_module(f"electra_jax.{module}").main)
    finally:
        atexit._run_exitfuncs()  # processes of `multiprocessing` end without them
