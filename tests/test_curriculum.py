"""A run that begins with shorter sequences: what it reads at each step, and that it can be stopped anywhere."""

import itertools
import signal
from pathlib import Path

import numpy as np
import pytest

from conftest import SMALL, config_file, make_setup, small_config, with_data
from electra_jax import config_loading
from electra_jax.analysis.flops import step_flops
from electra_jax.data import build, pipeline
from electra_jax.errors import UserError
from electra_jax.inputs import Inputs
from electra_jax.training import checkpoint
from electra_jax.training.checkpoint import Origin
from electra_jax.training.loop import Position
from test_run import assert_identical, metrics, numbers, parameters, start, train, wait_for

CURRICULUM = {"curriculum_lengths": [8, 16], "curriculum_steps": [4, 10]}
SIZES = {"batch_size": 8, "curriculum_batch_sizes": [32, 16]}


@pytest.fixture(scope="module")
def config(corpus_file, data_directory):
    return with_data(small_config(data=CURRICULUM, train=SIZES), corpus_file, data_directory)


def test_phases(config):
    assert [tuple(phase) for phase in config.phases] == [(8, 32, 4), (16, 16, 10), (32, 8, None)]
    assert [config.phase(step).length for step in (0, 3, 4, 9, 10, 10**9)] == [8, 8, 16, 16, 32, 32]
    position, found = Position(0, 0), []
    for _ in range(12):
        position = position.next(config)
        found.append(position.sequences)
    assert found == [32, 64, 96, 0, 16, 32, 48, 64, 80, 0, 8, 16]
    assert step_flops(config, 512, config.phases[0]) < step_flops(config, 512, config.phases[-1])
    assert small_config().phases == ((32, 8, None),)


def test_batches_of_each_phase_from_any_position(config):
    prepared = build.prepare(config, say=lambda text: None)
    inputs = Inputs(make_setup(config, prepared), prepared)
    batches = [np.asarray(ids) for ids in itertools.islice(inputs.training(Position(0, 0)), 14)]
    assert [ids.shape for ids in batches] == [(32, 8)] * 4 + [(16, 16)] * 6 + [(8, 32)] * 4
    # Each length is gone through from its beginning, in its own order.
    for phase, first in zip(config.phases, (0, 4, 10)):
        made = pipeline.Sequences(prepared.sets[phase.length], config.data, config.seed)
        np.testing.assert_array_equal(batches[first + 1], made.read(np.arange(phase.batch_size, 2 * phase.batch_size)))
    position = Position(0, 0)
    for step in range(13):
        np.testing.assert_array_equal(next(inputs.training(position)), batches[step])
        position = position.next(config)
    # Held-out figures are of the length that was trained on.
    assert [next(inputs.held_out(step))[0].shape[1] for step in (0, 4, 5, 10, 11)] == [8, 8, 16, 16, 32]


@pytest.mark.parametrize(
    ("data", "train", "part"),
    [
        ({**CURRICULUM, "curriculum_steps": [4]}, {}, "one step for each of data.curriculum_lengths"),
        ({**CURRICULUM, "curriculum_steps": [10, 4]}, {}, "each later than the one before"),
        ({**CURRICULUM, "curriculum_lengths": [8, 32]}, {}, "below data.max_seq_length, 32"),
        ({**CURRICULUM, "curriculum_lengths": [8, 8]}, {}, "different lengths"),
        (CURRICULUM, {"curriculum_batch_sizes": [8]}, "one for each of (8, 16)"),
        ({**CURRICULUM, "curriculum_steps": [-5, 5]}, {}, "steps above 0"),
        (
            CURRICULUM,
            {"curriculum_batch_sizes": [9, 8], "gradient_accumulation_steps": 2},
            "divisor of train.curriculum",
        ),
    ],
)
def test_curricula_that_cannot_work(data, train, part):
    with pytest.raises(UserError) as caught:
        small_config(data=data, train=train)
    assert part in str(caught.value)


@pytest.mark.slow
def test_killed_at_and_after_a_switch_it_ends_the_same(tmp_path, corpus_file):
    data = {**SMALL["data"], "curriculum_lengths": [8], "curriculum_steps": [4], "source": str(corpus_file)}
    values = {
        **SMALL, "data": data, "train": {**SMALL["train"], "curriculum_batch_sizes": [32]},
        "checkpoint": {"save_interval_steps": 2, "max_to_keep": 20},
    }  # fmt: skip
    config_file(tmp_path / "small.py", values)
    whole = train(tmp_path, "whole")
    assert whole.returncode == 0, whole.stdout + whole.stderr
    assert "length 8, batch_size 32, steps 4, tokens 1,024, epochs" in whole.stdout
    for moment in (4, 8):
        process = start(tmp_path, "killed")
        wait_for(lambda: (tmp_path / "killed" / "checkpoints" / str(moment)).exists(), process)  # noqa: B023
        process.send_signal(signal.SIGKILL)
        process.wait()
    last = train(tmp_path, "killed")
    assert last.returncode == 0, last.stdout + last.stderr
    saved = [checkpoint.read_saved(Origin(tmp_path / "killed" / "checkpoints", step)) for step in (4, 8)]
    assert [one.trained_length for one in saved] == [8, 32]
    assert numbers(metrics(tmp_path / "killed")) == numbers(metrics(Path(tmp_path / "whole")))
    assert_identical(parameters(tmp_path / "killed", 20), parameters(tmp_path / "whole", 20))


def test_the_switches_of_a_run_are_fixed():
    before, after = (small_config(data={**CURRICULUM, "curriculum_steps": steps}) for steps in ((4, 10), (4, 12)))
    with pytest.raises(UserError, match=r"config.data.curriculum_steps was \(4, 10\), now \(4, 12\)"):
        config_loading.check_resume(before, after)
