"""One run of several real processes, of which one is preempted, killed or stopped."""

import re
import signal
from pathlib import Path

import pytest

from electra_jax.training import checkpoint
from processes import LONG, Group, make_place
from test_run import assert_identical, metrics, numbers, parameters

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def place(tmp_path_factory, corpus_file) -> Path:
    return make_place(tmp_path_factory.mktemp("processes"), corpus_file)


def test_sigterm_to_one_process_saves_the_same_step_on_all(place):
    # Checkpoints are also due by the clock here: if the processes saved at different steps, Orbax would wait forever.
    group = Group(place, "sigterm", 2, *LONG, "--config.checkpoint.save_interval_minutes=0.0001",
                  "--config.checkpoint.save_interval_steps=0")  # fmt: skip
    group.wait_for(lambda: checkpoint.saved_steps(place / "sigterm" / "checkpoints"))
    group.processes[1].send_signal(signal.SIGTERM)
    assert group.wait() == [0, 0], group.texts()
    steps = {int(re.search(r"preempted at step (\d+)", text).group(1)) for text in group.texts()}
    assert len(steps) == 1
    (step,) = steps
    assert checkpoint.saved_steps(place / "sigterm" / "checkpoints")[-1] == step
    # The same command resumes, with an earlier last step so that it gets there.
    again = Group(place, "sigterm", 2, f"--config.train.num_train_steps={step + 2}", LONG[1])
    assert again.wait() == [0, 0], again.texts()
    assert f"going on from {place / 'sigterm' / 'checkpoints' / str(step)}" in again.texts()[0]
    assert f"finished at step {step + 2}" in again.texts()[0]


def test_sigterm_while_evaluating_and_saving(place):
    """A long evaluation is cut short; the resumed run makes up for it, and ends as an undisturbed run does."""
    often = ["--config.evaluation.max_records=0", "--config.evaluation.batch_size=4", "--config.checkpoint.save_interval_steps=1",
             "--config.evaluation.interval_steps=4", "--config.train.num_train_steps=6",
             "--config.data.validation_fraction=0.08"]  # fmt: skip
    whole = Group(place, "whole", 2, *often)
    assert whole.wait() == [0, 0], whole.texts()
    cut = Group(place, "cut", 2, *often)
    # The evaluation at step 4 takes seconds, and begins while step 3 is still being written.
    cut.wait_for(lambda: (cut.workdir / "checkpoints" / "3").exists())
    cut.processes[0].send_signal(signal.SIGTERM)
    assert cut.wait() == [0, 0], cut.texts()
    assert {re.search(r"preempted at step (\d+)", text).group(1) for text in cut.texts()} == {"4"}
    assert not any(name.startswith("eval/") for row in metrics(cut.workdir) for name in row)
    again = Group(place, "cut", 2, *often)
    assert again.wait() == [0, 0], again.texts()
    assert numbers(metrics(cut.workdir)) == numbers(metrics(whole.workdir))
    assert_identical(parameters(cut.workdir, 6), parameters(whole.workdir, 6))


def test_sigkill_of_one_ends_the_others_and_the_run_resumes(place):
    group = Group(place, "killed", 2, *LONG, "--config.train.heartbeat_timeout=10", "--config.train.hang_timeout=60")
    group.wait_for(lambda: (group.workdir / "checkpoints" / "5").exists())
    group.processes[1].kill()
    statuses = group.wait(160)
    # JAX aborts (134, as the shell says it), gloo's broken connection raises (1), or the watchdog ends it (1).
    assert statuses[1] == -signal.SIGKILL and statuses[0] in (-signal.SIGABRT, 1), group.texts()
    again = Group(place, "killed", 2, "--config.train.num_train_steps=8", LONG[1])
    if checkpoint.saved_steps(group.workdir / "checkpoints")[-1] < 8:
        assert again.wait() == [0, 0], again.texts()
        assert "finished at step 8" in again.texts()[0]
    else:
        assert again.wait() == [0, 0] and "is finished" in again.texts()[0]


def test_a_process_that_stands_still_ends_the_run(place):
    """The others would miss its heartbeat only later: first their watchdog prints every stack and exits with status 1."""
    # Compiling, which on a busy machine takes half a minute, counts as standing still.
    group = Group(place, "stopped", 2, *LONG, "--config.train.hang_timeout=45", "--config.train.heartbeat_timeout=300")
    group.wait_for_step(4)
    group.processes[1].send_signal(signal.SIGSTOP)
    assert group.processes[0].wait(150) == 1, group.texts()
    text = group.texts()[0]
    assert "Timeout (0:00:45)!" in text and "Thread 0x" in text and "electra_jax/training/loop.py" in text
    group.kill()
