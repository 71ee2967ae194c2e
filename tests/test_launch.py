"""The launch scripts, against stand-ins for the clouds' commands that write down how they were called."""

import functools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from conftest import ROOT, SMALL, config_file, process_env

pytestmark = pytest.mark.slow
SCRIPTS = sorted(f"launch/{path.name}" for path in (ROOT / "launch").glob("*.sh"))
TPU = [
    "--name=mine",
    "--zone=us-central1-a",
    "--type=v5litepod-16",
    "--bucket=gs://b/runs",
    "--config=configs/small.py",
]

# Records its arguments, one JSON list per call, and answers by the first rule that matches its command line.
STAND_IN = """#!{python}
import json, os, pathlib, sys
place = pathlib.Path(__file__).parent
name = pathlib.Path(sys.argv[0]).name
with open(place / "calls", "a") as file:
    file.write(json.dumps([name, *sys.argv[1:]]) + "\\n")
line = " ".join([name, *sys.argv[1:]])
rules = json.loads((place / "rules").read_text())
for rule in rules:
    if rule[0] in line and rule[1]:
        answer = rule[1].pop(0) if len(rule[1]) > 1 else rule[1][0]
        (place / "rules").write_text(json.dumps(rules))
        if answer.startswith("exit "):
            sys.exit(int(answer[5:]))
        if answer == "NOT_FOUND":
            sys.exit("ERROR: (gcloud) NOT_FOUND: Resource was not found")
        print(answer)
        break
"""


LATE = """#!{python}
import sys, time
with open(sys.argv[1], "w") as file:
    for line in sys.stdin:
        print(line, end="", flush=True)
        time.sleep(1)
        file.write(line)
        file.flush()
"""


class Place:
    """A copy of the repository's scripts and configurations, and a PATH with stand-ins."""

    def __init__(self, folder: Path):
        self.root, self.bin = folder / "electra_jax", folder / "bin"
        shutil.copytree(ROOT / "launch", self.root / "launch")
        shutil.copytree(ROOT / "configs", self.root / "configs")
        self.bin.mkdir()
        for name in ("gcloud", "kubectl", "sbatch", "srun", "squeue", "scancel", "scontrol", "nvidia-smi"):
            (self.bin / name).write_text(STAND_IN.format(python=sys.executable))
            (self.bin / name).chmod(0o755)
        subprocess.run(["git", "init", "--quiet"], cwd=self.root, check=True)
        subprocess.run(["git", "add", "--all"], cwd=self.root, check=True)
        commit = ["git", "-c", "user.name=t", "-c", "user.email=t@t", "commit", "--quiet", "--allow-empty", "-m", "t"]
        subprocess.run(commit, cwd=self.root, check=True)
        self.answer()

    def answer(self, **rules: list[str]) -> None:
        """Sets what the stand-ins say: for each part of a command line, the answers in turn, the last one from then on."""
        usual = {
            "get-value project": ["my-project"], "buckets describe": ["US-CENTRAL1"], "queued-resources describe": ["ACTIVE"],
            "get nodes": ["node/a"], "driver_version": ["580.65.06"],
        }  # fmt: skip
        (self.bin / "rules").write_text(json.dumps(list({**usual, **rules}.items())))
        (self.bin / "calls").write_text("")

    def run(self, script: str, *arguments: str, cwd: Path | None = None, **env: str) -> subprocess.CompletedProcess:
        path = f"{self.bin}{os.pathsep}{os.environ['PATH']}"
        command = ["bash", str(self.root / "launch" / script), *arguments]
        return subprocess.run(
            command, cwd=cwd or self.root, env=process_env({"PATH": path, **env}), capture_output=True, text=True, timeout=120
        )  # fmt: skip

    @property
    def calls(self) -> list[list[str]]:
        return [json.loads(line) for line in (self.bin / "calls").read_text().splitlines()]


@pytest.fixture
def place(tmp_path) -> Place:
    return Place(tmp_path)


def test_shellcheck_has_nothing_to_say():
    checker = Path(sys.executable).parent / "shellcheck"
    done = subprocess.run([checker, "--external-sources", *SCRIPTS], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    bad = subprocess.run([checker, "-s", "bash", "-"], input="rm $1/*\n", capture_output=True, text=True)
    assert bad.returncode == 1  # the control


STARTS = [
    ("tpu_vm.sh", ["start", *TPU]),
    ("tpu_pod.sh", ["start", *TPU]),
    ("tpu_pod.sh", ["watch", *TPU]),
    ("gke.sh", ["start", "--name=mine", "--image=i:1", "--zone=us-central1-a", "--bucket=gs://b", "--config=configs/mini.py:tied"]),
    ("slurm.sh", ["start", "--workdir=/shared/run", "--config=configs/mini.py:tied"]),
    ("gpu.sh", ["start", "--workdir=run", "--config=configs/mini.py:tied"]),
]  # fmt: skip


@pytest.mark.parametrize(("script", "arguments"), STARTS, ids=lambda v: v if isinstance(v, str) else v[0])
def test_dry_run_shows_and_does_nothing(place, script, arguments):
    done = place.run(script, *arguments, "--dry_run", "--", "--config.data.source=corpus/*.txt")
    assert done.returncode == 0, done.stderr
    assert place.calls == []
    assert re.search(r"^\+ (gcloud|kubectl|sbatch|setsid)", done.stdout + done.stderr, re.M)
    if arguments[0] == "start":
        assert "electra_jax.train" in done.stdout and "corpus/" in done.stdout
    assert not (place.root / "run").exists()


def commands(place: Place) -> list[str]:
    """What is run on the TPU's hosts."""
    return [part.removeprefix("--command=") for call in place.calls for part in call if part.startswith("--command=")]


def test_a_tpu_vm_is_made_set_up_and_started(place):
    place.answer(**{"tpu-vm describe": ["NOT_FOUND"]})
    done = place.run("tpu_vm.sh", "start", *TPU, "--data=gs://b/text", "--", "--config.data.source=corpus/*.txt")
    assert done.returncode == 0, done.stderr
    lines = [" ".join(call) for call in place.calls]
    (create,) = [line for line in lines if "tpu-vm create" in line]
    assert "--accelerator-type=v5litepod-16" in create and "--version=v2-alpha-tpuv5-lite" in create
    install, _, start = commands(place)
    assert "uv venv" in install and "--python 3.12" in install and "[tpu,gcs]" in install and "rsync" in install
    # A unit that a shutdown sends SIGTERM and waits for, with the cache in the bucket.
    assert "systemd-run --unit=electra_jax" in start and "KillSignal=SIGTERM" in start and "TimeoutStopSec=120" in start
    assert "JAX_COMPILATION_CACHE_DIR=gs://b/runs/compilation_cache" in start and "--workdir=gs://b/runs/mine" in start
    for text in (install, start):
        assert subprocess.run(["bash", "-n"], input=text, text=True).returncode == 0
    # The glob reaches the program as it was written.
    words = subprocess.run(
        ["bash", "-c", f"printf '%s\\n' {start[start.index('.venv') :]}"], capture_output=True, text=True
    )
    assert words.stdout.splitlines()[-1] == "--config.data.source=corpus/*.txt"
    place.answer()
    again = place.run("tpu_vm.sh", "start", *TPU)  # after a stop: on the VM that is there
    assert again.returncode == 0 and not any("create" in call for call in place.calls)
    for action, part in (("status", "is-active"), ("logs", "tail -n 100 -F"), ("stop", "systemctl stop electra_jax")):
        place.answer()
        assert place.run("tpu_vm.sh", action, *TPU[:2]).returncode == 0
        assert part in commands(place)[-1]
    place.answer()
    assert place.run("tpu_vm.sh", "delete", *TPU[:2]).returncode == 0
    assert "tpu-vm delete mine" in " ".join(place.calls[-1])


def test_how_a_run_on_a_slice_ended_is_read_from_its_log(place, tmp_path):
    """The command meant for host 0 is run here, on lines as `electra_jax` prints them and with a stand-in for systemctl."""
    place.answer(**{"is-active --quiet": ["finished"]})
    assert place.run("tpu_pod.sh", "watch", *TPU, "--poll=0").returncode == 0
    (asked,) = {command for command in commands(place) if "is-active --quiet" in command}
    host = tmp_path / "host"
    (host / "bin").mkdir(parents=True)
    (host / "bin" / "systemctl").write_text("#!/bin/sh\n[ -e active ]\n")
    (host / "bin" / "systemctl").chmod(0o755)

    def said() -> str:
        path = f"{host / 'bin'}:{os.environ['PATH']}"
        return subprocess.check_output(["bash", "-c", asked], cwd=host, env={"PATH": path}, text=True).strip()

    assert said() == "absent"
    (host / "electra_jax").mkdir()
    joining = "error: this process could not join the others at localhost:1 within config.train.join_timeout=5 s"
    for line, ending in {
        "finished at step 1,000; everything about the run is in gs://b/runs/mine": "finished",
        "gs://b/runs/mine is finished: it stands at step 1,000": "finished",
        "preempted at step 7; the same command goes on": "preempted",
        "preempted with nothing to be saved; the same command goes on": "preempted",
        joining: "preempted",
        "error: step 3 gave a loss or gradient that is not finite": "failed",
        "step 7/1,000  loss 3.0; not finished at step 7, nor preempted": "failed",
    }.items():
        (host / "electra_jax" / "train.log").write_text(f"step 2/1,000  loss 9.1\n{line}\n")
        assert said() == ending, line
    (host / "active").touch()
    assert said() == "running"


def test_a_spot_slice_is_made_again_and_the_run_goes_on(place):
    """Waits, starts, is preempted with the slice, starts again on the new one, then ends."""
    place.answer(**{
        "queued-resources describe": ["WAITING_FOR_RESOURCES", "ACTIVE", "ACTIVE", "SUSPENDED", "ACTIVE", "ACTIVE", "ACTIVE"],
        "is-active --quiet": ["absent", "running", "absent", "preempted", "finished"],
    })  # fmt: skip
    done = place.run("tpu_pod.sh", "watch", *TPU, "--poll=0")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [" ".join(call) for call in place.calls]
    order = [
        word
        for line in lines
        for word, part in (
            ("delete", "queued-resources delete"),
            ("create", "queued-resources create"),
            ("run", "systemd-run"),
        )
        if part in line
    ]
    assert order == ["run", "delete", "create", "run", "run"]
    assert all("--spot" in line for line in lines if "queued-resources create" in line)
    place.answer(**{"is-active --quiet": ["failed"]})
    failed = place.run("tpu_pod.sh", "watch", *TPU, "--poll=0")
    assert failed.returncode == 2 and "has failed 4 times without a checkpoint" in failed.stderr  # not for ever
    assert sum("systemd-run" in " ".join(call) for call in place.calls) == 3
    # The same if it runs for a while each time, but not if there are new checkpoints.
    place.answer(
        **{"is-active --quiet": ["running", "failed"] * 9, "storage ls": ["gs://b/runs/mine/checkpoints/500/"]}
    )
    failed = place.run("tpu_pod.sh", "watch", *TPU, "--poll=0")
    assert failed.returncode == 2 and sum("systemd-run" in " ".join(call) for call in place.calls) == 3
    steps = [f"gs://b/runs/mine/checkpoints/{step}/" for step in range(500, 1100, 100)]
    place.answer(**{"is-active --quiet": ["failed"] * 6 + ["finished"], "storage ls": steps})
    done = place.run("tpu_pod.sh", "watch", *TPU, "--poll=0")
    assert done.returncode == 0 and sum("systemd-run" in " ".join(call) for call in place.calls) == 6
    assert "charged for until it is deleted: launch/tpu_pod.sh delete --name=mine" in done.stdout.replace(
        str(place.root) + "/", ""
    )
    # What fails for a moment does not end the watch.
    place.answer(**{
        "queued-resources describe": ["exit 1", "SUSPENDED", "ACTIVE"], "queued-resources create": ["exit 1"],
        "is-active --quiet": ["exit 255", "preempted", "finished"], "systemd-run": ["exit 1"],
    })  # fmt: skip
    done = place.run("tpu_pod.sh", "watch", *TPU, "--poll=0")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("that failed; tried again") == 2 and "training unreachable" in done.stdout


def test_start_of_a_spot_slice_watches_by_itself(place):
    place.answer(**{"is-active --quiet": ["finished"]})
    earlier = subprocess.Popen(["sleep", "600"])  # the watch of another start, which would go on with another commit
    (place.root / "mine.watch.pid").write_text(str(earlier.pid))
    done = place.run("tpu_pod.sh", "start", *TPU, "--poll=0")
    assert earlier.wait(30) == -signal.SIGTERM
    assert done.returncode == 0, done.stderr
    log = place.root / "mine.watch.log"
    for _ in range(200):
        if log.exists() and "charged for" in log.read_text():
            break
        time.sleep(0.05)
    assert "charged for until" in log.read_text()
    # That an earlier run finished there does not count for this `start`: its code and arguments go to the hosts first.
    calls = [" ".join(call) for call in place.calls]
    assert [part for line in calls for part in ("scp", "systemd-run") if part in line] == ["scp", "systemd-run"]
    place.answer()
    assert place.run("tpu_pod.sh", "delete", *TPU[:2]).returncode == 0
    assert "queued-resources delete mine" in " ".join(place.calls[-1]) and not (place.root / "mine.watch.pid").exists()


def gke(place, *extra: str) -> subprocess.CompletedProcess:
    arguments = ["--name=mine", "--image=i:1", "--zone=us-central1-a", "--bucket=gs://b", "--config=configs/small.py"]
    return place.run("gke.sh", "start", *arguments, *extra)


def test_a_jobset_is_applied(place):
    done = gke(place, "--topology=8x8", "--slices=2", "--", "--config.data.source=a/*.txt,b|c&d")
    assert done.returncode == 0, done.stderr
    assert place.calls[-1] == ["kubectl", "apply", "--filename=mine.jobset.yaml"]
    text = (place.root / "mine.jobset.yaml").read_text()
    assert not re.search(r"@[A-Z_]+@", text)
    manifest = yaml.safe_load(text)
    job = manifest["spec"]["replicatedJobs"][0]
    assert (job["replicas"], job["template"]["spec"]["parallelism"]) == (2, 16)
    pod = job["template"]["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] == 15 and pod["nodeSelector"]["cloud.google.com/gke-spot"] == "true"
    (train,) = (line for line in pod["containers"][0]["args"][0].splitlines() if "electra_jax.train" in line)
    words = subprocess.run(
        ["bash", "-c", f"printf '%s\\n' {train.partition(' > /tmp/out')[0]}"], capture_output=True, text=True
    )
    assert words.stdout.splitlines()[-1] == "--config.data.source=a/*.txt,b|c&d"
    for action, part in (("status", "get jobset,pods"), ("logs", "logs --follow"), ("stop", "delete jobset mine")):
        place.answer()
        assert place.run("gke.sh", action, "--name=mine").returncode == 0
        assert part in " ".join(place.calls[-1])


def test_a_pod_that_is_preempted_fails_so_that_the_set_starts_again(place, tmp_path):
    """The manifest's own shell lines, around programs that end as a run does."""
    assert gke(place).returncode == 0
    args = yaml.safe_load((place.root / "mine.jobset.yaml").read_text())["spec"]["replicatedJobs"][0]["template"][
        "spec"
    ]["template"]["spec"]
    script = args["containers"][0]["args"][0]
    (train,) = (line for line in script.splitlines() if "electra_jax.train" in line)
    # A log that is written late, as on a busy machine.
    (place.bin / "tee").write_text(LATE.format(python=sys.executable))
    (place.bin / "tee").chmod(0o755)

    def start(program: str) -> subprocess.Popen:
        (tmp_path / "program.py").write_text(program)
        own = script.replace(train, "PROGRAM > /tmp/out &")
        for name in ("out", "log"):
            own = own.replace(f"/tmp/{name}", f"{tmp_path}/{name}")
        own = own.replace("PROGRAM", f"{sys.executable} -u {tmp_path}/program.py")
        env = os.environ | {"PATH": f"{place.bin}{os.pathsep}{os.environ['PATH']}"}
        return subprocess.Popen(["bash", "-c", own], stdout=subprocess.PIPE, text=True, env=env)

    stops = (
        "import signal, sys, time\n"
        "signal.signal(15, lambda *_: (print('preempted at step 7; saved'), sys.exit(0)))\n"
        "print('started')\ntime.sleep(60)"
    )
    running = start(stops)
    assert running.stdout.readline() == "started\n"
    running.send_signal(signal.SIGTERM)
    assert running.wait(30) == 75
    assert start('print("finished at step 20")').wait(30) == 0
    assert start("raise SystemExit(2)").wait(30) == 2
    # A pod that ends because another failed waits, so that the other's status is seen first.
    begin = time.monotonic()
    assert start("raise SystemExit(75)").wait(60) == 75 and time.monotonic() - begin > 15


def test_a_slurm_job_finds_the_configuration_of_the_folder_it_was_submitted_from(place, tmp_path):
    """The job itself runs in the repository."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "own.py").write_text("")
    flags = ["--workdir=/shared/run", f"--python={sys.executable}", "--dry_run"]
    for config, shown in (("own.py:x", f"{tmp_path}/mine/own.py:x"), ("configs/small.py", "configs/small.py")):
        done = place.run("slurm.sh", "start", *flags, f"--config={config}", cwd=tmp_path / "mine")
        assert done.returncode == 0 and f"--config={shown}" in done.stdout, (done.stdout, done.stderr)
    done = place.run("slurm.sh", "start", *flags, "--config=no.py", cwd=tmp_path / "mine")
    assert done.returncode == 2 and "--config=no.py: no such file" in done.stderr


def test_a_slurm_job_is_submitted_and_requeued(place, tmp_path):
    run = tmp_path / "run"
    arguments = [f"--workdir={run}", "--config=configs/small.py", f"--python={sys.executable}", "--nodes=2", "--gpus=4"]
    place.answer(sbatch=["4711"])
    done = place.run("slurm.sh", "start", *arguments, "--partition=gpu")
    assert done.returncode == 0, done.stderr
    assert place.calls[-1] == ["sbatch", "--parsable", str(run / "slurm.sh")]
    assert (run / "slurm.job").read_text() == "4711\n"
    job = (run / "slurm.sh").read_text()
    for line in (
        "--nodes=2",
        "--ntasks-per-node=4",
        "--gpus-per-node=4",
        "--signal=TERM@120",
        "--requeue",
        "--partition=gpu",
    ):
        assert f"#SBATCH {line}\n" in job
    env = process_env(
        {"PATH": f"{place.bin}{os.pathsep}{os.environ['PATH']}", "SLURM_NTASKS": "8", "SLURM_JOB_ID": "77"}
    )
    log = run / "slurm.log"
    log.write_text("preempted at step 5; an earlier turn\n")
    (place.bin / "srun").rename(place.bin / "srun.recorder")

    def turn(says: str, status: int = 0, does: str = ":") -> list[list[str]]:
        """Runs the job with tasks that say and do this, then end with `status`; returns the commands called."""
        place.answer()
        (place.bin / "srun").write_text(f"#!/bin/sh\necho {says!r} >> {log}\n{does}\nexit {status}\n")
        (place.bin / "srun").chmod(0o755)
        assert subprocess.run(["bash", str(run / "slurm.sh")], env=env).returncode == status
        return place.calls

    requeue = ["scontrol", "requeue", "77"]
    assert turn("preempted at step 9; saved") == [requeue]
    assert turn("finished at step 20") == []
    assert turn("a traceback", 3) == []
    place.answer(**{"scancel --signal": ["exit 1"]})  # as for a pending job
    stop = place.run("slurm.sh", "stop", f"--workdir={run}")
    assert stop.returncode == 0
    assert place.calls == [["scancel", "--state=PENDING", "4711"], ["scancel", "--signal=TERM", "4711"]]
    assert turn("nothing, since it was stopped before its turn came") == [] and "nothing, since" not in log.read_text()
    assert turn("preempted at step 11; saved", does=f"touch {run}/stop") == []  # stopped while it ran
    assert turn("preempted at step 13; saved") == [requeue]  # started again since
    place.answer(squeue=["4711 RUNNING"])
    again = place.run("slurm.sh", "start", *arguments)
    assert again.returncode == 2 and "its job 4711 waits or runs" in again.stderr
    place.answer()
    assert place.run("slurm.sh", "status", f"--workdir={run}").returncode == 0
    assert "--jobs=4711" in place.calls[-1]


def test_a_run_on_this_machines_gpus(place, corpus_file, request):
    """A real run, detached: its status, its log, and SIGTERM, after which it has saved."""
    (place.root / ".venv" / "bin").mkdir(parents=True)
    python = place.root / ".venv" / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    shutil.copy(place.bin / "nvidia-smi", python.with_name("pip"))  # this environment is one for the CPU
    for name in ("rules", "calls"):
        python.with_name(name).write_text("[]" if name == "rules" else "")
    values = {**SMALL, "data": {**SMALL["data"], "source": str(corpus_file)}, "evaluation": {"interval_steps": 10**6}}
    config_file(place.root / "mine.py", values | {"train": {**SMALL["train"], "num_train_steps": 10**6}})
    run = ["--workdir=run", f"--python={sys.executable}"]
    for name in ("run", "older"):  # whatever fails, no run goes on for ever
        request.addfinalizer(functools.partial(place.run, "gpu.sh", "stop", f"--workdir={name}"))
    done = place.run("gpu.sh", "start", *run, "--config=mine.py")
    assert done.returncode == 0, done.stderr
    assert f"install --quiet --editable {place.root}[cuda]" in done.stdout.replace("\\", "")
    log = place.root / "run" / "train.log"
    for _ in range(1200):
        if "step 2/" in log.read_text():
            break
        time.sleep(0.1)
    assert "running, process" in place.run("gpu.sh", "status", *run).stdout
    again = place.run("gpu.sh", "start", *run, "--config=mine.py")
    assert again.returncode == 2 and "a run is going on there" in again.stderr
    assert place.run("gpu.sh", "stop", *run).returncode == 0
    for _ in range(300):
        if "not running" in place.run("gpu.sh", "status", *run).stdout:
            break
        time.sleep(0.1)
    assert "preempted at step" in log.read_text()
    assert place.run("gpu.sh", "stop", *run).returncode == 2
    place.answer(driver_version=["550.90.07"])
    older = place.run(
        "gpu.sh", "start", "--workdir=older", "--config=mine.py", "--dry_run", f"--python={sys.executable}"
    )
    assert "[cuda]" in older.stdout.replace("\\", "")  # a dry run does not ask for the driver
    done = place.run("gpu.sh", "start", "--workdir=older", "--config=mine.py", f"--python={sys.executable}")
    assert f"--editable {place.root}[cuda12]" in done.stdout.replace("\\", "")
    assert place.run("gpu.sh", "stop", "--workdir=older").returncode == 0


BAD = [
    ("tpu_vm.sh", ["begin"], "the first argument must be one of: start status logs stop delete"),
    ("tpu_vm.sh", ["start", "--nmae=x"], "--nmae=x: no such option"),
    ("tpu_vm.sh", ["start", "--zone=us-central1-a"], "--name=... is missing"),
    ("tpu_vm.sh", ["start", *TPU[:4]], "--config=... is missing"),
    ("tpu_vm.sh", ["start", *TPU[:4], "--config=configs/no.py"], "no such file in commit"),
    ("tpu_vm.sh", ["start", *TPU, "--commit=no"], "git does not know it"),
    ("tpu_vm.sh", ["start", *TPU[:3], "--bucket=b", TPU[4]], "must be gs://NAME"),
    ("gke.sh", ["start", "--name=mine"], "--image=... is missing"),
    ("slurm.sh", ["start", "--config=configs/small.py", "--workdir=here", f"--python={sys.executable}"], "an absolute path"),
    ("gpu.sh", ["start", "--workdir=run", "--config=no.py"], "no such file"),
]  # fmt: skip


@pytest.mark.parametrize(("script", "arguments", "part"), BAD, ids=lambda v: v[:30] if isinstance(v, str) else "")
def test_bad_input_is_one_line(place, script, arguments, part):
    done = place.run(script, *arguments)
    assert done.returncode == 2, done.stdout + done.stderr
    assert part in done.stderr and done.stderr.count("\n") == 1
    assert not any("create" in call or "apply" in call for call in place.calls)


def test_the_bucket_must_be_where_the_machines_are(place):
    for location, good in (("US-CENTRAL1", True), ("US", True), ("NAM4", True), ("EUROPE-WEST4", False), ("EU", False)):
        place.answer(**{"buckets describe": [location]})
        done = place.run("tpu_vm.sh", "start", *TPU)
        assert done.returncode == (0 if good else 2), (location, done.stderr)
        assert good or "use a bucket in us-central1" in done.stderr
    place.answer(**{"buckets describe": ["exit 1"]})
    done = place.run("tpu_vm.sh", "start", *TPU)
    assert done.returncode == 2 and "gcloud storage buckets create" in done.stderr
    place.answer(**{"get crd": ["exit 1"]})
    done = gke(place)
    assert done.returncode == 2 and "knows no JobSets" in done.stderr
