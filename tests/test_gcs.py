"""Work directories in a bucket, against an emulator of Cloud Storage."""

import asyncio
import gzip
import json
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import aiohttp
import gcsfs.retry
import pyarrow
import pyarrow.parquet
import pytest
import requests

import task_data
from conftest import ROOT, SMALL, config_file, process_env, run_module
from electra_jax import storage
from test_run import metrics, numbers

pytestmark = pytest.mark.slow


class Bucket:
    """The emulator, and what is in its bucket."""

    def __init__(self, port: int):
        self.address = f"http://localhost:{port}"
        # TensorFlow, which is installed here, knows no address but Google's, so nothing may use it for gs:// paths.
        self.env = {"STORAGE_EMULATOR_HOST": self.address, "TENSORSTORE_GCS_HTTP_URL": self.address,
                    "CLOUD_STORAGE_EMULATOR_ENDPOINT": self.address, "GOOGLE_CLOUD_PROJECT": "p"}  # fmt: skip

    def names(self) -> list[str]:
        with urllib.request.urlopen(f"{self.address}/storage/v1/b/bucket/o") as answer:
            return [item["name"] for item in json.load(answer).get("items", [])]

    def bytes(self, name: str) -> bytes:
        quoted = urllib.request.quote(name, safe="")
        with urllib.request.urlopen(f"{self.address}/storage/v1/b/bucket/o/{quoted}?alt=media") as answer:
            return answer.read()

    def read(self, name: str) -> str:
        return self.bytes(name).decode()

    def write(self, name: str, data: bytes) -> None:
        quoted = urllib.request.quote(name, safe="")
        request = urllib.request.Request(
            f"{self.address}/upload/storage/v1/b/bucket/o?uploadType=media&name={quoted}",
            data=data, method="POST", headers={"Content-Type": "application/octet-stream"},
        )  # fmt: skip
        urllib.request.urlopen(request).close()


@pytest.fixture(scope="module")
def bucket():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, ROOT / "tests" / "gcs_emulator.py", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    made = Bucket(port)
    for _ in range(100):
        try:
            made.names()
            break
        except OSError:
            time.sleep(0.1)
    yield made
    process.kill()
    process.wait()


@pytest.fixture(scope="module")
def place(tmp_path_factory, corpus_file) -> Path:
    folder = tmp_path_factory.mktemp("gcs")
    config_file(folder / "small.py", {**SMALL, "data": {**SMALL["data"], "source": str(corpus_file)}})
    return folder


@pytest.fixture(scope="module")
def here(place) -> Path:
    """A run on this machine, to compare with."""
    local = run_module("train", "--config=small.py", "--workdir=here", cwd=place)
    assert local.returncode == 0, local.stderr
    return place / "here"


def test_a_run_in_a_bucket_is_preempted_resumed_evaluated_and_exported(place, here, bucket):
    there = "--workdir=gs://bucket/runs/there"
    command = [sys.executable, "-m", "electra_jax.train", "--config=small.py", there]
    process = subprocess.Popen(
        command, cwd=place, env=process_env(bucket.env), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    for line in process.stdout:
        if line.startswith("step 6/"):
            process.send_signal(signal.SIGTERM)
            break
    output = process.communicate(timeout=120)[0]
    step = re.search(r"preempted at step (\d+)", output).group(1)
    assert process.returncode == 0 and f"runs/there/checkpoints/{step}/commit_success.txt" in bucket.names(), output
    # Buckets cannot rename: a save that was killed leaves a folder with its final name, but without Orbax's marker file.
    bucket.write(f"runs/there/checkpoints/{int(step) + 1}/params/x", b"x")
    again = run_module("train", "--config=small.py", there, cwd=place, env=bucket.env)
    assert again.returncode == 0, again.stdout + again.stderr
    assert f"going on from gs://bucket/runs/there/checkpoints/{step}\n" in again.stdout
    rows = [json.loads(line) for line in bucket.read("runs/there/metrics.jsonl").splitlines()]
    assert numbers(rows) == numbers(metrics(here))
    for name in ("run.json", "config.json"):
        json.loads(bucket.read(f"runs/there/{name}"))
    assert any(name.startswith("runs/there/tensorboard/events.out.tfevents") for name in bucket.names())
    evaluated = run_module("evaluate", there, "--json=e.json", cwd=place, env=bucket.env)
    assert evaluated.returncode == 0, evaluated.stderr
    assert json.loads((place / "e.json").read_text())["disc_loss"] == pytest.approx(
        rows[-1]["eval/disc_loss"], rel=1e-6
    )
    exported = run_module("export", there, "--out=exported", cwd=place, env=bucket.env)
    assert exported.returncode == 0, exported.stderr
    assert (place / "exported" / "discriminator" / "model.safetensors").exists()


def test_fine_tuning_in_a_bucket(place, here, bucket):
    """A second seed is added to the first, and all files, the model's folder included, are as on local disk."""
    task_data.make(place / "task", "classification")
    command = ["finetune", f"--config={ROOT / 'configs' / 'finetune' / 'jsonl.py'}", "--config.task.path=task",
               f"--init={here}", "--config.task.max_length=32", "--config.train.epochs=1.0", "--config.max_restarts=0"]  # fmt: skip
    local = run_module(*command, "--workdir=tuned", "--config.seeds=2", cwd=place)
    assert local.returncode == 0, local.stderr
    for seeds in (1, 2):
        there = run_module(
            *command, "--workdir=gs://bucket/tuned", f"--config.seeds={seeds}", cwd=place, env=bucket.env
        )
        assert there.returncode == 0, there.stderr
    assert (
        there.stdout.count("validation accuracy") == local.stdout.count("validation accuracy") - 1
    )  # one seed was done already
    assert there.stdout.splitlines()[-1] == local.stdout.splitlines()[-1]
    assert (
        json.loads(bucket.read("tuned/results.json"))["values"]
        == json.loads((place / "tuned" / "results.json").read_text())["values"]
    )
    model = {path.name for path in (place / "tuned" / "model").iterdir()}
    assert {name.removeprefix("tuned/model/") for name in bucket.names() if name.startswith("tuned/model/")} == model
    assert bucket.bytes("tuned/model/model.safetensors") == (place / "tuned/model/model.safetensors").read_bytes()
    assert bucket.read("tuned/predictions-test.jsonl") == (place / "tuned" / "predictions-test.jsonl").read_text()
    assert not [name for name in bucket.names() if name.startswith(("tuned/seed-0/checkpoints", "tuned/seed-0/best"))]


@pytest.mark.parametrize(
    ("workdir", "part"),
    [("s3://bucket/x", "gs://BUCKET/PATH alone"), ("gs://no-such-bucket/x", "cannot be written to")],
)
def test_buckets_that_cannot_be_used(place, bucket, workdir, part):
    done = run_module("train", "--config=small.py", f"--workdir={workdir}", cwd=place, env=bucket.env)
    assert done.returncode == 2, done.stdout + done.stderr
    assert part in done.stderr and done.stderr.count("error: ") == 1


def test_a_bucket_that_cannot_be_reached_is_worth_another_try():
    """One that was reached and refused is not. The errors are the libraries' own, from real connections where possible."""

    async def get(address: str) -> None:
        async with aiohttp.ClientSession() as session, session.get(address):
            pass

    with socket.socket() as bound:  # and does not listen
        bound.bind(("localhost", 0))
        nobody = f"http://localhost:{bound.getsockname()[1]}"
        for ask in (
            lambda: requests.get(nobody),
            lambda: asyncio.run(get(nobody)),
            lambda: bound.connect(("localhost", 9)),
        ):
            with pytest.raises(OSError) as raised:
                ask()
            assert storage.is_unreachable(raised.value)
    errors = [({"code": 503}, True), ({"code": 429}, True), ({"code": 404}, False), ({"code": 401}, False), ({}, False)]
    for said, passes in errors:
        assert storage.is_unreachable(gcsfs.retry.HttpError(said)) == passes
    assert not storage.is_unreachable(FileNotFoundError("x")) and not storage.is_unreachable(PermissionError("x"))


def test_text_and_records_in_a_bucket(place, bucket, corpus_file):
    """Reads text of each kind from the bucket, and writes and reads records there: the same figures as on local disk."""
    texts = corpus_file.read_text().split("\n\n")
    table = pyarrow.table({"text": texts[200:]})
    buffer = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(table, buffer, row_group_size=50)
    files = {
        "one.txt": "\n\n".join(texts[:100]).encode(),
        "two.jsonl.gz": gzip.compress("".join(json.dumps({"text": text}) + "\n" for text in texts[100:200]).encode()),
        "three.parquet": buffer.getvalue().to_pybytes(),
    }
    (place / "text").mkdir()
    for name, data in files.items():
        (place / "text" / name).write_bytes(data)
        bucket.write(f"text/{name}", data)
    settings = [
        "--config=small.py",
        "--config.data.shard_bytes=40000",
        "--config.data.shuffle=blocks",
        "--config.data.shuffle_block=32",
    ]
    parts = ("o*.txt", "two.jsonl.gz", "three.parquet")
    local = run_module(
        "train", *settings, "--workdir=from_disk", f"--config.data.source={','.join(f'text/{p}' for p in parts)}",
        "--config.data.directory=on_disk", cwd=place,
    )  # fmt: skip
    assert local.returncode == 0, local.stderr
    there = [*settings, f"--config.data.source={','.join(f'gs://bucket/text/{p}' for p in parts)}",
             "--config.data.directory=gs://bucket/data"]  # fmt: skip
    remote = run_module("train", *there, "--workdir=from_bucket", cwd=place, env=bucket.env)
    assert remote.returncode == 0, remote.stderr[-3000:]
    assert numbers(metrics(place / "from_bucket")) == numbers(metrics(place / "from_disk"))
    records = [name for name in bucket.names() if ".array_record-" in name]
    assert len(records) == 2 * len(list(place.glob("on_disk/electra_records/*/*/*train.array_record-*"))) > 4
    for name in records:
        (twin,) = place.glob(f"on_disk/electra_records/*/*/{Path(name).name}")
        assert twin.stat().st_size == len(bucket.bytes(name))
    again = run_module("prepare", *there, cwd=place, env=bucket.env)
    assert again.returncode == 0 and "ready: gs://bucket/data/" in again.stdout and "preparing" not in again.stdout
    bucket.write("text/one.txt", b"Another text.")
    changed = run_module("prepare", *there, cwd=place, env=bucket.env)
    assert changed.returncode == 2 and "changed since gs://bucket/data" in changed.stderr


def test_data_sets_in_a_bucket(place, bucket, corpus_file):
    """Of Hugging Face and of TFDS (in both its formats), read directly from the bucket."""
    import datasets
    import tensorflow_datasets as tfds

    texts = corpus_file.read_text().split("\n\n")
    datasets.Dataset.from_dict({"text": texts[:150]}).save_to_disk(place / "sets" / "hf")
    for name, file_format, part in (("a", "array_record", texts[150:300]), ("b", "tfrecord", texts[300:])):
        tfds.dataset_builders.store_as_tfds_dataset(
            name=name, version="1.0.0", data_dir=place / "sets", file_format=file_format,
            features=tfds.features.FeaturesDict({"text": tfds.features.Text()}),
            split_datasets={"train": [(i, {"text": text}) for i, text in enumerate(part)]},
        )  # fmt: skip
    for path in (place / "sets").rglob("*"):
        if path.is_file():
            bucket.write(f"sets/{path.relative_to(place / 'sets')}", path.read_bytes())
    cards = []
    for where in ("sets", "gs://bucket/sets"):
        source = ",".join(f"{where}/{name}" for name in ("hf", "a/1.0.0", "b/1.0.0"))
        done = run_module(
            "prepare", "--config=small.py", f"--config.data.source={source}", f"--config.data.directory={where[:2]}_data",
            cwd=place, env=bucket.env,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        (card,) = place.glob(f"{where[:2]}_data/electra_records/*/*/data_card.json")
        cards.append(json.loads(card.read_text()))
    assert cards[0]["documents"] == cards[1]["documents"] == len(texts)
    for name in ("tokens", "words", "examples", "sequences", "documents_by_tokens"):
        assert cards[0][name] == cards[1][name]
