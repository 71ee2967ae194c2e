"""Writers and the reporter: one line a step, cut back on resume, never waiting for the step just dispatched."""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from electra_jax import storage
from electra_jax.objectives.losses import Mean
from electra_jax.reporting import writers
from electra_jax.reporting.health import Health
from electra_jax.reporting.profile import profiled
from electra_jax.reporting.reporter import NotFinite, Reporter
from electra_jax.reporting.writers import Console, JsonLines, TensorBoard


class Recorder:
    """A writer that keeps what it is given."""

    def __init__(self):
        self.rows = {}

    def write(self, step, figures):
        assert step not in self.rows
        self.rows[step] = dict(figures)

    def flush(self):
        pass

    def close(self):
        pass


def metrics(value, failed=-1):
    return {
        "means": {"loss": Mean(jnp.float32(value), jnp.float32(1))},
        "histogram": jnp.zeros((2, 4)),
        "failed_step": jnp.int32(failed),
    }


def reporter(recorder, interval=2, total=10):
    return Reporter(Console(total, 0), [recorder], Health(0, total), interval, lambda step, s: {"speed": 1 / s}, total)


def test_a_step_is_reported_when_the_next_is_dispatched():
    recorder = Recorder()
    made = reporter(recorder)
    made.step_done(1, metrics(1))
    made.step_done(2, metrics(2))
    assert recorder.rows == {}
    made.step_done(3, metrics(3))
    assert list(recorder.rows) == [2]
    assert recorder.rows[2]["loss"] == 2
    assert recorder.rows[2]["speed"] == pytest.approx(1 / recorder.rows[2]["step_seconds"])
    made.step_done(4, metrics(4))
    made.flush(4, lambda: {"loss": 7.0})
    assert recorder.rows[4]["loss"] == 4 and recorder.rows[4]["eval/loss"] == 7
    made.flush(4)
    assert list(recorder.rows) == [2, 4]


def test_a_step_that_is_not_due_is_reported_when_it_is_evaluated():
    recorder = Recorder()
    made = reporter(recorder, interval=100)
    made.step_done(3, metrics(3))
    made.flush(3, lambda: {"loss": 7.0})
    assert recorder.rows == {3: {"eval/loss": 7.0}}


def test_it_does_not_wait_for_the_step_just_dispatched():
    """Its metrics are not read: here, reading them would fail."""
    made = reporter(Recorder())
    made.step_done(1, metrics(1))
    made.step_done(2, {"means": object(), "failed_step": object()})


def test_a_failed_step_is_raised():
    made = reporter(Recorder())
    made.step_done(1, metrics(1))
    made.step_done(2, metrics(np.nan, failed=1))
    with pytest.raises(NotFinite) as caught:
        made.flush(2)
    assert caught.value.step == 1


def test_json_lines_are_cut_back(tmp_path):
    path = tmp_path / "metrics.jsonl"
    writer = JsonLines(path, 0)
    for step in (10, 20, 30):
        writer.write(step, {"loss": float(step), "odd": float("nan")})
    writer.close()
    with path.open("a") as file:
        file.write('{"step": 40, "lo')
    writer = JsonLines(path, 20)
    writer.write(30, {"loss": 31.0})
    writer.close()
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(row["step"], row["loss"]) for row in rows] == [(10, 10.0), (20, 20.0), (30, 31.0)]
    assert rows[0]["odd"] is None


def events(directory):
    """(step, tag, value) of each scalar in a directory's event files, and the steps from which on older events are hidden."""
    from tensorboardX.proto import event_pb2

    scalars, hidden_from = [], []
    for path in sorted(directory.iterdir()):
        data, at = path.read_bytes(), 0
        while at < len(data):
            size = int.from_bytes(data[at : at + 8], "little")
            event = event_pb2.Event.FromString(data[at + 12 : at + 12 + size])
            scalars += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
            hidden_from += [event.step] if event.HasField("session_log") else []
            at += 16 + size
    return scalars, hidden_from


def test_events_are_there_as_soon_as_they_are_written(tmp_path):
    """A run that is killed cannot close its files."""
    writer = TensorBoard(tmp_path, 20)
    writer.write(30, {"loss": 2.0, "eval/disc_auc": 0.5})
    assert events(tmp_path) == ([(30, "train/loss", 2.0), (30, "eval/disc_auc", 0.5)], [21])


def test_a_bucket_that_fails_for_a_moment_costs_a_run_nothing(tmp_path, monkeypatch, capsys):
    is_down, write = True, storage.write

    def upload(path, content):
        if is_down:
            raise OSError("412 Precondition Failed")
        write(path, content)

    monkeypatch.setattr(storage, "is_remote", lambda path: True)
    monkeypatch.setattr(writers.storage, "write", upload)
    (tmp_path / "tensorboard").mkdir()
    made = [JsonLines(epath.Path(tmp_path / "metrics.jsonl"), 0), TensorBoard(epath.Path(tmp_path / "tensorboard"), 0)]
    for step in (10, 20):
        for writer in made:
            writer.write(step, {"loss": float(step)})
            writer.flush()
    said = capsys.readouterr().out
    assert said.count("could not be written (412 Precondition Failed); tried again with the next checkpoint") == 5
    assert not (tmp_path / "metrics.jsonl").exists() and not list((tmp_path / "tensorboard").iterdir())
    is_down = False
    for writer in made:
        writer.close()
    assert [row["loss"] for row in writers.rows(tmp_path / "metrics.jsonl")] == [10, 20]
    monkeypatch.setattr(storage, "is_remote", lambda path: False)
    assert events(tmp_path / "tensorboard")[0] == [(10, "train/loss", 10), (20, "train/loss", 20)]


def test_throughput_leaves_pauses_out(monkeypatch):
    clock = iter(range(0, 1000, 5))
    monkeypatch.setattr("electra_jax.reporting.reporter.time.perf_counter", lambda: float(next(clock)))
    recorder = Recorder()
    made = reporter(recorder, interval=1)
    for step in (1, 2, 3):
        made.step_done(step, metrics(step))
    made.flush(3, lambda: {"loss": 1.0})
    made.step_done(4, metrics(4))
    made.step_done(5, metrics(5))
    assert "step_seconds" not in recorder.rows[4]  # the first after a pause starts the clock
    assert recorder.rows[3]["step_seconds"] > 0


def test_the_time_of_a_step_is_the_mean_since_the_last_report(monkeypatch):
    clock = iter(range(0, 1000, 5))
    monkeypatch.setattr("electra_jax.reporting.reporter.time.perf_counter", lambda: float(next(clock)))
    recorder = Recorder()
    made = reporter(recorder)
    for step in range(1, 6):
        made.step_done(step, metrics(step))
    row = recorder.rows[4]  # 5 seconds after that of step 2
    assert (row["step_seconds"], row["speed"], row["seconds_left"]) == (2.5, 0.4, 6 * 2.5)


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_terminal_has_a_bar_and_a_file_lines(is_terminal, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal, raising=False)
    console = Console(10, 0)
    console.advance(2)
    console.write(2, {"loss": 1.5, "seconds_left": 60.0})
    console.write(4, {"eval/disc_auc": 0.75})
    console.say("a line")
    console.close()
    out, shown = capsys.readouterr()
    lines, other = (shown, out) if is_terminal else (out, shown)
    assert other == "" and "a line\n" in lines
    assert "step 4/10  held out: disc_auc 0.750" in lines
    assert ("step 2/10  loss 1.500" in lines) == (not is_terminal) and ("2/10 [" in lines) == is_terminal


def test_held_out_figures_of_a_step_that_was_left_out():
    """The evaluation stands under its own step, whether or not anything was pending."""
    recorder = Recorder()
    made = reporter(recorder)
    made.step_done(2, metrics(2))
    made.flush(3, lambda: {"loss": 7.0})
    assert recorder.rows[2]["loss"] == 2 and recorder.rows[3] == {"eval/loss": 7.0}
    made.flush(5, lambda: {"loss": 6.0})
    assert recorder.rows[5] == {"eval/loss": 6.0}


@pytest.mark.parametrize(
    ("calls", "said"), [(30, "profiled 3 steps"), (12, "profiled 2 steps"), (10, "nothing was profiled")]
)
def test_a_profile_window_that_a_run_ends_in_leaves_what_there_is(tmp_path, calls, said):
    messages = []
    with profiled(jax.jit(lambda x: x + 1), 3, epath.Path(tmp_path / "profile"), messages.append) as step_fn:
        for number in range(calls):
            assert step_fn(number) == number + 1
    assert len(messages) == 1 and said in messages[0]
    assert bool(list(tmp_path.rglob("*.xplane.pb"))) == (calls > 10)
