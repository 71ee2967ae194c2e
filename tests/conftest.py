"""Shared fixtures. Tests run on eight simulated CPU devices; most use one of them."""

import gc
import importlib.metadata
import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

# Compiling takes most of the tests' time, while the programs run only for a moment: without optimisation it is faster.
# XLA's older code generator takes a third of the time of the newer one; from jaxlib 0.11 on there is no choice.
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=8",
        "--xla_backend_optimization_level=0",
        "--xla_cpu_use_fusion_emitters=false" if importlib.metadata.version("jaxlib") < "0.11" else "",
    ]
)
os.environ["JAX_PLATFORMS"] = "cpu"
# Some containers set this: each of the hundreds of processes that tests start would spend seconds recompiling all packages.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

import jax
import numpy as np
import pytest

from commands import Command
from electra_jax import config as config_lib
from electra_jax import config_loading
from electra_jax.data import build, pipeline, readers, sources
from electra_jax.training import partitioning
from electra_jax.training.setup import Setup

# Triton, which torch imports where it is installed, crashes in a process that has loaded TensorFlow; nothing here uses it.
sys.modules["triton"] = None

ROOT = Path(__file__).parent.parent
_CACHE = Path(os.environ.get("ELECTRA_JAX_TEST_CACHE", ROOT / ".pytest_cache" / "compiled"))

jax.config.update("jax_compilation_cache_dir", str(_CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)

# Small enough to compile in seconds on two cores: the tests of models and meshes cover several layers.
SMALL = {
    "data": {"max_seq_length": 32, "validation_fraction": 0.05},
    "tokenizer": {"vocab_size": 512},
    "model": {
        "embedding_size": 16,
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "generator_hidden_size": 0.5,
        "max_position_embeddings": 32,
    },
    "optimizer": {"learning_rate": 1e-3, "warmup_steps": 5},
    "train": {"batch_size": 8, "num_train_steps": 20},
    "evaluation": {"interval_steps": 10, "batch_size": 8, "max_records": 24},
    "checkpoint": {"save_interval_steps": 5},
    "reporting": {"interval_steps": 2},
}


@pytest.fixture
def as_on_accelerators(monkeypatch):
    """Makes code that differs by platform take its TPU branch, on this CPU."""

    def on_tpu(*args, default, tpu=None, cpu=None):
        return (tpu or default)(*args)

    monkeypatch.setattr(jax.lax, "platform_dependent", on_tpu)


def small_config(**sections) -> config_lib.Config:
    """The test configuration with some fields of some sections changed."""
    values = {name: dict(section) for name, section in SMALL.items()}
    for name, changes in sections.items():
        values[name] = {**values.get(name, {}), **changes} if isinstance(changes, dict) else changes
    return config_loading.from_dict(values)


def pytest_collection_finish() -> None:
    gc.freeze()  # as `cli.run` does


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first, so that where workers share out the files, none starts a long one at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def corpus_file(tmp_path_factory) -> Path:
    """About 400 documents of the embedded corpus as plain text."""
    path = tmp_path_factory.mktemp("text") / "corpus.txt"
    path.write_text("\n\n".join(embedded_documents(400)))
    return path


def embedded_documents(count: int) -> list[str]:
    """The first documents of the embedded corpus."""
    return list(itertools.islice(documents(config_lib.DataConfig()), count))


def documents(data: config_lib.DataConfig) -> Iterator[str | readers.Broken]:
    """Every document of a source."""
    for corpus in sources.corpora(data):
        for pieces in sources.make_plan(corpus, data.shard_bytes).shards:
            yield from readers.documents(pieces, data.document_separator)


@pytest.fixture(scope="session")
def data_directory(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("datasets")


@pytest.fixture(scope="session")
def prepared(corpus_file, data_directory) -> build.Prepared:
    """The test configuration's data set."""
    return build.prepare(with_data(small_config(), corpus_file, data_directory), say=lambda text: None)


def first_batch(config: config_lib.Config, prepared: build.Prepared) -> np.ndarray:
    """The rows of a run's first batch."""
    return next(pipeline.training_batches(sequences(config, prepared), 0, config.train.batch_size))


def sequences(config: config_lib.Config, prepared: build.Prepared) -> pipeline.Sequences:
    """The training sequences of a run."""
    return pipeline.Sequences(prepared.sets[config.data.max_seq_length], config.data, config.seed)


def with_data(config: config_lib.Config, corpus_file: Path, directory: Path) -> config_lib.Config:
    """`config` on the test corpus."""
    values = config_loading.to_dict(config)
    values["data"] |= {"source": str(corpus_file), "directory": str(directory)}
    return config_loading.from_dict(values)


def make_setup(config: config_lib.Config, prepared: build.Prepared, num_devices: int = 1) -> Setup:
    """The setup of `config` on some of the simulated devices."""
    mesh = partitioning.make_mesh(config.mesh, jax.devices()[:num_devices])
    return Setup.of(config, prepared.tokenizer.special, prepared.tokenizer.vocab_size, mesh)


def config_file(path: Path, values: dict) -> Path:
    """Writes a configuration file, as a user would have one."""
    path.write_text(
        "import json\nimport ml_collections\n\n\ndef get_config():\n"
        f"    return ml_collections.ConfigDict(json.loads({json.dumps(values)!r}))\n"
    )
    return path


def run_module(
    module: str, *arguments, cwd: Path, env: dict[str, str] | None = None, input: str = ""
) -> subprocess.CompletedProcess:
    """Runs `python -m electra_jax.MODULE` in `cwd` to its end."""
    with tempfile.TemporaryDirectory() as folder:
        stdin, output, errors = (Path(folder) / name for name in ("stdin", "output", "errors"))
        stdin.write_text(input)
        command = Command(module, *arguments, cwd=cwd, env=process_env(env), output=output, errors=errors, stdin=stdin)
        try:
            status = command.wait(600)
        finally:
            command.kill()
        return subprocess.CompletedProcess([module, *arguments], status, output.read_text(), errors.read_text())


_ONE_AFTER_THE_OTHER = """
import contextlib, importlib, json, sys, tempfile
from electra_jax import cli
commands, until_failure = json.load(sys.stdin)
for words in commands:
    if "<" in words:
        sys.stdin = open(words.pop())
        words.pop()
    sys.argv = words
    # A file, as `faulthandler` wants one.
    with tempfile.TemporaryFile("w+") as said, contextlib.redirect_stderr(said):
        try:
            cli.run(importlib.import_module(f"electra_jax.{words[0]}").main)
        except SystemExit as end:
            said.seek(0)
            print("ended:", json.dumps([end.code, said.read()]), flush=True)
            if until_failure and end.code:
                break
"""


def in_one_process(commands: list[list[str]], cwd: Path, until_failure: bool = False) -> list[tuple[int, str]]:
    """Runs commands, `[module, *arguments]`, as from a command line; returns the exit status and standard error of each.

    They share one process, as starting one takes longer than most of them. A final `<`, `FILE` makes FILE standard input.
    """
    done = subprocess.run(
        [sys.executable, "-c", _ONE_AFTER_THE_OTHER], cwd=cwd, env=process_env(),
        input=json.dumps([commands, until_failure]), capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    found = [line.removeprefix("ended: ") for line in done.stdout.splitlines() if line.startswith("ended: ")]
    ended = [tuple(json.loads(line)) for line in found]
    assert len(ended) == len(commands) or (until_failure and ended and ended[-1][0]), done.stdout + done.stderr
    return ended


def process_env(extra: dict[str, str] | None = None) -> dict[str, str]:
    """The environment of a run: one device, the package importable, compiled programs shared and, as here, not optimised."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    cache = {"JAX_COMPILATION_CACHE_DIR": str(_CACHE), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    cache["XLA_FLAGS"] = os.environ["XLA_FLAGS"].replace("--xla_force_host_platform_device_count=8", "")
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**kept, **cache, "PYTHONPATH": path, **(extra or {})}
