"""Several real processes as one run, for the tests of such runs."""

import socket
import subprocess
import time
from pathlib import Path

from commands import Command
from conftest import SMALL, config_file, process_env

MESH = ["--config.mesh.fsdp=2"]
LONG = ["--config.train.num_train_steps=100000", "--config.evaluation.interval_steps=100000"]


def make_place(folder: Path, corpus_file: Path) -> Path:
    """A folder with a configuration file; runs share the data sets made there and, whatever their length, the compiled programs."""
    values = {**SMALL, "data": {**SMALL["data"], "source": str(corpus_file)}}
    values["optimizer"] = {**SMALL["optimizer"], "schedule": "wsd"}
    config_file(folder / "small.py", values)
    return folder


class Group:
    """The processes of a run, four devices in all; each writes to a log of its own."""

    def __init__(self, place: Path, workdir: str | list[str], count: int, *overrides: str, module: str = "train"):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        env = process_env({
            "JAX_NUM_CPU_DEVICES": str(4 // count), "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
        })  # fmt: skip
        workdirs = [workdir] * count if isinstance(workdir, str) else workdir
        self.processes, self.workdir = [], place / workdirs[0]
        for index in range(count):
            flags = [f"--coordinator=localhost:{port}", f"--num_processes={count}", f"--process_id={index}"]
            words = [f"--workdir={workdirs[index]}", *(flags if count > 1 else []), *overrides]
            words += [] if any(one.startswith("--config=") for one in overrides) else ["--config=small.py"]
            log = place / f"{workdirs[0]}-{port}-{index}.log"
            self.processes.append(Command(module, *words, cwd=place, env=env, output=log))

    def texts(self) -> list[str]:
        return [process.text() for process in self.processes]

    def wait(self, seconds: float = 600) -> list[int]:
        """The exit statuses."""
        end = time.monotonic() + seconds
        try:
            return [process.wait(max(0.1, end - time.monotonic())) for process in self.processes]
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running: {self.texts()}") from None
        finally:
            self.kill()

    def wait_for(self, condition, seconds: float = 600) -> None:
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end or any(process.poll() is not None for process in self.processes):
                self.kill()
                raise AssertionError(f"ended or timed out before the moment came: {self.texts()}")
            time.sleep(0.01)

    def wait_for_step(self, step: int) -> None:
        path = self.workdir / "metrics.jsonl"
        self.wait_for(lambda: path.exists() and len(path.read_text().splitlines()) >= step // 2)

    def kill(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()
