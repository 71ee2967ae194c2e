"""Fine-tuning from the command to the model that transformers loads, in real processes where signals matter."""

import dataclasses
import json
import re
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from etils import epath
from scipy import special, stats

import task_data
from commands import Command
from conftest import ROOT, process_env, run_module
from electra_jax import export, predict
from electra_jax.cli import load_finetune_config
from electra_jax.config import MeshConfig
from electra_jax.errors import RunFailed, UserError
from electra_jax.tasks import config as task_config
from electra_jax.tasks import data as loading
from electra_jax.tasks import encoder, finetuning, folder, seeds
from electra_jax.tasks import results as results_lib
from electra_jax.tasks.job import Job
from electra_jax.tasks.probe import Probe
from electra_jax.training import partitioning
from electra_jax.training.interrupts import Interrupts
from runs import make_run
from test_report import wandb_history

CONFIG = f"--config={ROOT / 'configs/finetune/jsonl.py'}"
FAST = [
    "--config.task.max_length=32", "--config.seeds=1", "--config.optimizer.learning_rate=3e-3", "--config.model.dtype=float32",
    "--config.optimizer.layerwise_decay=1.0", "--config.reporting.interval_steps=1", "--config.checkpoint.save_interval_steps=3",
]  # fmt: skip
SEEDS = ["--config.seeds=3", "--config.max_restarts=0", "--config.train.epochs=8"]
KINDS = ["classification", "pair classification", "regression", "tagging", "question answering"]
TRANSFORMERS = {
    "classification": "SequenceClassification", "pair classification": "SequenceClassification",
    "regression": "SequenceClassification", "tagging": "TokenClassification", "question answering": "QuestionAnswering",
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A pretrained run, and a task of each kind."""
    root = tmp_path_factory.mktemp("finetune")
    make_run(root / "pretrained", steps=(0,))
    for kind in KINDS:
        task_data.make(root / kind.replace(" ", "_"), kind)
    return root


def task_of(place, kind):
    return f"--config.task.path={place / kind.replace(' ', '_')}"


def finetune(place, kind, workdir, *flags, **env):
    return run_module(
        "finetune",
        CONFIG,
        task_of(place, kind),
        "--init=pretrained",
        f"--workdir={workdir}",
        *FAST,
        *flags,
        cwd=place,
        env=env,
    )


def predicted(capsys, model, texts) -> list[dict]:
    """What `predict` prints, in this process."""
    capsys.readouterr()
    predict.main([f"--model={model}", f"--input={texts}"])
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def results(place, workdir):
    return json.loads((place / workdir / "results.json").read_text())


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_learns_and_transformers_says_the_same(place, kind, capsys):
    import torch
    import transformers

    workdir = kind.replace(" ", "-")
    windows = ["--config.task.max_query_length=8", "--config.task.doc_stride=8"] if kind == "question answering" else []
    seldom = ["--config.checkpoint.save_interval_steps=1000", "--config.evaluation.interval_epochs=8.0"]
    done = finetune(place, kind, workdir, "--config.train.epochs=24", *seldom, *windows)
    assert done.returncode == 0, done.stderr
    found = results(place, workdir)
    last = done.stdout.strip().splitlines()[-1]
    assert re.fullmatch(rf"test {found['metric']} \d\.\d{{4}}", last) and f"{found['mean']:.4f}" in last
    # Above what needs no reading: accuracy 0.5 with two labels, F1 0.67, correlation 0, one-word spans, never an answer.
    unanswered = np.mean([not row.get("answers") for row in lines(place / kind.replace(" ", "_") / "test.jsonl")])
    above = {"regression": 0.3, "tagging": 0.3, "question answering": unanswered + 0.1}.get(kind, 0.7)
    assert found["mean"] > above, last

    # As transformers loads it, the model gives, on the same ids, the logits that predict goes by.
    path = place / workdir / "model"
    kind_of, model, params = folder.read(path)
    theirs = getattr(transformers, f"AutoModelFor{TRANSFORMERS[kind]}").from_pretrained(path).eval()
    assert str(place) not in (path / "task.json").read_text()  # what is published says nothing of this machine
    task = dataclasses.replace(kind_of.task, path=str(place / kind.replace(" ", "_")))
    tests = loading.load(task).test["test"][:8]
    from electra_jax.tasks.of_kind import predicting

    architecture = predicting(model, kind_of)
    for feature in kind_of.features(tests):
        ids, types = (x[None] for x in (feature.input_ids, feature.token_type_ids))
        ours = architecture.merge(params)(ids, types, 0, None)
        with torch.no_grad():
            out = theirs(torch.tensor(ids, dtype=torch.long), token_type_ids=torch.tensor(types, dtype=torch.long))
        logits = torch.stack([out.start_logits, out.end_logits], -1) if kind == "question answering" else out.logits
        np.testing.assert_allclose(ours, logits.numpy(), atol=1e-4, rtol=0)
    if "classification" in kind or kind == "tagging":
        assert tuple(theirs.config.id2label.values()) == kind_of.task.labels

    # predict, reading the test file itself, says what finetune wrote to its file of predictions.
    said = predicted(capsys, path, place / kind.replace(" ", "_") / "test.jsonl")
    for one, other in zip(said, lines(place / workdir / "predictions-test.jsonl"), strict=True):
        for name in ("label", "tags", "answer"):
            assert one.get(name) == other.get(name)
        if "score" in other:
            assert one["score"] == pytest.approx(other["score"], abs=2e-5)


@pytest.mark.slow
def test_several_seeds_and_their_average(place, capsys):
    done = finetune(place, "regression", "seeds", *SEEDS)
    assert done.returncode == 0, done.stderr
    found = results(place, "seeds")
    values = np.asarray(found["values"])
    assert [one["seed"] for one in found["seeds"]] == [0, 1, 2] and len({*values}) == 3
    assert found["mean"] == pytest.approx(values.mean()) and found["median"] == pytest.approx(np.median(values))
    assert found["standard_deviation"] == pytest.approx(values.std(ddof=1)) and found["best"] == values.max()
    page = (place / "seeds" / "report.html").read_text()
    assert all(f"seeds/seed-{seed}" in page for seed in range(3)) and "spearman" in page
    assert re.search(r"test spearman \d\.\d{4} \(mean of 3 seeds; median .*, standard deviation .*, best", done.stdout)
    # The model is that of the seed with the best figure on validation.
    best, *others = np.argsort(found["figures"]["validation"]["spearman"]["values"])[::-1]
    models = [
        (place / "seeds" / folder / "model.safetensors").read_bytes()
        for folder in ("model", *(f"seed-{seed}/model" for seed in (best, *others)))
    ]
    assert models[0] == models[1] and models[0] not in models[2:]
    # The average of predictions, from what each seed's own model says.
    scores = [
        [
            one["score"]
            for one in predicted(
                capsys, place / "seeds" / f"seed-{seed}" / "model", place / "regression" / "test.jsonl"
            )
        ]
        for seed in range(3)
    ]
    expected = np.mean(scores, 0)
    written = [line["score"] for line in lines(place / "seeds" / "predictions-test.jsonl")]
    np.testing.assert_allclose(written, expected, atol=1e-4)
    labels = [row["label"] for row in lines(place / "regression" / "test.jsonl")]
    correlation = stats.spearmanr(labels, written).statistic
    assert found["average_of_predictions"]["test"]["spearman"] == pytest.approx(correlation, abs=1e-3)
    # Again: all is done. With another task's settings: refused.
    again = finetune(place, "regression", "seeds", *SEEDS)
    assert again.returncode == 0 and "step 1/" not in again.stdout and results(place, "seeds") == found
    other = finetune(place, "regression", "seeds", *SEEDS[:-1], "--config.train.epochs=3")
    assert other.returncode == 2 and "train.epochs=8.0, now 3.0: put it back" in other.stderr


@pytest.mark.slow
def test_a_run_that_was_stopped_goes_on_as_if_it_was_not(place):
    flags = ["--config.train.epochs=4", "--config.evaluation.interval_epochs=1.0", "--config.max_restarts=0"]
    whole = finetune(place, "regression", "whole", *flags)
    assert whole.returncode == 0, whole.stderr
    arguments = [CONFIG, task_of(place, "regression"), "--init=pretrained", "--workdir=stopped", *FAST, *flags]
    # Stopped at its first step, and then right after an evaluation, which the resumed run has to know of.
    for number, status, part in ((signal.SIGTERM, 0, '"loss"'), (signal.SIGINT, 130, '"eval/')):
        log = place / f"stopped-{number}.log"
        process = Command("finetune", *arguments, cwd=place, env=process_env(), output=log)
        path, end = place / "stopped" / "seed-0" / "metrics.jsonl", time.monotonic() + 240
        while not (path.exists() and part in path.read_text()) and process.poll() is None and time.monotonic() < end:
            time.sleep(0.002)
        process.send_signal(number)
        output = process.output()
        assert process.returncode == status, output
        assert re.search(r"(preempted|stopped) at step \d+ of 20, seed 0; the same command goes on", output), output
    last = finetune(place, "regression", "stopped", *flags)
    assert last.returncode == 0 and "going on from" in last.stdout, last.stderr
    one, other = (results(place, name) for name in ("whole", "stopped"))
    for found in (one, other):
        for seed in found["seeds"]:
            seed.pop("seconds")
    assert one == other
    both = [np.load(place / name / "seed-0" / "outputs.npz") for name in ("whole", "stopped")]
    assert all((both[0][name] == both[1][name]).all() for name in both[0].files)


def test_a_seed_that_is_not_finite_is_repeated_or_ends_the_task(tiny_job, tmp_path, monkeypatch, capsys):
    calls = []

    def one(job, seed, workdir, interrupts, say):
        calls.append(seed)
        raise RunFailed(f"seed {seed} is not finite")

    monkeypatch.setattr(seeds, "_one", one)
    with pytest.raises(RunFailed, match="seed 4 is not finite"):
        seeds.run(tiny_job(seeds=3, max_restarts=2, train={"hang_timeout": 0}), epath.Path(tmp_path), print)
    assert calls == [0, 3, 4]
    assert "seed 0 collapsed, seed 0 is not finite; seed 3 takes its place" in capsys.readouterr().out


def test_a_signal_before_there_is_anything_to_save_ends_the_process_with_status_0(tmp_path):
    """By this the launch scripts recognise a preempted run."""
    code = (
        "import os, signal\nfrom electra_jax import cli\nsignal.signal(signal.SIGTERM, cli.end_at_once)\n"
        "os.kill(os.getpid(), signal.SIGTERM)\nraise AssertionError\n"
    )
    done = subprocess.run([sys.executable, "-c", code], env=process_env(), capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "") and re.search(
        r"^preempted .*the same command goes on$", done.stdout, re.M
    )


def test_what_was_found_out_before_a_stop_is_known(tiny_job, tmp_path):
    """The best evaluation up to the checkpoint that the run resumes from, and how many came after it."""
    found = {5: 0.2, 10: 0.5, 15: 0.3, 20: 0.4, 25: 0.6}
    task_data.write_lines(
        tmp_path / "metrics.jsonl", [{"step": n, "eval/spearman": value} for n, value in found.items()]
    )
    run = finetuning._Run(tiny_job("regression"), 0, epath.Path(tmp_path), None)
    run._replay(20)
    assert (run._best, run._best_steps[-1], run._since) == (0.5, 10, 2)


def test_weights_that_a_later_evaluation_surpassed_are_kept_until_no_run_goes_on_from_before(
    tiny_job, tmp_path, monkeypatch
):
    """Killed between an evaluation and its checkpoint, then worse there once resumed: the best weights are the earlier ones."""
    job = tiny_job(
        "regression", train={"epochs": 5.0, "hang_timeout": 0}, evaluation={"select": "best"},
        checkpoint={"save_interval_steps": 10, "save_interval_minutes": 0.0},
    )  # fmt: skip
    job.is_silent = True
    save, saved = finetuning.checkpoint.save_weights, {}

    def run(workdir, *figures):
        said = iter(figures)
        monkeypatch.setattr(job.kind, "figures", lambda *given: {job.metric: next(said, 0.0)})
        with Interrupts(job.program.mesh, 0) as interrupts:
            return finetuning.run(job, 0, epath.Path(workdir), interrupts)

    def save_and_be_killed(path, params):
        save(path, params)
        saved[path.name] = jax.tree.map(np.asarray, params)
        if path.name == "best-15":
            raise KeyboardInterrupt

    monkeypatch.setattr(finetuning.checkpoint, "save_weights", save_and_be_killed)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", 0.1, 0.5, 0.9)
    monkeypatch.setattr(finetuning.checkpoint, "save_weights", save)
    outcome = run(tmp_path / "killed", 0.4, 0.2, 0.3)
    assert outcome.step == 10
    jax.tree.map(np.testing.assert_array_equal, outcome.params, saved["best-10"])
    assert run(tmp_path / "whole", 0.1, 0.2, 0.3, 0.4, 0.5).step == 25
    left = {path.name for path in (tmp_path / "whole").glob("best-*")}
    assert "best-25" in left and "best-5" not in left


@pytest.mark.parametrize(
    ("first", "second", "is_said"),
    [([0.43, 0.57], [0.40, 0.60], True), ([0.86, 0.87], [0.86, 0.87], False), ([0.4, 0.6], [0.6, 0.6], False),
     ([0.5], [0.5], False), ([0.6, 0.4], [0.6, 0.4], False), ([0.1, 0.4, 0.6, 0.65], [0.1, 0.65, 0.61, 0.62], False)],
)  # fmt: skip
def test_seeds_that_end_before_they_have_learnt_are_named(tiny_job, tmp_path, first, second, is_said):
    job, done = tiny_job("regression"), []
    for seed, values in enumerate((first, second)):
        (tmp_path / f"seed-{seed}").mkdir()
        found = [{"step": n, "eval/spearman": value} for n, value in enumerate(values)]
        task_data.write_lines(tmp_path / f"seed-{seed}" / "metrics.jsonl", [{"step": 0, "loss": 1.0}, *found])
        done.append(results_lib.SeedResult(seed, 9, 1.0, {}, False, {}, {}))
    said = seeds._still_rising(epath.Path(tmp_path), done, job)
    assert bool(said) == is_said
    if is_said:
        assert (
            said
            == "validation spearman was still rising as training ended (seed 0 0.4300, then 0.5700): raise train.epochs"
        )


@pytest.mark.slow
def test_early_stopping_keeps_the_best(place):
    """After two evaluations that do not beat the best, the run ends before its last step, with the best one's weights."""
    done = finetune(
        place, "regression", "early", "--config.train.epochs=80", "--config.evaluation.patience=2",
        "--config.optimizer.learning_rate=1e-2", "--config.max_restarts=0", "--config.evaluation.interval_epochs=1.0",
        "--config.reporting.wandb_project=p", WANDB_MODE="offline", WANDB_SILENT="true",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = [row for row in lines(place / "early" / "seed-0" / "metrics.jsonl") if "eval/spearman" in row]
    values = [row["eval/spearman"] for row in rows]
    sent = wandb_history(place / "early" / "seed-0")
    assert [row["eval/spearman"] for row in sent.values() if "eval/spearman" in row] == values
    found = results(place, "early")
    assert rows[-1]["step"] < 400 and len(values) - 1 - int(np.argmax(values)) == 2
    assert max(values) > values[-1] and max(values) > 0.5
    assert found["seeds"][0]["step"] == rows[int(np.argmax(values))]["step"]
    assert found["figures"]["validation"]["spearman"]["values"] == [pytest.approx(max(values))]


@pytest.mark.slow
def test_a_collapsed_run_is_repeated_with_another_seed(place):
    done = finetune(
        place, "classification", "collapsed", "--config.optimizer.learning_rate=5.0", "--config.max_restarts=1", "--config.seeds=1",
        "--config.optimizer.clip_norm=1000.0", "--config.evaluation.select=last", "--config.train.epochs=1",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = results(place, "collapsed")
    assert "seed 0 collapsed, it is no better than chance; seed 1 takes its place" in done.stdout
    assert [one["seed"] for one in found["collapsed"]] == [0, 1] and [one["seed"] for one in found["seeds"]] == [1]


@pytest.fixture(scope="module")
def tiny_job(place):
    """Makes jobs for tests to inspect."""

    def make(kind="classification", **sections):
        values = {"task": {"path": str(place / kind.replace(" ", "_")), "max_length": 32}, **sections}
        config = task_config.from_dict(values)
        return Job(config, loading.load(config.task), encoder.load(str(place / "pretrained")), print)

    return make


@pytest.mark.parametrize("kind", KINDS)
def test_seeds_of_each_kind_are_kept_averaged_and_written(place, tiny_job, tmp_path, kind):
    """With random outputs, so that nothing agrees just because two seeds learnt the same."""
    windows = {"max_query_length": 8, "doc_stride": 8} if kind == "question answering" else {}
    job = tiny_job(kind, task={"path": str(place / kind.replace(" ", "_")), "max_length": 32, **windows})
    rng, axis = np.random.default_rng(0), 0 if windows else -1  # the axis along which probabilities sum to 1
    done, workdir = [], epath.Path(tmp_path)
    for seed in range(2):
        outputs = {}
        for split in job.splits:
            shapes = [() if job.kind.head == "sequence" else (len(f.input_ids),) for f in split.features]
            outputs[split.name] = [rng.normal(0, 3, (*shape, job.kind.num_outputs)) for shape in shapes]
            for output, feature in zip(outputs[split.name], split.features if windows else ()):
                output[feature.target, (0, 1)] += 12  # raised, or no answer would pass any threshold
        figures = {
            s.name: job.kind.figures(s.examples, job.kind.predictions(s.examples, s.features, outputs[s.name]))
            for s in job.splits
        }
        params = job.on_host(job.initial(seed))
        outcome = finetuning.Outcome(seed, 7, 1.0, figures, False, params, job.kind.settings(), outputs)
        results_lib.save(workdir / f"seed-{seed}", job, outcome)
        done.append(results_lib.load(workdir / f"seed-{seed}", job))
        assert done[-1].figures == figures
        for name, expected in outputs.items():
            for one, other in zip(done[-1].outputs[name], expected, strict=True):
                np.testing.assert_array_equal(one, other)
    averaged = results_lib.average(job, done)["test"]
    for found, one, other in zip(averaged, *(each.outputs["test"] for each in done), strict=True):
        if kind == "regression":
            np.testing.assert_allclose(found, (one + other) / 2)
        else:
            expected = (special.softmax(one, axis) + special.softmax(other, axis)) / 2
            np.testing.assert_allclose(special.softmax(found, axis), expected, atol=1e-9)
    results_lib.write_predictions(workdir, job, done[0].outputs)
    tests = next(split for split in job.splits if split.name == "test")
    said = job.kind.predictions(tests.examples, tests.features, done[0].outputs["test"])
    written = lines(tmp_path / "predictions-test.jsonl")
    assert len(written) == len(said) == len(tests.examples)
    if kind == "question answering":
        answers = json.loads((tmp_path / "squad-test.json").read_text())
        assert (
            answers == {e.id: job.kind.answer(p) for e, p in zip(tests.examples, said)} and len({*answers.values()}) > 5
        )
        odds = json.loads((tmp_path / "squad-test-null-odds.json").read_text())
        assert list(odds.values()) == pytest.approx([p.null_odds for p in said])


def test_the_seeds_begin_with_the_same_encoder_and_heads_of_their_own(tiny_job):
    job = tiny_job()
    one, other = job.initial(0), job.initial(1)
    same = jax.tree.map(lambda a, b: bool((a == b).all()), one, other)
    assert all(jax.tree.leaves(same["shared"])) and all(jax.tree.leaves(same["discriminator"]))
    assert not same["head"]["output"]["kernel"]
    fresh = Job(job.config, job.data, job.encoder.fresh(), print).initial(0)
    assert not (fresh["shared"]["word"] == one["shared"]["word"]).any()


def test_what_a_task_asks_too_much_of_is_said(tiny_job, place):
    """Texts longer than those of pretraining, and a handful of steps."""
    job = tiny_job()
    lengths = np.array([len(feature.input_ids) for feature in job.train])
    epochs = -(-200 * 32 // len(lengths))

    def said(trained_length, epochs):
        warned = []
        train = task_config.FinetuneTrainConfig(epochs=epochs, batch_size=32)
        named = dataclasses.replace(job.encoder, trained_length=trained_length)
        Job(dataclasses.replace(job.config, train=train), job.data, named, warned.append)
        long, few = "are longer than the", "too few for most tasks"
        return [next((text for text in warned if part in text), "") for part in (long, few)]

    long, few = said(31, epochs - 1)
    assert long.startswith(
        f"WARNING: {(lengths > 31).sum():,} of {len(lengths):,} training texts are longer than the 31 tokens"
    )
    assert few.startswith("WARNING: ") and f"train.epochs={epochs} or more" in few
    assert said(32, epochs) == ["", ""]
    assert encoder.load(str(place / "pretrained")).trained_length == 32


def test_layers_have_rates_of_their_own(tiny_job):
    """By each of the two rules; both count layers from the head down."""
    from electra_jax.training.optimizer import layer_rates

    for rule, powers in (("fixed", (1, 2, 3)), ("reference", (2, 3, 4))):
        job = tiny_job(optimizer={"layerwise_decay": 0.5, "layerwise_rule": rule})
        rates = layer_rates(job.program.architecture.shapes, job.run_config.optimizer)
        top, below = rates["discriminator"]["encoder"]["layers"]["output"]["bias"].reshape(-1)[::-1]
        assert (top, below) == (0.5 ** powers[0], 0.5 ** powers[1])
        assert rates["head"]["output"]["kernel"] == 1 and rates["shared"]["word"] == 0.5 ** powers[2]


def test_a_batch_of_padded_rows_has_the_loss_of_the_others(tiny_job):
    """Rows without a feature have weight 0; padding, by whole rows or after a text, changes nothing."""
    from electra_jax.tasks import batches

    job = tiny_job("tagging")
    params, losses = job.initial(0), []
    module = job.program.architecture.merge(params)
    sizes = np.asarray([len(feature.input_ids) for feature in job.train])
    shortest, longest = int(sizes.argmin()), int(np.where(sizes < 32, sizes, 0).argmax())
    assert sizes[shortest] < sizes[longest] - 5
    for rows, length in ((2, sizes[longest]), (7, 32)):
        planned = batches.Planned(length, np.array([shortest, longest]))
        made = batches.batch(planned, job.train, rows, 0, True, np.zeros((rows, 2), np.uint32))
        assert made.input_ids.shape == (rows, length)
        terms = job.program.objective.terms(_without_dropout(module), made)
        losses.append(float(terms.losses["task_loss"].total / terms.losses["task_loss"].weight))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def _without_dropout(module):
    return lambda ids, types, pad, noise: module(ids, types, pad, None)


BAD = [
    (["--init=nothing"], "--init=nothing: neither a work directory"),
    (["--init=pretrained@3"], "pretrained@3: no such step"),
    (["--init=pretrained", "--config.task.max_length=64"], "config.task.max_length=64 cannot work: pretrained"),
    (["--init=pretrained", "--config.task.metric=f2"], "config.task.metric='f2' cannot work"),
    (["--init=pretrained", "--config.task.path="], "config.task.path='' cannot work"),
    (["--init=pretrained", "--config.train.batch_size=0"], "config.train.batch_size=0 cannot work"),
    (["--init=pretrained", "--config.seed=-1"], "config.seed=-1 cannot work"),
]


@pytest.mark.parametrize(("flags", "message"), BAD)
def test_bad_input_is_one_line(place, monkeypatch, capsys, flags, message):
    from electra_jax import cli, finetune

    monkeypatch.chdir(place)
    monkeypatch.setattr(
        sys, "argv", ["finetune", CONFIG, task_of(place, "classification"), *FAST, "--workdir=bad", *flags]
    )
    # Would outlast the test in this process: the memory settings, and a SIGTERM handler that exits with status 0.
    monkeypatch.setattr(finetune.memory, "set_up", lambda: None)
    handler = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as end:
            cli.run(finetune.main)
    finally:
        signal.signal(signal.SIGTERM, handler)
    error = capsys.readouterr().err
    assert end.value.code == 2 and error.count("\n") == 1 and message in error
    assert not (place / "bad").exists()


def test_predict_refuses_what_it_cannot_read(place):
    said = run_module("predict", f"--model={place}", cwd=place)
    assert said.returncode == 2 and "has no task.json: it is not a model that finetune wrote" in said.stderr


def test_submissions_have_glues_form(tiny_job):
    from electra_jax.tasks.results import glue_submission

    job = tiny_job()
    split = job.splits[-1]
    text = glue_submission(job, split, [np.array([0.2, 0.8]), np.array([0.9, 0.1])], "CoLA")
    assert text == "index\tprediction\n0\t1\n1\t0\n"
    assert glue_submission(job, split, [np.array([0.2, 0.8])], "RTE") == "index\tprediction\n0\tgood\n"
    assert glue_submission(tiny_job("regression"), split, [5.3, 1.23456], "STS-B").splitlines()[1:] == [
        "0\t5.000",
        "1\t1.235",
    ]


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("/home/me/runs/french/checkpoints/3000", "runs/french, step 3,000"),
        ("/mnt/checkpoints/runs/small/checkpoints/1000, random weights", "runs/small, step 1,000, random weights"),
        ("/data/checkpoints/electra-small", "checkpoints/electra-small"),
        ("google/electra-small-discriminator", "google/electra-small-discriminator"),
    ],
)
def test_a_card_names_the_encoder_without_the_folders_of_the_machine(name, shown):
    assert folder.shown_origin(name) == shown


def test_every_configuration_of_glue_is_there():
    config = load_finetune_config("configs/finetune/glue.py:all", [("seeds", "2")])
    assert len(config.suite) == 8 and config.seeds == 2
    published = [load_finetune_config(f"configs/finetune/glue.py:{word}", []).task.published for word in config.suite]
    assert sum(published) / 8 == pytest.approx(81.1375)
    # What differs from task to task in the reference (finetune/task_builder.py, configure_finetuning.py).
    configs = {word: load_finetune_config(f"configs/finetune/glue.py:{word}", []) for word in config.suite}
    assert {word for word, one in configs.items() if one.train.epochs == 10} == {"stsb", "rte"}
    assert {one.train.epochs for one in configs.values()} == {3, 10}
    assert {word for word, one in configs.items() if one.task.double_unordered} == {"mrpc", "stsb"}
    assert {word: one.task.metric for word, one in configs.items() if one.task.metric} == {"cola": "matthews"}


@pytest.mark.parametrize(
    ("word", "rate", "decay", "length", "epochs"),
    [("glue.py:mnli", 1e-4, 0.8, 128, 3), ("squad.py:1.1", 1e-4, 0.8, 512, 2), ("squad.py:2.0", 1e-4, 0.8, 512, 2),
     ("chunking.py", 1e-4, 0.8, 256, 3)],
)  # fmt: skip
def test_recipes_are_the_references_and_reach_the_train_step(word, rate, decay, length, epochs):
    config = load_finetune_config(f"configs/finetune/{word}", [])
    model = encoder.ModelConfig(max_position_embeddings=512, hidden_dropout_prob=0.3)
    made = task_config.resolve(config, model, num_examples=3200)
    steps = epochs * 100
    assert (made.data.max_seq_length, made.train.batch_size, made.train.num_train_steps) == (length, 32, steps)
    optimizer = made.optimizer
    assert (optimizer.learning_rate, optimizer.layerwise_decay, optimizer.layerwise_rule) == (rate, decay, "reference")
    assert (optimizer.warmup_steps, optimizer.weight_decay, optimizer.schedule) == (steps // 10, 0.01, "linear")
    assert not optimizer.bias_correction and optimizer.clip_norm == 1.0
    assert made.model.hidden_dropout_prob == made.model.attention_probs_dropout_prob == 0.1


@pytest.mark.parametrize("kind", ["classification", "tagging"])
def test_dropout_before_the_head_is_a_setting_of_its_own(tiny_job, kind):
    """It acts on the first token's vector, or on every token's; all other dropout is off here."""
    from electra_jax.models.noise import Noise

    outputs = []
    for rate in (0.0, 0.5):
        quiet = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "classifier_dropout": rate}
        job = tiny_job(kind, model=quiet)
        assert job.program.model.hidden_dropout_prob == 0.0
        module = job.program.architecture.merge(job.initial(0))
        ids = np.array([[2, 7, 8, 9, 3]], np.int32)
        seeds_of = [None, *(Noise(np.array([[1, n]], np.uint32)) for n in range(2))]
        outputs.append([np.asarray(module(ids, np.zeros_like(ids), 0, noise)) for noise in seeds_of])
    for quiet in outputs[0][1:]:
        np.testing.assert_array_equal(quiet, outputs[0][0])
    np.testing.assert_array_equal(outputs[1][0], outputs[0][0])
    assert np.abs(outputs[1][1] - outputs[1][0]).max() > 1e-4 and np.abs(outputs[1][2] - outputs[1][1]).max() > 1e-4


def test_an_encoder_is_the_same_from_wherever_it_comes(tiny_job, place, tmp_path, capsys):
    """A work directory, the folder that was exported from it, and the work directory that this was imported to."""
    from electra_jax import import_checkpoint

    export.main([f"--workdir={place / 'pretrained'}", f"--out={tmp_path / 'exported'}"])
    import_checkpoint.main([f"--from={tmp_path / 'exported'}", f"--workdir={tmp_path / 'imported'}"])
    job = tiny_job()
    for name in ("exported", "exported/discriminator", "imported"):
        other = Job(job.config, job.data, encoder.load(str(tmp_path / name)), print)
        jax.tree.map(np.testing.assert_array_equal, job.initial(0), other.initial(0))
        assert other.fingerprint() == job.fingerprint()
        for one, same in zip(job.train, other.train, strict=True):
            np.testing.assert_array_equal(one.input_ids, same.input_ids)


def test_a_task_in_another_script_than_the_encoders_is_refused(tiny_job, tmp_path):
    rows = [{"text": "ქართული ენა მშვენიერია", "label": n % 2} for n in range(4)]
    task_data.write_lines(tmp_path / "train.jsonl", rows)
    job = tiny_job()
    config = dataclasses.replace(job.config, task=dataclasses.replace(job.config.task, path=str(tmp_path)))
    with pytest.raises(UserError, match="100% of the task's tokens are unknown to the vocabulary of .*pretrained"):
        Job(config, loading.load(config.task), job.encoder, print)


def test_settings_may_change_until_there_is_something_to_go_on_from(tiny_job, tmp_path):
    from electra_jax.tasks.seeds import _check_same

    def check(job):
        _check_same(job, job.fingerprint(), epath.Path(tmp_path))

    check(tiny_job())
    check(tiny_job(train={"batch_size": 16}))  # as after a start that ran out of memory
    (tmp_path / "seed-0").mkdir()
    (tmp_path / "seed-0" / "result.json").write_text("{}")
    with pytest.raises(UserError, match="holds runs with train.batch_size=16, now 32"):
        check(tiny_job())
    job = tiny_job(train={"batch_size": 16})
    check(job)
    # What the data decide counts too, and so do the encoder's weights: another run may have the same path.
    decided = job.data
    job.data = dataclasses.replace(decided, task=dataclasses.replace(decided.task, metric="f1"))
    with pytest.raises(UserError, match="holds runs with task.metric='accuracy', now 'f1'"):
        check(job)
    job.data = decided
    job.start_from({**job.initial(0), "shared": jax.tree.map(lambda x: x + 1e-6, job.initial(0)["shared"])})
    with pytest.raises(UserError, match="holds runs of another encoder, from .*pretrained/checkpoints/"):
        check(job)


def test_a_suite_needs_a_split_that_is_labelled_throughout(tmp_path):
    from electra_jax.finetune import _measured

    rows = [{"text": "a", "label": n} for n in range(2)]
    task_data.write_lines(tmp_path / "train.jsonl", rows)
    config = task_config.from_dict({"task": {"path": str(tmp_path)}})
    task_data.write_lines(tmp_path / "test.jsonl", rows)
    assert _measured(config).test
    task_data.write_lines(tmp_path / "test.jsonl", [*rows, {"text": "b"}])
    with pytest.raises(UserError, match="neither validation nor test has labels to measure by"):
        _measured(config)


def test_a_home_directory_and_an_unfinished_run_are_known_to_export(place, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(place))
    export.main(["--workdir=~/pretrained", f"--out={tmp_path / 'out'}"])
    card = (tmp_path / "out" / "discriminator" / "README.md").read_text()
    assert "disc_auc" in card and "None were measured" not in card
    (tmp_path / "run" / "seed-0" / "model").mkdir(parents=True)
    (tmp_path / "run" / "seed-0" / "model" / "task.json").write_text("{}")
    with pytest.raises(UserError, match="run is not finished: of its seeds there are seed-0"):
        export.main([f"--workdir={tmp_path / 'run'}", f"--out={tmp_path / 'out2'}"])
    # A fine-tuning within the work directory of its encoder does not hide that.
    shutil.copytree(place / "pretrained", tmp_path / "whole")
    (tmp_path / "whole" / "tuned" / "model").mkdir(parents=True)
    (tmp_path / "whole" / "tuned" / "model" / "task.json").write_text("{}")
    export.main([f"--workdir={tmp_path / 'whole'}", f"--out={tmp_path / 'out3'}"])
    assert (tmp_path / "out3" / "discriminator" / "model.safetensors").is_file()


def test_a_glue_task_that_is_not_there():
    with pytest.raises(UserError, match="glue.py:wnli; known are cola, sst2"):
        load_finetune_config("configs/finetune/glue.py:wnli", [])


@pytest.mark.slow
def test_minimal_pairs(place, tmp_path):
    """A sentence's score is the log-probability that each of its tokens is the original, by transformers' discriminator."""
    import torch
    import transformers

    from electra_jax.minimal_pairs import Scorer

    exported = run_module("export", "--workdir=pretrained", f"--out={tmp_path / 'out'}", cwd=place)
    assert exported.returncode == 0, exported.stderr
    path = tmp_path / "out" / "discriminator"
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    model = transformers.ElectraForPreTraining.from_pretrained(path).eval()
    texts = ["The quick brown fox.", "jumps over the lazy dog, twice and twice"]
    for where in (str(place / "pretrained"), str(path)):
        ours, is_cut = Scorer(encoder.load(where, with_head=True))(texts)
        assert not is_cut.any()
        for text, score in zip(texts, ours):
            with torch.no_grad():
                logits = model(**tokenizer(text, return_tensors="pt")).logits[0]
            assert score == pytest.approx(torch.log(torch.sigmoid(-logits)).sum().item(), abs=1e-4)
    good, bad = texts if ours[0] > ours[1] else texts[::-1]
    pairs = [
        {"sentence_good": good, "sentence_bad": bad, "UID": "a"},
        {"sentence_good": bad, "sentence_bad": good, "UID": "b"},
    ]
    task_data.write_lines(tmp_path / "pairs.jsonl", pairs)
    said = run_module("minimal_pairs", "--init=pretrained", str(tmp_path / "pairs.jsonl"), cwd=place)
    assert said.stdout.strip().endswith("accuracy 0.5000 of 2 pairs; chance is 0.5"), said.stderr
    assert re.search(r"a +1\.0000  of 1\n +b +0\.0000  of 1", said.stdout)
    # Equal scores count as wrong, and pairs that are too long are left out; the command says both.
    pairs += [{"sentence_good": good, "sentence_bad": good}, {"sentence_good": "a " * 100, "sentence_bad": "b " * 100}]
    task_data.write_lines(tmp_path / "pairs.jsonl", pairs)
    said = run_module("minimal_pairs", "--init=pretrained", str(tmp_path / "pairs.jsonl"), cwd=place)
    assert said.stdout.strip().endswith("accuracy 0.3333 of 3 pairs; chance is 0.5"), said.stderr
    assert (
        "left out 1 of the pairs: longer than 32 tokens, the longest text trained on" in said.stdout
        and "1 of the pairs have one score twice" in said.stdout
    )
    with pytest.raises(UserError, match="generator has no discriminator with its head"):
        encoder.load(str(tmp_path / "out" / "generator"), with_head=True)
    said = run_module(
        "minimal_pairs", "--init=pretrained", "--json=/nowhere/x.json", str(tmp_path / "pairs.jsonl"), cwd=place
    )
    assert said.returncode == 2 and "/nowhere/x.json cannot be written: /nowhere is no folder" in said.stderr


@pytest.mark.slow
def test_train_probes_a_task(place, corpus_file):
    """The probe reports what fine-tuning its step's checkpoint gives, and does not change the run itself."""
    from conftest import SMALL, config_file

    config_file(place / "small.py", {**SMALL, "data": {**SMALL["data"], "source": str(corpus_file)}})
    flags = [f"--config.probe.config={place / 'probe.py'}", f"--config.probe.path={place / 'regression'}"]
    settings = {"train": {"epochs": 6.0}, "optimizer": {"learning_rate": 3e-3, "layerwise_decay": 1.0}}
    config_file(place / "probe.py", {"task": {"max_length": 32}, "seeds": 1, "max_restarts": 0, **settings})
    plain, probed = (
        run_module("train", "--config=small.py", f"--workdir={name}", *more, cwd=place)
        for name, more in (("plain", []), ("probed", [*flags, "--config.probe.interval_steps=10"]))
    )
    assert plain.returncode == 0 and probed.returncode == 0, probed.stderr
    rows = [lines(place / name / "metrics.jsonl") for name in ("plain", "probed")]
    found = {row["step"]: row["eval/probe_spearman"] for row in rows[1] if "eval/probe_spearman" in row}
    assert found.keys() == {10, 20} and not (place / "probed" / "probe").exists()
    assert [row["loss"] for row in rows[0] if "loss" in row] == [row["loss"] for row in rows[1] if "loss" in row]
    alone = run_module(
        "finetune", f"--config={place / 'probe.py'}", task_of(place, "regression"), "--init=probed@20", "--workdir=alone",
        cwd=place,
    )  # fmt: skip
    assert alone.returncode == 0, alone.stderr
    figures = results(place, "alone")["figures"]
    assert figures["validation"]["spearman"]["mean"] == pytest.approx(found[20], abs=1e-6)
    # The controls: the figure is neither the test set's nor that of the other checkpoint.
    assert figures["test"]["spearman"]["mean"] != pytest.approx(found[20], abs=1e-4)
    assert found[10] != pytest.approx(found[20], abs=1e-4)
    # A mistake in the probe's settings is reported before the data are prepared, which may take hours.
    early = [*flags, f"--config.probe.path={place / 'absent'}", "--config.data.source=nowhere/*.txt"]
    said = run_module("train", "--config=small.py", "--workdir=misspelt", *early, cwd=place)
    assert said.returncode == 2 and f"config.probe.config={place / 'probe.py'}: config.task.path=" in said.stderr
    assert "absent: no such folder" in said.stderr
    refused = run_module("train", "--config=small.py", *flags, "--config.probe.interval_steps=15", cwd=place)
    assert (
        "config.probe.interval_steps=15 cannot work: it must be a multiple of evaluation.interval_steps"
        in refused.stderr
    )


@pytest.mark.slow
def test_a_suite_prints_and_writes_its_average(place):
    """As glue.py:all does, on two small tasks."""
    shutil.copytree(place / "regression", place / "fewer")
    task_data.write_lines(place / "fewer" / "train.jsonl", lines(place / "regression" / "train.jsonl")[:100])
    (place / "suite.py").write_text(
        "import ml_collections\n\n\ndef get_config(word):\n"
        "    both = ('regression', 'fewer')\n"
        "    task = {'path': word, 'max_length': 32, 'published': 90.0}\n"
        "    more = {'suite': both} if word == 'all' else {'task': task}\n"
        "    more |= {'optimizer': {'learning_rate': 3e-3, 'layerwise_decay': 1.0}, 'train': {'epochs': 6.0}}\n"
        "    return ml_collections.ConfigDict({'seeds': 2, 'max_restarts': 0, **more})\n"
    )
    done = run_module("finetune", "--config=suite.py:all", "--init=pretrained", "--workdir=suite", cwd=place)
    assert done.returncode == 0, done.stderr
    whole = json.loads((place / "suite" / "results.json").read_text())
    parts = [results(place, f"suite/{name}") for name in ("regression", "fewer")]
    assert all(len({*part["values"]}) == 2 for part in parts)
    assert whole["average"] == pytest.approx(100 * np.mean([part["median"] for part in parts]))
    deviation = np.std(100 * np.mean([part["values"] for part in parts], 0), ddof=1)
    assert whole["standard_deviation"] == pytest.approx(deviation) and whole["published"] == 90.0
    assert (whole["metric"], len(whole["values"])) == ("average", 2) and whole["mean"] == pytest.approx(
        np.mean(whole["values"])
    )
    assert re.search(r"average of 2 medians \d+\.\d\d, standard deviation over 2 seeds", done.stdout.splitlines()[-1])


def test_a_suite_reads_all_data_before_the_first_task(place):
    (place / "broken.py").write_text(
        "import ml_collections\n\n\ndef get_config(word):\n"
        "    more = {'suite': ('classification', 'absent')} if word == 'all' else {'task': {'path': word, 'max_length': 32}}\n"
        "    return ml_collections.ConfigDict(more)\n"
    )
    said = run_module("finetune", "--config=broken.py:all", "--init=pretrained", "--workdir=broken", cwd=place)
    assert said.returncode == 2 and "config.task.path=absent: no such folder" in said.stderr
    assert not (place / "broken").exists()


def test_a_probe_needs_something_to_report(place, tmp_path):
    task_data.write_lines(tmp_path / "train.jsonl", [{"text": "a", "label": n % 2} for n in range(8)])
    config = task_config.from_dict({"task": {"path": str(tmp_path), "max_length": 32}})
    with pytest.raises(UserError, match="no labelled validation or test set to report figures of"):
        mesh = partitioning.make_mesh(MeshConfig(), jax.devices()[:1])
        Probe(
            config, loading.load(config.task), encoder.load(str(place / "pretrained")), epath.Path(tmp_path / "s"), mesh
        )


def test_a_probe_is_on_the_runs_mesh_saves_nothing_and_may_fail(place, tmp_path, monkeypatch, capsys):
    """On a TPU the order of devices depends on the mesh's shape: weights laid out on one mesh do not fit another."""
    axes = (jax.sharding.AxisType.Auto,) * 3
    mesh = jax.sharding.Mesh(
        np.array(jax.devices()[1::-1]).reshape(1, 2, 1), ("data", "fsdp", "tensor"), axis_types=axes
    )
    pretrained = encoder.load(str(place / "pretrained"), with_head=True)
    task = {"path": str(place / "classification"), "max_length": 32}
    config = task_config.from_dict({"task": task, "train": {"epochs": 1.0}, "evaluation": {"select": "best"}})
    without = dataclasses.replace(pretrained, params=None)
    probe = Probe(config, loading.load(config.task), without, epath.Path(tmp_path / "scratch"), mesh)
    monkeypatch.setattr(finetuning, "Checkpoints", None)  # which would be written, and waited for, before the run's own
    with Interrupts(mesh, 0) as interrupts:
        figures = probe(pretrained.params(mesh), interrupts)
        assert figures.keys() == {"probe_accuracy"} and 0 < figures["probe_accuracy"] <= 1
        assert not (tmp_path / "scratch").exists()
        for text in ("RESOURCE_EXHAUSTED: out of memory", "INTERNAL: other"):

            def fail(*arguments, text=text):
                raise jax.errors.JaxRuntimeError(text)

            monkeypatch.setattr(finetuning, "run", fail)
            if text.startswith("RESOURCE"):
                assert probe(pretrained.params(mesh), interrupts) == {}
                assert "the probe gave nothing: RESOURCE_EXHAUSTED" in capsys.readouterr().out
            else:
                with pytest.raises(jax.errors.JaxRuntimeError):
                    probe(pretrained.params(mesh), interrupts)


@pytest.mark.slow
def test_other_data_in_the_same_place_are_refused(place, tmp_path):
    data = task_data.make(tmp_path / "data", "classification")
    flags = [CONFIG, "--init=pretrained", f"--config.task.path={data}", f"--workdir={tmp_path / 'w'}", *FAST]
    flags += ["--config.train.epochs=1", "--config.max_restarts=0"]
    assert run_module("finetune", *flags, cwd=place).returncode == 0
    task_data.write_lines(data / "test.jsonl", [{"text": "Good! another", "label": 1}])
    again = run_module("finetune", *flags, cwd=place)
    assert again.returncode == 2 and "holds runs with data=" in again.stderr
    into = run_module("finetune", *flags, f"--workdir={place / 'pretrained'}", cwd=place)
    assert into.returncode == 2 and "holds a pretraining run" in into.stderr


def test_a_fine_tuned_model_is_exported_with_its_rights(tiny_job, tmp_path, capsys):
    from electra_jax.tasks.folder import write

    job, about = tiny_job(), {"seed": 0, "step": 0, "metric": "f1", "figures": {}, "from": "x"}
    write(tmp_path / "suite" / "cola" / "model", job.initial(0), job.encoder.model, job.kind, about)
    given = [f"--workdir={tmp_path / 'suite' / 'cola'}", f"--out={tmp_path / 'out'}"]
    for flags in (["--step=5"], ["--push_every_step", "--push_to=a/b"]):
        with pytest.raises(UserError, match="a fine-tuned model has no steps"):
            export.main([*given, *flags])
    export.main([*given, "--license=mit", "--language=en,fr"])
    card = (tmp_path / "out" / "model" / "README.md").read_text()
    assert (
        card.startswith("---\nlicense: mit\nlanguage:\n- en\n- fr\nlibrary_name: transformers\n")
        and card.count("---\n") == 2
    )
    for file in (tmp_path / "suite" / "cola" / "model").iterdir():
        assert file.name == "README.md" or file.read_bytes() == (tmp_path / "out" / "model" / file.name).read_bytes()
    with pytest.raises(UserError, match="has a model of each task; give one of the folders in it: cola"):
        export.main([f"--workdir={tmp_path / 'suite'}", f"--out={tmp_path / 'other'}"])


def test_predict_names_what_it_cannot_label(place, tiny_job, tmp_path):
    from electra_jax.tasks.folder import write

    job = tiny_job("pair classification")
    about = {"seed": 0, "step": 0, "metric": "f1", "figures": {}, "from": "x"}
    write(tmp_path / "model", job.initial(0), job.encoder.model, job.kind, about)
    for text, message in ((b"one\n", "standard input:1 has 1 parts, the task reads 2: text_a and text_b"),
                          (b"a\tb\n\n", "standard input:2 is empty"), (b"\xff\tb\n", "no UTF-8 text")):  # fmt: skip
        (tmp_path / "in.txt").write_bytes(text)
        said = run_module("predict", f"--model={tmp_path / 'model'}", f"--input={tmp_path / 'in.txt'}", cwd=place)
        message = message.replace("standard input", str(tmp_path / "in.txt"))
        assert said.returncode == 2 and message in said.stderr and said.stderr.count("\n") == 1, said.stderr


def test_predict_says_what_it_did_not_read_and_loses_nothing(place, tiny_job, tmp_path, capsys, monkeypatch):
    """Words from standard input after a byte order mark, with another field name; texts that are cut; unusable files."""
    from electra_jax.tasks.folder import write

    job = tiny_job("tagging", task={"path": str(place / "tagging"), "text": "tokens|words", "max_length": 32})
    about = {"seed": 0, "step": 0, "metric": "f1", "figures": {}, "from": "x"}
    write(tmp_path / "tags", job.initial(0), job.encoder.model, job.kind, about)
    said = run_module("predict", f"--model={tmp_path / 'tags'}", cwd=place, input="\ufeffOne fox ran\nso did it\n")
    assert [json.loads(line)["tokens"] for line in said.stdout.splitlines()] == [
        ["One", "fox", "ran"],
        ["so", "did", "it"],
    ]
    job = tiny_job()
    write(tmp_path / "texts", job.initial(0), job.encoder.model, job.kind, about)
    model, place = f"--model={tmp_path / 'texts'}", tmp_path / "in.txt"
    place.write_text("short\n" + "word " * 100 + "\n")
    capsys.readouterr()
    predict.main([model, f"--input={place}"])
    said = capsys.readouterr()
    assert said.out.count("\n") == 2
    assert said.err == "1 of 2 texts were cut, as the model was fine-tuned with task.max_length=32\n"
    with pytest.raises(UserError, match="in.txt is the input, which would be lost"):
        predict.main([model, f"--input={place}", f"--output={tmp_path}/./in.txt"])
    assert place.read_text().startswith("short")
    with place.open() as same, monkeypatch.context() as patched:
        patched.setattr(sys, "stdin", same)
        with pytest.raises(UserError, match="in.txt is the input, which would be lost"):
            predict.main([model, f"--output={place}"])
    # A file of labels is replaced only when all is labelled; a carriage return within a line makes no second one of it.
    labels, bad = tmp_path / "labels.jsonl", tmp_path / "bad.txt"
    predict.main([model, f"--input={place}", f"--output={labels}"])
    before = labels.read_text()
    bad.write_text("one\n\n")
    with pytest.raises(UserError, match="bad.txt:2 is empty"):
        predict.main([model, f"--input={bad}", f"--output={labels}"])
    assert labels.read_text() == before and before.count("\n") == 2
    bad.write_bytes(b"one\rtwo\nthree\n")
    predict.main([model, f"--input={bad}", f"--output={labels}"])
    assert [row["id"] for row in lines(labels)] == ["0", "1"]
    with pytest.raises(UserError, match="in.csv: what is in it does not follow from its name; set --format"):
        predict.main([model, f"--input={tmp_path / 'in.csv'}"])


def test_a_reader_that_leaves_is_no_error(place, tiny_job, tmp_path):
    from electra_jax.tasks.folder import write

    job = tiny_job()
    about = {"seed": 0, "step": 0, "metric": "f1", "figures": {}, "from": "x"}
    write(tmp_path / "texts", job.initial(0), job.encoder.model, job.kind, about)
    (tmp_path / "in.txt").write_text("some words\n" * 3000)  # more than a pipe holds
    command = f"{sys.executable} -m electra_jax.predict --model={tmp_path / 'texts'} --input={tmp_path / 'in.txt'} | head -n 1"
    said = subprocess.run(["bash", "-o", "pipefail", "-c", command], env=process_env(), capture_output=True, text=True)
    assert said.returncode == 0 and said.stdout.count("\n") == 1 and said.stderr == ""


def test_predict_reads_squads_own_file(place, tiny_job, tmp_path, capsys):
    """It gives the same answers, under the same ids, as for these questions written one per line."""
    from electra_jax.tasks.folder import write

    sizes = {"max_length": 32, "max_query_length": 8, "doc_stride": 8}
    job = tiny_job("question answering", task={"path": str(place / "question_answering"), **sizes})
    about = {"seed": 0, "step": 0, "metric": "f1", "figures": {}, "from": "x"}
    write(tmp_path / "model", job.initial(0), job.encoder.model, job.kind, about)
    asked = [{"id": "q1", "question": "Who ran?"}, {"id": "q2", "question": "Where?"}]
    context = "The fox ran home. It was in the forest."
    (tmp_path / "asked.json").write_text(json.dumps({"data": [{"paragraphs": [{"context": context, "qas": asked}]}]}))
    task_data.write_lines(tmp_path / "asked.jsonl", [{**one, "context": context} for one in asked])
    whole, by_line = (predicted(capsys, tmp_path / "model", tmp_path / name) for name in ("asked.json", "asked.jsonl"))
    assert [one["id"] for one in whole] == ["q1", "q2"] and whole == by_line
