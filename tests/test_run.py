"""Whole runs in real processes: killed, interrupted, resumed, broken."""

import json
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from commands import Command
from conftest import SMALL, config_file, in_one_process, process_env, run_module, sequences
from electra_jax import cli
from electra_jax.data import build, pipeline
from electra_jax.reporting import verdicts
from electra_jax.training import checkpoint

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def place(tmp_path_factory, corpus_file) -> Path:
    """A folder with a configuration file, as a user would have; data sets made there are shared by the runs."""
    folder = tmp_path_factory.mktemp("runs")
    config_file(folder / "small.py", {**SMALL, "data": {**SMALL["data"], "source": str(corpus_file)}})
    return folder


def train(place, workdir, *overrides, **options) -> subprocess.CompletedProcess:
    return run_module("train", "--config=small.py", f"--workdir={workdir}", *overrides, cwd=place, **options)


def start(place, workdir, *overrides) -> Command:
    arguments = ["--config=small.py", f"--workdir={workdir}", *overrides]
    return Command("train", *arguments, cwd=place, env=process_env(), output=place / f"{time.monotonic_ns()}.log")


def wait_for(condition, process, seconds=600) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if process.poll() is not None or time.monotonic() > end:
            raise AssertionError(f"ended or timed out before the moment came: {process.text()}")
        time.sleep(0.002)


def metrics(workdir: Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def parameters(workdir: Path, step: int) -> dict[str, np.ndarray]:
    """All arrays of a checkpoint, read by Orbax without our code."""
    import orbax.checkpoint as ocp

    found = {}
    for item in ("params", "opt_state"):
        path = (workdir / "checkpoints" / str(step) / item).absolute()
        with ocp.PyTreeCheckpointer() as checkpointer:
            # As NumPy's: the devices that saved them need not be here.
            as_numpy = jax.tree.map(
                lambda _: ocp.RestoreArgs(restore_type=np.ndarray), checkpointer.metadata(path).item_metadata.tree
            )
            tree = checkpointer.restore(path, restore_args=as_numpy)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            found[item + jax.tree_util.keystr(path)] = np.asarray(leaf)
    return found


def assert_identical(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    assert one.keys() == other.keys() and len(one) > 100
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


_CLOCK = {"step_seconds", "tokens_per_second", "utilisation", "seconds_left", "data_read_per_used"}


def numbers(rows: list[dict]) -> list[dict]:
    """The rows without what depends on the clock."""
    return [{name: value for name, value in row.items() if name not in _CLOCK} for row in rows]


@pytest.fixture(scope="module")
def finished(place) -> Path:
    """An undisturbed run of 20 steps."""
    done = train(place, "undisturbed", "--config.reporting.profile_steps=2")
    assert done.returncode == 0, done.stdout + done.stderr
    (place / "undisturbed.log").write_text(done.stdout)
    return place / "undisturbed"


def test_a_run_leaves_what_it_promises(finished):
    assert checkpoint.saved_steps(finished / "checkpoints") == [10, 15, 20]  # the newest three
    rows = metrics(finished)
    steps = [row["step"] for row in rows]
    assert steps == sorted(set(steps)) == list(range(2, 21, 2))
    names = {"loss", "masked_lm_loss", "disc_loss", "masked_lm_accuracy", "disc_accuracy", "disc_auc", "disc_precision",
             "disc_recall", "replaced_share", "learning_rate", "grad_norm"}  # fmt: skip
    assert names <= rows[0].keys()
    held_out = {f"eval/{name}" for name in names - {"loss", "learning_rate", "grad_norm"}}
    assert [row["step"] for row in rows if held_out <= row.keys()] == [10, 20]
    assert json.loads((finished / "config.json").read_text())["train"]["num_train_steps"] == 20
    info = json.loads((finished / "run.json").read_text())
    for name in ("devices", "mesh", "batch", "compute", "parameters", "model_flops", "planned", "data", "versions"):
        assert name in info
    assert info["planned"]["tokens"] == 20 * 8 * 32
    (timed, *_) = (row for row in rows if "step_seconds" in row)
    assert timed["tokens_per_second"] == pytest.approx(8 * 32 / timed["step_seconds"])
    assert timed["seconds_left"] == pytest.approx((20 - timed["step"]) * timed["step_seconds"])
    peak = info["peak_flops"]["per_device"]
    assert timed["utilisation"] == pytest.approx(info["model_flops"] / timed["step_seconds"] / peak)
    assert list((finished / "tensorboard").glob("events.out.tfevents.*"))
    assert "undisturbed" in (finished / "report.html").read_text()
    assert list(verdicts.read(finished / "verdicts.jsonl")) == [10, 20]
    log = (finished.parent / "undisturbed.log").read_text()
    assert re.search(r"^step 2/20  loss \d+\.\d+  masked_lm_loss ", log, re.M)
    (trace,) = (finished / "profile").rglob("*.xplane.pb")
    assert trace.stat().st_size > 1000 and f"xprof --logdir={finished / 'profile'}" in log
    assert "\r" not in log and "\x1b" not in log  # plain lines in a pipe
    saved = checkpoint.read_saved(checkpoint.find(f"{finished}@20"))
    assert (saved.step, saved.sequences) == (20, 160)
    assert saved.tokenizer["kind"] == "wordpiece"


def test_tensorboard_reads_the_events(finished):
    from tensorboardX.proto import event_pb2

    (path,) = (finished / "tensorboard").glob("events.out.tfevents.*")
    data, found, at = path.read_bytes(), {}, 0
    while at < len(data):
        size = int.from_bytes(data[at : at + 8], "little")
        event = event_pb2.Event.FromString(data[at + 12 : at + 12 + size])
        for value in event.summary.value:
            found.setdefault(value.tag, {})[event.step] = value.simple_value
        at += 16 + size
    assert sorted(found["train/loss"]) == list(range(2, 21, 2))
    assert sorted(found["eval/disc_auc"]) == [10, 20]
    assert found["train/loss"][20] == pytest.approx(metrics(finished)[-1]["loss"], rel=1e-6)


def test_a_finished_run_says_so(place, finished):
    before = (finished / "metrics.jsonl").read_text()
    (finished / "report.html").unlink()  # as if the run had been killed before this was written
    again = train(place, "undisturbed")
    assert again.returncode == 0
    assert "is finished: it stands at step 20" in again.stdout
    assert (finished / "report.html").exists()
    assert (finished / "metrics.jsonl").read_text() == before


def test_killed_at_any_moment_it_ends_the_same(place, finished):
    """SIGKILL at five moments of one run, resumed each time: bit for bit the undisturbed run."""
    workdir = place / "killed"
    progress = workdir / "metrics.jsonl"

    def lines() -> int:
        return len(progress.read_text().splitlines()) if progress.exists() else 0

    moments = [
        lambda: lines() >= 1,  # before the first checkpoint
        lambda: (
            (workdir / "checkpoints").exists() and any((workdir / "checkpoints").glob("5*"))
        ),  # while one is written
        lambda: lines() >= 4,
        lambda: any(p.name == "10" for p in (workdir / "checkpoints").iterdir()) and lines() >= 6,
        lambda: any((workdir / "checkpoints").glob("15*")),
    ]
    for moment in moments:
        process = start(place, "killed")
        wait_for(moment, process)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert process.returncode == -signal.SIGKILL
    with open(progress, "a") as file:
        file.write('{"step": 19, "loss": 1.')  # a line cut short
    last = train(place, "killed")
    assert last.returncode == 0, last.stdout + last.stderr
    assert "going on from" in last.stdout
    assert_identical(parameters(workdir, 20), parameters(finished, 20))
    assert numbers(metrics(workdir)) == numbers(metrics(finished))
    with pytest.raises(AssertionError):  # the control
        assert_identical(parameters(workdir, 15), parameters(finished, 20))


@pytest.mark.parametrize(
    ("number", "status", "words"), [(signal.SIGINT, 130, "stopped at step"), (signal.SIGTERM, 0, "preempted at step")]
)
def test_a_signal_saves_and_the_same_command_goes_on(place, finished, number, status, words):
    name = f"signal{int(number)}"
    process = start(place, name)
    wait_for(lambda: (place / name / "metrics.jsonl").exists() and len(metrics(place / name)) >= 1, process)
    process.send_signal(number)
    output = process.output()
    if "finished at step 20" in output:
        pytest.fail("the run was over before the signal came")
    assert process.returncode == status, output
    step = int(re.search(rf"{words} (\d+)", output).group(1))
    assert checkpoint.saved_steps(place / name / "checkpoints")[-1] == step
    assert "the same command goes on" in output
    assert train(place, name).returncode == 0
    assert_identical(parameters(place / name, 20), parameters(finished, 20))


def test_evaluate_gives_the_runs_own_figures(place, finished):
    """Of the newest checkpoint and of another; in batches of another size; on fewer devices than it was trained on."""
    rows = {row["step"]: row for row in metrics(finished)}
    shutil.copytree(finished, place / "elsewhere")
    for file in (place / "elsewhere" / "checkpoints").glob("*/run/metadata"):
        saved = json.loads(file.read_text())
        saved["config"]["mesh"]["fsdp"] = 8
        file.write_text(json.dumps(saved))
    for step, workdir, flags in (
        (20, "elsewhere", ["--config.evaluation.batch_size=24"]),
        (10, finished, ["--step=10"]),
    ):
        done = run_module("evaluate", f"--workdir={workdir}", *flags, f"--json={place / 'e.json'}", cwd=place)
        assert done.returncode == 0, done.stderr
        found = json.loads((place / "e.json").read_text())
        assert found.pop("step") == step and "disc_auc" in found
        for name, value in found.items():
            assert rows[step][f"eval/{name}"] == pytest.approx(value, rel=1e-6, abs=1e-7)


def test_changes_on_resume(place, finished):
    refused = train(place, "undisturbed", "--config.model.hidden_size=64", "--config.seed=3")
    assert refused.returncode == 2
    assert "config.seed was 0, now 3" in refused.stderr and "config.model.hidden_size was 32, now 64" in refused.stderr
    assert refused.stderr.count("\n") == 1
    assert checkpoint.saved_steps(finished / "checkpoints")[-1] == 20


def test_branch_init_and_a_longer_run(place, finished):
    """A cooldown from any checkpoint; weights alone; both leave the first run as it was."""
    cooldown = [
        "--config.optimizer.schedule=wsd",
        "--config.optimizer.cooldown_steps=6",
        "--config.train.num_train_steps=16",
    ]
    branched = train(place, "branch", f"--branch={finished}@10", *cooldown)
    assert branched.returncode == 0, branched.stdout + branched.stderr
    assert "WARNING: config.optimizer.schedule was 'linear'" in branched.stdout
    rows = metrics(place / "branch")
    assert [row["step"] for row in rows] == [12, 14, 16]
    rates = [row["learning_rate"] for row in rows]
    np.testing.assert_allclose(rates, [1e-3 * (16 - step) / 6 for step in (11, 13, 15)], rtol=1e-5)
    level = train(place, "level", "--config.train.num_train_steps=13", *cooldown[:1], "--config.optimizer.cooldown_steps=6",
                  "--config.checkpoint.max_to_keep=1")  # fmt: skip
    assert level.returncode == 0 and checkpoint.saved_steps(place / "level" / "checkpoints") == [7, 13]
    more = train(
        place, "level", "--config.train.num_train_steps=30", *cooldown[:1], "--config.optimizer.cooldown_steps=6"
    )
    assert more.returncode == 2 and "level@7 --workdir=ANOTHER" in more.stderr and "WARNING" not in more.stdout
    started = train(place, "init", f"--init={finished}", "--config.train.num_train_steps=2")
    assert started.returncode == 0, started.stdout + started.stderr
    assert "has seen the same text in the same order with the same masks; another config.seed" in started.stdout
    fresh = metrics(finished)[0]["masked_lm_loss"]
    assert metrics(place / "init")[0]["masked_lm_loss"] < fresh
    # The learning rate would rise again, and its newest checkpoint no longer be the best.
    longer = train(place, finished, "--config.train.num_train_steps=30")
    assert (longer.returncode, longer.stderr.count("\n")) == (2, 1)
    assert "was finished at step 20" in longer.stderr and f"--branch={finished} --workdir=" in longer.stderr
    assert checkpoint.saved_steps(finished / "checkpoints")[-1] == 20
    (place / "tuned" / "seed-0").mkdir(parents=True)
    wrong = {
        ("--init=nowhere",): "no checkpoint there",
        (f"--init={finished}@7",): "no such step",
        (f"--init={finished}", "--config.model.hidden_size=64"): "parameter discriminator/",
        (f"--init={finished}", "--config.tokenizer.vocab_size=300"): "vocabulary",
        ("--workdir=tuned",): "tuned holds a fine-tuning",
        (f"--branch={finished}@20", "--config.train.num_train_steps=16"): "nothing is left to train",
    }
    ended = in_one_process([["train", "--config=small.py", "--workdir=bad", *flags] for flags in wrong], place)
    for (status, said), (flags, part) in zip(ended, wrong.items(), strict=True):
        assert (status, said.count("\n")) == (2, 1) and part in said, (flags, said)


def test_a_run_that_is_not_finite(place, monkeypatch):
    """It stops, leaves all that is needed to see why, saves nothing bad, and can go on as its message says."""
    huge = ["--config.optimizer.learning_rate=1e38", "--config.optimizer.warmup_steps=1000000"]
    done = train(place, "nan", *huge)
    assert done.returncode == 3, done.stdout + done.stderr
    assert done.stderr.count("\n") == 1
    step = int(re.search(r"step (\d+) gave a loss or gradient that is not finite", done.stderr).group(1))
    assert f"--config.train.skip_steps={step}" in done.stderr
    assert 1 <= step < 5 and checkpoint.saved_steps(place / "nan" / "checkpoints") == []
    with np.load(place / "nan" / f"failure-{step}.npz") as arrays:
        found = arrays["input_ids"]
        assert arrays["masked_positions"].shape == arrays["sampled_ids"].shape == (8, 4)
    monkeypatch.chdir(place)
    config = cli.load_config("small.py", [])
    text = sequences(config, build.prepare(config, say=lambda line: None))
    batches = [next(pipeline.training_batches(text, 8 * at, 8)) for at in (step, step + 1)]
    np.testing.assert_array_equal(found, batches[0])
    assert not np.array_equal(found, batches[1])
    report = json.loads((place / "nan" / f"failure-{step}.json").read_text())
    assert report["gradient_norms_by_group"].keys() == {"shared", "generator", "discriminator"}
    assert {"nan", "inf"} & {*report["losses"].values(), *report["gradient_norms"].values()}
    # The advice, with a sane learning rate: the step is left out, the rest is trained.
    on = train(place, "nan", f"--config.train.skip_steps={step},9", "--config.evaluation.interval_steps=10")
    assert on.returncode == 0, on.stdout + on.stderr
    assert f"step {step} left out" in on.stdout and "step 9 left out" in on.stdout
    rows = {row["step"]: row for row in metrics(place / "nan")}
    assert list(rows) == sorted(rows) and "loss" in rows[20]
    assert "eval/disc_auc" in rows[10] and "loss" not in rows[10]  # the step left out was due for evaluation


def test_other_data_under_the_same_name_are_refused(place, finished, tmp_path):
    """Even when the data set was prepared anew after the text changed."""
    source = json.loads((finished / "config.json").read_text())["data"]["source"]
    text = tmp_path / "text.txt"
    text.write_text(Path(source).read_text())
    own = [
        f"--config.data.source={text}",
        f"--config.data.directory={tmp_path / 'd'}",
        "--config.optimizer.schedule=wsd",
    ]
    assert train(place, tmp_path / "run", *own, "--config.train.num_train_steps=2").returncode == 0
    with open(text, "a") as file:
        file.write("\n\nOne more document, of which the run knows nothing.")
    changed = train(place, tmp_path / "run", *own)
    assert changed.returncode == 2 and "changed since" in changed.stderr
    shutil.rmtree(tmp_path / "d")
    rebuilt = train(place, tmp_path / "run", *own)
    assert rebuilt.returncode == 2 and "was trained on other data" in rebuilt.stderr
    evaluated = run_module("evaluate", f"--workdir={tmp_path / 'run'}", cwd=place)
    assert evaluated.returncode == 0 and "WARNING" in evaluated.stdout and "holds other text than" in evaluated.stdout


def test_one_process_a_work_directory(place):
    process = start(place, "locked", "--config.train.num_train_steps=100000")
    wait_for(lambda: (place / "locked" / "metrics.jsonl").exists(), process)
    second = train(place, "locked")
    process.kill()
    process.wait()
    assert second.returncode == 2 and "another run is training there" in second.stderr


BAD_RUNS = [
    (["--config.train.batch_size=7", "--config.mesh.data=2"], "config.mesh.data=2"),
    (["--config.mesh.fsdp=3"], "must multiply to the number of devices, 1"),
    (["--config.data.source=absent/*.txt"], "names no file"),
    (["--config.tokenizer.vocab_file=absent.txt"], "no such file"),
    (["--config.model.dtype=int8"], "float32, bfloat16"),
    (["--config.train.batch_size"], "has no value"),
]


def test_bad_input_is_one_line_and_status_2(place):
    command = ["train", "--config=small.py", "--workdir=never"]
    ended = in_one_process([[*command, *arguments] for arguments, _ in BAD_RUNS], place)
    for (status, said), (arguments, part) in zip(ended, BAD_RUNS, strict=True):
        assert status == 2 and part in said, (arguments, said)
        assert said.startswith("error: ") and said.count("\n") == 1
    assert not (place / "never" / "checkpoints").exists()


def test_batch_must_fit_the_mesh(place):
    env = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    done = train(place, "never", "--config.train.batch_size=12", env=env)
    assert done.returncode == 2
    assert "config.train.batch_size=12 cannot work: it must be a multiple of 8" in done.stderr


def test_unknown_arguments_and_missing_config(place):
    wrong = {
        ("train",): "required: --config",
        ("train", "--config=small.py", "--stepps=3"): "--stepps=3",
        ("evaluate",): "required: --workdir",
        ("prepare", "--config=no.py"): "no.py",
    }
    for (status, said), (command, part) in zip(in_one_process([*map(list, wrong)], place), wrong.items(), strict=True):
        assert status == 2 and part in said and "Traceback" not in said, (command, said)


def test_benchmark_writes_its_figures(place):
    done = run_module("benchmark", "--config=small.py", "--steps=3", "--json=b.json", cwd=place)
    assert done.returncode == 0, done.stderr
    figures = json.loads((place / "b.json").read_text())
    assert figures["batch_size"] == 8
    beside = sum(figures[f"{part}_seconds_a_step"] for part in ("data", "report", "save", "loop"))
    assert figures["tokens_per_second"] == pytest.approx(8 * 32 / (figures["step_seconds"] + beside))
    assert figures["share_outside_steps"] == pytest.approx(beside / (figures["step_seconds"] + beside))
    assert 0 < figures["data_seconds_a_step"] < 1 and 0 < figures["report_seconds"] < 1 and figures["save_seconds"] > 0
    assert figures["reading_tokens_per_second"] > 8 * 32 / figures["step_seconds"]  # nothing but reading is done
    assert 0 <= figures["padding_share"] < 0.5
    assert figures["utilisation"] == pytest.approx(
        figures["model_flops"] / figures["step_seconds"] / figures["peak_flops"]
    )
    assert 10**8 < figures["peak_memory_bytes"] < 10**10
    assert "resident" in figures["peak_memory_source"]
