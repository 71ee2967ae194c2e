"""When a run saves, what it refuses to go on from, and file systems without locks."""

import errno
import fcntl
import re
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from etils import epath

from conftest import process_env, small_config
from electra_jax import cli, resume, train
from electra_jax.config import CheckpointConfig, MeshConfig
from electra_jax.data import build
from electra_jax.errors import UserError
from electra_jax.models.electra import by_name
from electra_jax.training import checkpoint, partitioning
from electra_jax.training.checkpoint import Checkpoints, Origin, Saved
from electra_jax.training.interrupts import Interrupts
from electra_jax.training.setup import Setup
from electra_jax.workdir import locked
from runs import make_run, restored, tokenizer


def test_checkpoints_are_due_by_the_clock(tmp_path, monkeypatch):
    policy = CheckpointConfig(save_interval_minutes=10, save_interval_steps=0, keep_period=50)
    checkpoints, now = Checkpoints(epath.Path(tmp_path / "one"), policy), time.monotonic()
    assert not checkpoints.is_due()
    monkeypatch.setattr(time, "monotonic", lambda: now + 601)
    assert checkpoints.is_due()
    assert checkpoints.should_save(7, True) and not checkpoints.should_save(7, False)
    assert checkpoints.should_save(50, False)  # a checkpoint that is kept for good is due by its step alone
    make_run(tmp_path / "run", steps=(7,))
    saved, state = restored(tmp_path / "run")
    checkpoints.save(state, saved)
    # Right after a save, what was agreed may still be what led to that save: it does not count for the next step.
    assert not checkpoints.is_due() and not checkpoints.should_save(8, True) and checkpoints.should_save(9, True)
    checkpoints.close()
    never = Checkpoints(epath.Path(tmp_path / "two"), CheckpointConfig(save_interval_minutes=0))
    monkeypatch.setattr(time, "monotonic", lambda: now + 10**6)
    assert not never.is_due() and not never.should_save(1000, False)


def test_detection_begins_from_a_masked_lm(tmp_path, capsys):
    """All of its weights are taken over; only the head that it lacks starts fresh, as in a new run."""
    weights = make_run(tmp_path / "masked", small_config(model={"towers": "masked_lm"}))
    made = tokenizer()
    prepared = build.Prepared({}, made)

    def start(towers: str) -> dict[str, np.ndarray]:
        setup = Setup.of(small_config(model={"towers": towers}), made.special, made.vocab_size)
        state, _, _ = resume.start_state(setup, prepared, None, None, checkpoint.find(str(tmp_path / "masked")))
        fresh = setup.init().params
        return jax.device_get((by_name(state.params), by_name(fresh)))

    found, fresh = start("tied")
    said = capsys.readouterr().out
    assert "the discriminator's head fresh" in said and "another config.seed" not in said  # it has seen other data
    taken = by_name(weights)
    assert fresh.keys() - taken.keys() == {
        f"discriminator/{name}/{kind}" for name in ("head", "head_output") for kind in ("kernel", "bias")
    }
    for name in fresh:
        np.testing.assert_array_equal(found[name], taken[name] + 7 if name in taken else fresh[name], name)
        assert name not in taken or (found[name] != fresh[name]).any()
    found, _ = start("masked_lm")
    assert "fresh" not in capsys.readouterr().out and found.keys() == taken.keys()
    # A second tower is more than a head.
    with pytest.raises(UserError, match="parameter discriminator/.* is absent there"):
        start("separate")


def cooling(steps: int, cooldown: int, total: int):
    return small_config(
        optimizer={"schedule": "wsd", "cooldown_steps": cooldown, "warmup_steps": 5}, train={"num_train_steps": total}
    )


@pytest.mark.parametrize(
    ("was", "now", "step", "needed"),
    [
        ((0, 1000), (20, 105), 100, 120),  # a branch for a cooldown that would end too early
        ((20, 1000), (20, 105), 100, 120),  # a run that is to end sooner
        ((0, 1000), (20, 120), 100, None),
        ((20, 110), (20, 110), 100, None),  # on its way down
        ((0, 1000), (20, 100), 100, None),  # nothing is left to do, which is said elsewhere
    ],
)
def test_a_cooldown_does_not_begin_in_its_midst(was, now, step, needed, tmp_path):
    saved = Saved(cooling(step, *was), step, step * 8, "some data", {}, 32)
    origin = Origin(epath.Path(tmp_path / "checkpoints"), step)
    if needed is None:
        resume.check(saved, cooling(step, *now), epath.Path(tmp_path / "other"), origin)
        return
    with pytest.raises(UserError, match=f"would have begun at step 85; set config.train.num_train_steps={needed}, or"):
        resume.check(saved, cooling(step, *now), epath.Path(tmp_path / "other"), origin)


def test_epochs_are_of_the_steps_that_are_taken():
    """Steps of a curriculum beyond the end of the run are not counted."""

    class Inputs:
        def epochs(self, length, count):
            return count / 80

    lengths = {"curriculum_lengths": (16,), "curriculum_steps": (900,)}
    config = small_config(data=lengths, train={"num_train_steps": 100})
    assert [phase["steps"] for phase in train._phases(config, Inputs())] == [100, 0]
    config = small_config(data=lengths, train={"num_train_steps": 1000})
    assert [phase["epochs"] for phase in train._phases(config, Inputs())] == [90, 10]


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_place_without_locks(number, tmp_path, monkeypatch, capsys):
    """Lustre without -o flock, NFS without its lock daemon: no traceback, and no lock file left behind by a killed run."""

    def refuse(*_):
        raise OSError(number, "no locks here")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with locked(epath.Path(tmp_path / "run")):
        assert "cannot be locked" in capsys.readouterr().out
        with locked(epath.Path(tmp_path / "run")):  # as after a run that was killed
            pass


def test_another_error_of_locking_is_none_of_these(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EIO, "the disk is broken")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(OSError, match="the disk is broken"), locked(epath.Path(tmp_path / "run")):
        pass


def test_no_memory_and_a_full_disk_are_one_line_and_status_3(capsys):
    code = "from electra_jax import cli; import jax.numpy as jnp; cli.run(lambda argv: jnp.zeros(2**60).block_until_ready())"
    done = subprocess.run([sys.executable, "-c", code], env=process_env(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 3 and re.fullmatch(
        r"error: out of device memory .*gradient_accumulation_steps=2, .*\n", done.stderr
    ), done.stderr
    full = "ValueError('RESOURCE_EXHAUSTED: Error writing local file: No space left on device [os_error_code=28]')"
    for error in (full, "OSError(28, 'No space left on device')"):
        with pytest.raises(SystemExit) as ended:
            cli.run(lambda argv, error=error: exec(f"raise {error}"))
        assert ended.value.code == 3 and capsys.readouterr().err.startswith("error: a disk is full (")
    other = code.replace("jnp.zeros(2**60).block_until_ready()", "1 / 0")
    done = subprocess.run([sys.executable, "-c", other], env=process_env(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and "ZeroDivisionError" in done.stderr  # the control


@pytest.mark.parametrize("is_alone", [True, False])
def test_an_evaluation_that_looks_for_signals_loses_no_save_that_was_agreed_on(is_alone):
    """It polls on the way from the poll that says a checkpoint is due to the step at which it is made."""
    interrupts = Interrupts(partitioning.make_mesh(MeshConfig(), jax.devices()[:2]))
    interrupts._is_alone, interrupts._none = is_alone, interrupts._flags(0)  # several processes, as far as it can tell
    interrupts.poll(True)
    for _ in range(3):
        interrupts.poll()
    assert interrupts.save_is_agreed
    interrupts.poll(False)
    assert not interrupts.save_is_agreed
