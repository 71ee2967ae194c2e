"""Preparing data: complete or absent, never partial; refused when it does not fit."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT, process_env, run_module, small_config, with_data

from electra_jax import config as config_lib
from electra_jax.data import build, corpus, pipeline
from electra_jax.errors import UserError


def quiet(text: str) -> None:
    del text


def records_of(prepared: build.Prepared, split: str = "train") -> np.ndarray:
    records = pipeline.Records(prepared.directory, split)
    return records.read(range(len(records)))


def test_every_token_is_kept(prepared, corpus_file):
    data = config_lib.DataConfig(source=str(corpus_file), validation_fraction=0.05)
    for split, held_out in (("train", False), ("validation", True)):
        texts = [t for t in corpus.documents(data) if corpus.is_held_out(t, data) == held_out]
        expected = np.concatenate(prepared.tokenizer.encode_batch(texts))
        ids = records_of(prepared, split)
        text = ids[(ids != 0) & (ids != prepared.tokenizer.special.cls) & (ids != prepared.tokenizer.special.sep)]
        np.testing.assert_array_equal(np.bincount(text, minlength=512), np.bincount(expected, minlength=512))
        stats = prepared.metadata[split]
        assert stats["documents"] == len(texts)
        assert stats["text_tokens"] == len(expected) == stats["source_tokens"]
        assert stats["dropped_tokens"] == 0
        assert stats["padding"] == (ids == 0).sum()


def test_the_same_input_gives_the_same_records(prepared, corpus_file, tmp_path):
    again = build.prepare(with_data(small_config(), corpus_file, tmp_path), say=quiet)
    assert again.directory != prepared.directory
    assert again.directory.parts[-3:] == prepared.directory.parts[-3:]
    np.testing.assert_array_equal(records_of(again), records_of(prepared))


def test_what_is_there_is_not_built_again(prepared, corpus_file, data_directory):
    said = []
    build.prepare(with_data(small_config(), corpus_file, data_directory), say=said.append)
    assert said == []


def test_settings_that_change_the_records_change_the_folder(corpus_file, tmp_path):
    base = with_data(small_config(), corpus_file, tmp_path)
    folders = {build.prepare(base, say=quiet).directory}
    for changes in ({"max_seq_length": 16}, {"packing": "two_segments"}, {"validation_fraction": 0.2}):
        changed = dataclasses.replace(base, data=dataclasses.replace(base.data, **changes))
        folders.add(build.prepare(changed, say=quiet).directory)
    other_vocabulary = dataclasses.replace(base, tokenizer=dataclasses.replace(base.tokenizer, vocab_size=300))
    folders.add(build.prepare(other_vocabulary, say=quiet).directory)
    assert len(folders) == 5


def test_two_segment_records(corpus_file, tmp_path):
    config = with_data(small_config(data={"packing": "two_segments"}), corpus_file, tmp_path)
    prepared = build.prepare(config, say=quiet)
    ids = records_of(prepared)
    assert ((ids == prepared.tokenizer.special.cls).sum(1) == 1).all()
    assert prepared.metadata["train"]["dropped_tokens"] > 0


def test_a_changed_source_is_refused(corpus_file, tmp_path):
    text = tmp_path / "corpus.txt"
    shutil.copy(corpus_file, text)
    config = with_data(small_config(), text, tmp_path / "datasets")
    prepared = build.prepare(config, say=quiet)
    with open(text, "a") as file:
        file.write("\n\nOne more document.")
    with pytest.raises(UserError, match=r"changed since .*corpus\.txt"):
        build.prepare(config, say=quiet)
    text.unlink()
    assert build.prepare(config, say=quiet).directory == prepared.directory  # prepared elsewhere: no text needed


def test_tampered_metadata_is_refused(corpus_file, tmp_path):
    config = with_data(small_config(), corpus_file, tmp_path)
    directory = build.prepare(config, say=quiet).directory
    metadata = json.loads((directory / "metadata.json").read_text())
    (directory / "metadata.json").write_text(json.dumps({**metadata, "vocabulary": "another"}))
    with pytest.raises(UserError, match="its vocabulary is 'another'"):
        build.prepare(config, say=quiet)


def test_too_little_text(tmp_path):
    (tmp_path / "one.txt").write_text("A single document. " * 50)
    config = with_data(small_config(data={"validation_fraction": 0.01}), tmp_path / "one.txt", tmp_path / "d")
    with pytest.raises(UserError, match="none fell in the held-out split"):
        build.prepare(config, say=quiet)
    assert not list((tmp_path / "d" / "electra_records").glob("*/[0-9]*"))
    config = with_data(small_config(data={"validation_fraction": 0.0}), tmp_path / "one.txt", tmp_path / "d")
    assert "validation" not in build.prepare(config, say=quiet).metadata
    (tmp_path / "empty.txt").write_text("\n\n")
    config = with_data(small_config(), tmp_path / "empty.txt", tmp_path / "d")
    with pytest.raises(UserError, match="holds no text"):
        build.prepare(config, say=quiet)


@pytest.mark.slow
def test_killed_at_any_moment_it_leaves_nothing_partial(tmp_path):
    """Real processes, SIGKILL at moments spread over the whole preparation, each followed by a check."""
    config = ROOT / "configs/tiny.py"
    overrides = ["--config.tokenizer.vocab_size=1000", "--config.data.source=embedded"]
    complete = tmp_path / "complete"
    done = run_module("prepare", f"--config={config}", *overrides, f"--config.data.directory={complete}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    command = [
        sys.executable,
        "-m",
        "electra_jax.prepare",
        f"--config={config}",
        *overrides,
        "--config.data.directory=killed",
    ]
    started = time.monotonic()
    subprocess.run(command, cwd=tmp_path, env=process_env(), check=True, capture_output=True)
    duration = time.monotonic() - started
    shutil.rmtree(tmp_path / "killed")
    interrupted = 0
    for share in np.linspace(0.4, 0.95, 5):
        process = subprocess.Popen(
            command, cwd=tmp_path, env=process_env(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        time.sleep(share * duration)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.communicate()
        for found in (tmp_path / "killed").glob("electra_records/*/1.0.0"):
            assert sorted(f.name for f in found.iterdir()) == sorted(
                f.name for f in next(complete.glob("electra_records/*/1.0.0")).iterdir()
            )
        interrupted += bool(list((tmp_path / "killed").glob("electra_records/*/incomplete.*")))
        if share < 0.9:  # keep each interruption an interruption
            for found in (tmp_path / "killed").glob("electra_records/*/1.0.0"):
                shutil.rmtree(found)
    assert interrupted, "no kill hit the building of the data set: adjust the moments"
    last = run_module("prepare", f"--config={config}", *overrides, "--config.data.directory=killed", cwd=tmp_path)
    assert last.returncode == 0, last.stderr
    assert not list((tmp_path / "killed").glob("electra_records/*/incomplete.*"))
    for file in next(complete.glob("electra_records/*/1.0.0")).iterdir():
        if "array_record" in file.name:
            (twin,) = (tmp_path / "killed").glob(f"electra_records/*/1.0.0/{file.name}")
            assert twin.read_bytes() == file.read_bytes()


@pytest.mark.slow
def test_two_processes_at_once_build_once(tmp_path):
    command = [
        sys.executable, "-m", "electra_jax.prepare", f"--config={ROOT / 'configs/tiny.py'}",
        "--config.tokenizer.vocab_size=1000", f"--config.data.directory={tmp_path / 'd'}",
    ]  # fmt: skip
    both = [
        subprocess.Popen(command, env=process_env(), cwd=tmp_path, stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    outputs = [process.communicate()[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sum("prepared in" in output for output in outputs) == 1
    assert os.listdir(tmp_path / "d" / "electra_records")
