"""One run of several real processes, which talk over gloo: started, agreeing, resumed on fewer."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy

import task_data
from conftest import process_env, run_module
from electra_jax import distributed
from electra_jax.errors import OthersFailed, UserError
from electra_jax.training import checkpoint
from processes import LONG, MESH, Group, make_place
from test_run import metrics, numbers

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def place(tmp_path_factory, corpus_file) -> Path:
    return make_place(tmp_path_factory.mktemp("processes"), corpus_file)


@pytest.fixture(scope="module")
def four(place) -> Group:
    """A run of four processes with a device each, to its end."""
    group = Group(place, "four", 4, *MESH)
    assert group.wait() == [0] * 4, group.texts()
    return group


def test_four_processes_train_and_evaluate(four):
    texts = four.texts()
    for index, text in enumerate(texts):
        assert f"process {index} of 4: 1 of 4 devices" in text
    assert "finished at step 20" in texts[0]
    assert not any("step 20/20" in text or "tokenizer" in text for text in texts[1:])  # only process 0 reports
    rows = metrics(four.workdir)
    assert [row["step"] for row in rows] == list(range(2, 21, 2))
    assert [row["step"] for row in rows if "eval/disc_auc" in row] == [10, 20]
    info = json.loads((four.workdir / "run.json").read_text())
    assert info["devices"]["processes"] == 4 and info["mesh"] == {"data": 2, "fsdp": 2, "tensor": 1}
    assert checkpoint.saved_steps(four.workdir / "checkpoints") == [10, 15, 20]


def test_one_process_gives_the_same(place, four):
    """The same batches, masks and samples; losses to rounding. The control: two steps differ by more."""
    one = Group(place, "one", 1, *MESH)
    assert one.wait() == [0], one.texts()
    same = numbers(metrics(four.workdir))
    for row, other in zip(same, numbers(metrics(one.workdir)), strict=True):
        assert other == pytest.approx(row, rel=1e-3, abs=1e-5)
        assert other["replaced_share"] == row["replaced_share"]  # exactly: counts of samples
    assert same[-1]["loss"] != pytest.approx(same[-2]["loss"], rel=1e-3)


def test_from_four_to_two_to_one(place, four):
    """Each goes on from the last one's checkpoint; the figures are those of the run that was not stopped."""
    two = Group(place, "two", 2, *MESH, f"--branch={four.workdir}@10")
    two.wait_for(lambda: (two.workdir / "checkpoints" / "15").exists())
    two.kill()
    one = Group(place, "two", 1, "--config.mesh.tensor=2")
    assert one.wait() == [0], one.texts()
    assert f"going on from {place / 'two' / 'checkpoints'}" in one.texts()[0]
    by_step = {row["step"]: row for row in numbers(metrics(four.workdir))}
    rows = numbers(metrics(place / "two"))
    assert [row["step"] for row in rows] == [12, 14, 16, 18, 20]
    for row in rows:
        assert row == pytest.approx(by_step[row["step"]], rel=2e-3, abs=2e-5)
        assert row["replaced_share"] == by_step[row["step"]]["replaced_share"]


def test_two_processes_are_probed_and_fine_tune(place):
    """A probe in the run, fine-tuning of its checkpoint by two processes and by one: the same."""
    data = task_data.make(place / "task", "regression")
    (place / "task.py").write_text(
        "import ml_collections\n\n\ndef get_config():\n    return ml_collections.ConfigDict({\n"
        "        'seeds': 1, 'max_restarts': 0, 'task': {'max_length': 32}, 'train': {'epochs': 8.0},\n"
        "        'optimizer': {'learning_rate': 3e-3, 'layerwise_decay': 1.0},\n"
        "        'evaluation': {'select': 'best'}, 'mesh': {'fsdp': 2}, 'reporting': {'interval_steps': 1},\n    })\n"
    )
    flags = ["--config.probe.config=task.py", f"--config.probe.path={data}", "--config.probe.interval_steps=10"]
    probed = Group(place, "probed", 2, *MESH, "--config.train.num_train_steps=10", *flags)
    assert probed.wait() == [0, 0], probed.texts()
    (found,) = (row["eval/probe_spearman"] for row in metrics(probed.workdir) if "eval/probe_spearman" in row)
    assert not (probed.workdir / "probe").exists()
    tune = ["--config=task.py", f"--config.task.path={data}", "--init=probed@10"]
    several = [Group(place, name, count, *tune, module="finetune") for name, count in (("tuned2", 2), ("tuned1", 1))]
    for group in several:
        assert group.wait() == [0] * len(group.processes), group.texts()
    two, one = (json.loads((group.workdir / "results.json").read_text()) for group in several)
    figures = [each["figures"]["validation"]["spearman"]["values"] for each in (two, one)]
    assert figures == [[pytest.approx(found, abs=0.02)]] * 2 and 0.5 < found < 0.999
    losses = [[row["loss"] for row in metrics(group.workdir / "seed-0") if "loss" in row] for group in several]
    assert losses[0][:10] == pytest.approx(losses[1][:10], rel=1e-2) and losses[0][-1] < 0.9 * losses[0][0], losses
    weights = [safetensors.numpy.load_file(group.workdir / "model" / "model.safetensors") for group in several]
    for name, value in weights[0].items():
        np.testing.assert_allclose(value, weights[1][name], atol=2e-2)
    texts = several[0].texts()
    assert "test spearman" in texts[0] and "spearman" not in texts[1]  # only process 0 reports


def test_work_directories_that_are_not_shared(place):
    group = Group(place, ["mine", "yours"], 2, *LONG)
    assert group.wait() == [2, 2], group.texts()
    for text in group.texts():
        assert "--workdir=" in text and "is not shared: process 1 does not see what process 0 writes" in text
        assert "Traceback" not in text and "step 2/" not in text
    assert not (place / "mine" / "checkpoints").exists()


def test_a_process_that_cannot_join_is_an_error(place):
    command = ["train", "--config=small.py", "--workdir=alone"]
    for flags, part in (
        (["--coordinator=localhost:1", "--num_processes=2"], "given without --process_id"),
        (["--coordinator=localhost", "--num_processes=2", "--process_id=1"], "localhost must be HOST:PORT"),
        (["--coordinator=localhost:1", "--num_processes=2", "--process_id=2"], "--process_id=2 must be from 0 to 1"),
    ):
        done = run_module(*command, *flags, cwd=place)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert part in done.stderr
    flags = ["--coordinator=localhost:1", "--num_processes=2", "--process_id=1", "--config.train.join_timeout=5"]
    done = run_module(*command, *flags, cwd=place)
    assert (done.returncode, done.stderr.count("\n")) == (75, 1), done.stderr
    assert "could not join the others at localhost:1 within config.train.join_timeout=5 s" in done.stderr
    # Under SLURM, with several tasks, and nobody there.
    slurm = {"SLURM_JOB_ID": "1", "SLURM_STEP_NUM_TASKS": "2", "SLURM_NTASKS": "2", "SLURM_PROCID": "1", "SLURM_LOCALID": "0",
             "SLURM_STEP_NODELIST": "localhost", "JAX_COORDINATOR_PORT": "1"}  # fmt: skip
    done = run_module(*command, "--config.train.join_timeout=5", cwd=place, env=slurm)
    assert (done.returncode, done.stderr.count("\n")) == (75, 1), done.stderr
    assert "could not join the others" in done.stderr and not (place / "alone").exists()


def test_a_tpu_without_a_cluster_is_one_process():
    """As in a notebook: it says so and goes on alone. Where the environment names several hosts, it refuses to."""
    code = """
import argparse
from electra_jax import distributed
from electra_jax.config import TrainConfig
distributed._is_on_tpu = lambda: True
parser = argparse.ArgumentParser()
distributed.add_arguments(parser)
distributed.join(parser.parse_args([]), TrainConfig())
print(distributed.is_first())
"""
    done = subprocess.run([sys.executable, "-c", code], env=process_env(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stdout.splitlines()[-2:] == [
        "no other processes around this TPU are known of: going on as one",
        "True",
    ], done.stderr
    several = process_env({"TPU_WORKER_HOSTNAMES": "a,b"})
    done = subprocess.run([sys.executable, "-c", code], env=several, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and "could not join the others" in done.stderr


def test_a_setting_that_is_not_the_same_everywhere_is_named(monkeypatch):
    told = []

    def gather(values):
        told.append(values)
        return np.stack([told[0], values])

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(distributed.multihost_utils, "process_allgather", gather)
    settings = {"seed": 0, "data.source": "corpus/*.txt", "train.batch_size": 8}
    distributed.check_same_settings(settings)
    with pytest.raises(
        UserError, match=r"config.data.source is another on process 1 than on process 0; here it is 'b.txt'"
    ):
        distributed.check_same_settings(settings | {"data.source": "b.txt"})


def test_what_fails_on_one_process_ends_all(monkeypatch):
    """The failed process ends with its own error, the others with one that names it; all come to the same barrier."""
    waited = []
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    monkeypatch.setattr(
        distributed.ocp.multihost, "get_barrier_sync_fn", lambda: lambda **words: waited.append(words["key"])
    )

    def failing(*numbers):
        everywhere = np.asarray([number in numbers for number in range(3)])
        monkeypatch.setattr(distributed.multihost_utils, "process_allgather", lambda flag: everywhere)

    failing()
    distributed.agree(None, "the text")
    failing(1, 2)
    with pytest.raises(OthersFailed, match=r"process 1, 2 failed \(the text\); its own line says why"):
        distributed.agree(None, "the text")
    with pytest.raises(UserError, match="mine"):
        distributed.agree(UserError("mine"), "the text")
    assert waited == ["the text"] * 3


def test_rows_need_not_be_one_block():
    """A process whose devices hold rows that are not adjacent reads only those."""
    import jax
    from jax.sharding import AxisType, Mesh

    from electra_jax.training import partitioning

    order = np.asarray(jax.devices())[[0, 4, 1, 5, 2, 6, 3, 7]].reshape(8, 1, 1)
    mesh = Mesh(order, ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
    assert partitioning.batch_rows(mesh, 16).tolist() == list(range(16))
    x = np.arange(16 * 3).reshape(16, 3)
    placed = partitioning.place(x, mesh, 16)
    np.testing.assert_array_equal(placed, x)
    for shard in placed.addressable_shards:
        np.testing.assert_array_equal(shard.data, x[shard.index])
    # The rows of the second of two processes on such a mesh.
    numbers = np.array([2, 3, 6, 7, 10, 11, 14, 15])
    assert partitioning.rows_of(x[numbers], numbers, np.array([10, 11])).tolist() == x[[10, 11]].tolist()
