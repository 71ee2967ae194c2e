"""Runs the stages of preparing data: a shard at a time on the cores of this machine, or as a Beam pipeline on many.

A stage leaves its results as files, so nothing comes back from a worker but the word that it is done.
"""

import concurrent.futures
import multiprocessing
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import tqdm

from electra_jax import storage
from electra_jax.errors import UserError, missing_extra

Say = Callable[[str], None]
# About the most memory that a worker takes.
_WORKER_BYTES = 2**30


class Stage(Protocol):
    """What is done to each shard of a corpus. It can be pickled."""

    def done(self, shard: int) -> bool: ...

    def read(self, shard: int) -> None: ...


# Runs a stage on the shards that it has not done: (stage, number of shards, its name in messages).
Runner = Callable[[Stage, int, str], None]


def missing(stage: Stage, shards: int) -> list[int]:
    """The shards that a stage has not been through."""
    return [shard for shard, done in enumerate(storage.in_parallel(stage.done, range(shards))) if not done]


def _workers() -> int:
    """How many this machine, or the container, has cores and memory for."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, memory() // _WORKER_BYTES))


def memory() -> int:
    """Bytes of memory that this machine, or the container, has."""
    there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.exists() else "max"
    return min(there, int(text)) if text.isdecimal() else there


def locally(stage: Stage, shards: int, what: str) -> None:
    """Runs a stage on all cores of this machine, in worker processes if more than one shard is left.

    Raises:
      UserError: from the first shard to fail; the shards under way are abandoned, as on Ctrl-C.
    """
    left = missing(stage, shards)
    workers = min(_workers(), len(left))
    with _Progress(len(left), what) as progress:
        if workers <= 1:
            for shard in left:  # the tokenizer uses all cores by itself
                stage.read(shard)
                progress.update()
            return
        with concurrent.futures.ProcessPoolExecutor(workers, _forking(), _begin_worker) as pool:
            try:
                for done in concurrent.futures.as_completed([pool.submit(stage.read, shard) for shard in left]):
                    done.result()
                    progress.update()
            except concurrent.futures.process.BrokenProcessPool:
                raise UserError(
                    f"{what}: one of {workers} workers was killed, maybe for lack of memory; the same command goes on from there, "
                    "and under `taskset --cpu-list 0-3` uses four workers"
                ) from None
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                for worker in multiprocessing.active_children():
                    worker.terminate()
                raise


def _forking() -> multiprocessing.context.BaseContext:
    """Workers are forked from a process that imports what is imported here, once for all stages, but has none of JAX's threads."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([name for name in sys.modules if name.partition(".")[0] == "electra_jax"])
    return context


class _Progress(tqdm.tqdm):
    """A bar on a terminal; in a file or pipe, a line a minute."""

    def __init__(self, total: int, what: str):
        super().__init__(total=total, desc=what, unit=" shards", disable=not sys.stderr.isatty())
        self._what, self._total, self._finished = what, total, 0
        self._begun = self._said = time.monotonic()

    def update(self) -> None:
        super().update()
        self._finished += 1
        now = time.monotonic()
        if self.disable and now - self._said > 60:
            left = self.format_interval((now - self._begun) / self._finished * (self._total - self._finished))
            print(f"{self._what}: {self._finished:,} of {self._total:,} shards, {left} left", flush=True)
            self._said = now


def beam(options: str) -> Runner:
    """As an Apache Beam pipeline, with `options` as Beam spells them: `--runner=DataflowRunner --project=...`."""
    try:
        import apache_beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError:
        raise missing_extra("--beam", "beam") from None

    def run(stage: Stage, shards: int, what: str) -> None:
        left = missing(stage, shards)
        if not left:
            return
        with apache_beam.Pipeline(options=PipelineOptions(shlex.split(options))) as pipeline:
            (
                pipeline
                | f"shards to be {what}" >> apache_beam.Create(left)
                | apache_beam.Reshuffle()  # else one worker would get them all
                | what >> apache_beam.Map(stage.read)
            )
        if failed := missing(stage, shards):
            raise UserError(
                f"{what}: {len(failed)} of {shards} shards are missing after the pipeline; run it again, and where its workers are "
                "other machines, with a config.data.directory that all of them share, such as gs://"
            )

    return run


def _begin_worker() -> None:
    """Makes a worker end with its parent, however that ends, leave Ctrl-C to it, and use one core."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def end_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
