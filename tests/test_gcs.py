"""Work directories in a bucket, against an emulator of Cloud Storage."""

import json
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from conftest import ROOT, SMALL, config_file, process_env, run_module
from test_run import metrics, numbers

pytestmark = pytest.mark.slow


class Bucket:
    """The emulator, and what is in its bucket."""

    def __init__(self, port: int):
        self.address = f"http://localhost:{port}"
        # TensorFlow, where it is installed, would be asked for gs:// paths, and knows no other address.
        self.env = {"STORAGE_EMULATOR_HOST": self.address, "TENSORSTORE_GCS_HTTP_URL": self.address,
                    "GOOGLE_CLOUD_PROJECT": "p", "EPATH_USE_TF": "false"}  # fmt: skip

    def names(self) -> list[str]:
        with urllib.request.urlopen(f"{self.address}/storage/v1/b/bucket/o") as answer:
            return [item["name"] for item in json.load(answer).get("items", [])]

    def read(self, name: str) -> str:
        quoted = urllib.request.quote(name, safe="")
        with urllib.request.urlopen(f"{self.address}/storage/v1/b/bucket/o/{quoted}?alt=media") as answer:
            return answer.read().decode()


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


def test_a_run_in_a_bucket_is_preempted_resumed_evaluated_and_exported(place, bucket):
    local = run_module("train", "--config=small.py", "--workdir=here", cwd=place)
    assert local.returncode == 0, local.stderr
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
    again = run_module("train", "--config=small.py", there, cwd=place, env=bucket.env)
    assert again.returncode == 0, again.stdout + again.stderr
    assert f"going on from gs://bucket/runs/there/checkpoints/{step}" in again.stdout
    rows = [json.loads(line) for line in bucket.read("runs/there/metrics.jsonl").splitlines()]
    assert numbers(rows) == numbers(metrics(place / "here"))
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


def test_a_checkpoint_that_was_not_finished_is_passed_over(place, bucket):
    """A bucket cannot rename: the folder of a save that was killed has the name of a whole one, but not Orbax's mark."""
    steps = sorted({int(name.split("/")[3]) for name in bucket.names() if name.startswith("runs/there/checkpoints/")})
    request = urllib.request.Request(
        f"{bucket.address}/upload/storage/v1/b/bucket/o?uploadType=media&name=runs/there/checkpoints/{steps[-1] + 5}/params/x",
        data=b"x", method="POST", headers={"Content-Type": "text/plain"},
    )  # fmt: skip
    urllib.request.urlopen(request).close()
    longer = f"--config.train.num_train_steps={steps[-1] + 2}"
    done = run_module(
        "train", "--config=small.py", "--workdir=gs://bucket/runs/there", longer, cwd=place, env=bucket.env
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"going on from gs://bucket/runs/there/checkpoints/{steps[-1]}\n" in done.stdout


@pytest.mark.parametrize(
    ("workdir", "part"),
    [("s3://bucket/x", "gs://BUCKET/PATH alone"), ("gs://no-such-bucket/x", "cannot be written to")],
)
def test_buckets_that_cannot_be_used(place, bucket, workdir, part):
    done = run_module("train", "--config=small.py", f"--workdir={workdir}", cwd=place, env=bucket.env)
    assert done.returncode == 2, done.stdout + done.stderr
    assert part in done.stderr and done.stderr.count("error: ") == 1
