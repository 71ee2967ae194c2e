"""Preparing data: a data set is either complete or not there; refused if it does not fit; nothing lost, nothing twice."""

import contextlib
import dataclasses
import errno
import json
import os
import shutil
import signal
import time
from pathlib import Path

import filelock
import numpy as np
import pytest

from commands import Command
from conftest import ROOT, documents, process_env, run_module, small_config, with_data
from electra_jax import storage
from electra_jax.config import TokenizerConfig
from electra_jax.data import build, dataset, pipeline, sources, survey, work
from electra_jax.data import tokenizer as tokenizer_lib
from electra_jax.data.readers import Broken
from electra_jax.data.text import SourceText
from electra_jax.errors import UserError
from electra_jax.interop import importing


def quiet(text: str) -> None:
    del text


def sequences_of(prepared: build.Prepared, split: str = "train", length: int = 32, number: int = 0) -> np.ndarray:
    records = pipeline.Records(prepared.sets[length][number], split)
    return records.read(range(len(records)))


def metadata_of(prepared: build.Prepared) -> dict:
    return prepared.sets[32][0].metadata


def config_for(source, directory, **data):
    """The test configuration on a source."""
    return small_config(data={**data, "source": str(source), "directory": str(directory)})


def files_of(directory: Path) -> dict[str, bytes]:
    """The files of a data set, without the one that says when it was made."""
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.name != "dataset_info.json"
    }


def text_of(ids: np.ndarray, special) -> np.ndarray:
    return ids[(ids != special.pad) & (ids != special.cls) & (ids != special.sep)]


@pytest.mark.parametrize("shard_bytes", [2**20, 20_000])
def test_every_token_is_kept(corpus_file, tmp_path, shard_bytes):
    config = config_for(corpus_file, tmp_path, shard_bytes=shard_bytes)
    prepared = build.prepare(config, say=quiet)
    (shards,) = {len(metadata_of(prepared)[split]["shards"]) for split in ("train", "validation")}
    assert shards == -(-corpus_file.stat().st_size // shard_bytes)
    for split, held_out in (("train", False), ("validation", True)):
        texts = [t for t in documents(config.data) if survey.is_held_out(survey.digest(t), 0.05) == held_out]
        expected = np.concatenate(prepared.tokenizer.encode_batch(texts))
        ids = sequences_of(prepared, split)
        text = text_of(ids, prepared.tokenizer.special)
        np.testing.assert_array_equal(np.bincount(text, minlength=512), np.bincount(expected, minlength=512))
        stats = metadata_of(prepared)[split]
        assert stats["documents"] == len(texts)
        assert stats["text_tokens"] == len(expected) == stats["source_tokens"]
        assert stats["dropped_tokens"] == 0
        assert stats["padding"] == (ids == 0).sum()


def test_a_vocabulary_of_more_than_16_bits(prepared, corpus_file, tmp_path):
    """The same sequences; all ids except those of special tokens are shifted by the fillers put before them."""
    words = prepared.tokenizer.to_json()["vocabulary"].rstrip("\n").split("\n")
    fillers = [f"filler{number}" for number in range(2**16)]
    (tmp_path / "vocab.txt").write_text("\n".join([*words[:5], *fillers, *words[5:]]) + "\n")
    config = with_data(small_config(tokenizer={"vocab_file": str(tmp_path / "vocab.txt")}), corpus_file, tmp_path)
    ids, small = sequences_of(build.prepare(config, say=quiet)), sequences_of(prepared)
    np.testing.assert_array_equal(np.where(ids < 5, ids, ids - 2**16), small)
    assert ids.max() > 2**16
    for size, dtype in ((2**16, np.uint16), (2**16 + 1, np.int32)):  # ids below the size
        assert dataset.features(32, size)["input_ids"].np_dtype == dtype


def test_tfds_reads_it(prepared):
    """A data set like any of TFDS's own."""
    import tensorflow_datasets as tfds

    (made,) = prepared.sets[32]
    source = tfds.builder_from_directory(str(made.directory)).as_data_source("train")
    ids = np.concatenate([record["input_ids"] for record in source])[: made.metadata["train"]["sequences"]]
    np.testing.assert_array_equal(ids, sequences_of(prepared))


def test_the_same_input_gives_the_same_records(prepared, corpus_file, tmp_path):
    again = build.prepare(with_data(small_config(), corpus_file, tmp_path), say=quiet)
    (one,), (other,) = again.directories, prepared.directories
    assert one != other and Path(one).parts[-3:] == Path(other).parts[-3:]
    assert files_of(Path(one)) == files_of(Path(other))


def test_the_order_within_a_shard_is_random(prepared, corpus_file):
    """Documents that are neighbours in the text are not neighbours in the records."""
    texts = list(documents(with_data(small_config(), corpus_file, Path()).data))
    first = {tuple(ids[:20].tolist()) for ids in prepared.tokenizer.encode_batch(texts[:40])}
    ids = sequences_of(prepared)
    cls = prepared.tokenizer.special.cls
    found = [i for i, row in enumerate(ids) if row[0] == cls and tuple(row[1:21].tolist()) in first]
    assert len(found) > 20 and np.ptp(found) > len(ids) / 2


def test_what_is_there_is_not_built_again(prepared, corpus_file, data_directory):
    said = []
    build.prepare(with_data(small_config(), corpus_file, data_directory), say=said.append)
    assert said == []


def test_what_is_there_is_read_without_waiting(prepared, corpus_file, data_directory, monkeypatch):
    """As needed by many processes that start at once, or while another run prepares other text in the same directory."""

    @contextlib.contextmanager
    def refuse(*_):
        raise AssertionError("waits for others")
        yield

    monkeypatch.setattr(build, "_alone", refuse)
    config = with_data(small_config(), corpus_file, data_directory)
    assert build.prepare(config, say=lambda text: None).digest == prepared.digest
    with pytest.raises(AssertionError, match="waits for others"):  # the control
        build.prepare(dataclasses.replace(config, seed=1, data=dataclasses.replace(config.data, shard_bytes=5000)))


def test_workers_fit_the_memory(monkeypatch):
    pages = {"SC_PHYS_PAGES": 3 * 2**20, "SC_PAGE_SIZE": 1024}  # 3 GiB
    monkeypatch.setattr(os, "sysconf", pages.__getitem__)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(64), raising=False)
    assert 1 <= work._workers() <= 3
    pages["SC_PHYS_PAGES"] = 100
    assert work._workers() == 1


def test_settings_that_change_the_records_change_the_folder(corpus_file, tmp_path):
    base = config_for(corpus_file, tmp_path)
    folders = {*build.prepare(base, say=quiet).directories}
    changes = [{"max_seq_length": 16}, {"packing": "two_segments"}, {"validation_fraction": 0.2}, {"deduplicate": True}]
    for change in [*changes, {"shard_bytes": 50_000}]:
        changed = dataclasses.replace(base, data=dataclasses.replace(base.data, **change))
        folders |= {*build.prepare(changed, say=quiet).directories}
    other_vocabulary = dataclasses.replace(base, tokenizer=dataclasses.replace(base.tokenizer, vocab_size=300))
    folders |= {*build.prepare(other_vocabulary, say=quiet).directories}
    assert len(folders) == 7


def test_two_segment_records(corpus_file, tmp_path):
    prepared = build.prepare(config_for(corpus_file, tmp_path, packing="two_segments"), say=quiet)
    ids = sequences_of(prepared)
    assert ((ids == prepared.tokenizer.special.cls).sum(1) == 1).all()
    assert metadata_of(prepared)["train"]["dropped_tokens"] > 0


def test_several_lengths_from_one_pass(corpus_file, tmp_path):
    """Each holds all of the text, and is what a run of that length alone would have."""
    config = config_for(corpus_file, tmp_path, curriculum_lengths=(8, 16), curriculum_steps=(5, 10))
    said = []
    prepared = build.prepare(config, say=said.append)
    assert list(prepared.sets) == [8, 16, 32]
    assert sum("prepared in" in line for line in said) == 1
    texts = [np.sort(text_of(sequences_of(prepared, length=n), prepared.tokenizer.special)) for n in prepared.sets]
    for text in texts[1:]:
        np.testing.assert_array_equal(text, texts[0])
    alone = build.prepare(config_for(corpus_file, tmp_path / "alone", max_seq_length=16), say=quiet)
    np.testing.assert_array_equal(sequences_of(alone, length=16), sequences_of(prepared, length=16))
    said.clear()
    build.prepare(config_for(corpus_file, tmp_path, max_seq_length=16), say=said.append)
    assert not said  # it is there


def test_a_changed_source_is_refused(corpus_file, tmp_path):
    text = tmp_path / "corpus.txt"
    shutil.copy(corpus_file, text)
    config = config_for(text, tmp_path / "datasets")
    prepared = build.prepare(config, say=quiet)
    with open(text, "a") as file:
        file.write("\n\nOne more document.")
    with pytest.raises(UserError, match=r"changed since .*corpus\.txt"):
        build.prepare(config, say=quiet)
    text.unlink()
    assert build.prepare(config, say=quiet).directories == prepared.directories  # prepared elsewhere: no text needed


def test_new_and_lost_files_are_refused(corpus_file, tmp_path):
    for name in ("a", "b"):
        shutil.copy(corpus_file, tmp_path / f"{name}.txt")
    config = config_for(tmp_path / "*.txt", tmp_path / "datasets")
    build.prepare(config, say=quiet)
    (tmp_path / "c.txt").write_text("One more document.")
    with pytest.raises(UserError, match=r"changed since .*c\.txt"):
        build.prepare(config, say=quiet)
    (tmp_path / "c.txt").unlink()
    build.prepare(config, say=quiet)
    (tmp_path / "b.txt").unlink()
    with pytest.raises(UserError, match=r"changed since .*b\.txt"):
        build.prepare(config, say=quiet)
    (tmp_path / "b.md").write_text("Of a kind that is not read.")  # hides no change
    with pytest.raises(UserError, match=r"b\.md is of a kind that is not read"):
        build.prepare(config_for(tmp_path / "*.*", tmp_path / "datasets"), say=quiet)


def test_a_part_that_is_gone_hides_no_change_of_another(corpus_file, tmp_path):
    for name in ("a", "b"):
        shutil.copy(corpus_file, tmp_path / f"{name}.txt")
    config = config_for(f"{tmp_path}/a.txt,{tmp_path}/b.txt", tmp_path / "datasets")
    build.prepare(config, say=quiet)
    (tmp_path / "b.txt").unlink()
    with pytest.raises(UserError, match=r"b\.txt' names no file"):
        build.prepare(config, say=quiet)
    (tmp_path / "a.txt").unlink()
    build.prepare(config, say=quiet)  # prepared elsewhere
    longer = dataclasses.replace(config, data=dataclasses.replace(config.data, max_seq_length=16))
    with pytest.raises(UserError, match=r"a\.txt is not there, and not all that these settings need"):
        build.prepare(longer, say=quiet)


def test_brackets_in_the_name_of_a_file(corpus_file, tmp_path):
    shutil.copy(corpus_file, tmp_path / "corpus [fr].txt")
    (file,) = sources.make_plan(*sources.corpora(config_for(tmp_path / "corpus [fr].txt", tmp_path).data), 2**30).files
    assert file["name"].endswith("corpus [fr].txt")


def test_case_is_the_sentencepiece_models_own(corpus_file, tmp_path):
    """A setting that contradicts it is said to have no effect."""
    train = TokenizerConfig(kind="unigram", vocab_size=300, lowercase=False)
    cased = tokenizer_lib.train(train, corpus_file.read_text().split("\n\n"))
    (tmp_path / "cased.model").write_bytes(cased.model)
    assert (
        not cased.lowercase
        and tokenizer_lib.train(dataclasses.replace(train, lowercase=True), ["a b c"] * 99).lowercase
    )
    config = config_for(corpus_file, tmp_path / "d")
    given = dataclasses.replace(train, vocab_file=str(tmp_path / "cased.model"), lowercase=True)
    said = []
    build.prepare(dataclasses.replace(config, tokenizer=given), say=said.append)
    assert any(
        "tokenizer.lowercase=True has no effect" in line and "keeps case by its own rules" in line for line in said
    )
    assert importing.described(cased, given).lowercase is False


def test_a_source_that_changes_between_the_runs_of_a_preparation_is_refused(corpus_file, tmp_path):
    text = tmp_path / "corpus.txt"
    shutil.copy(corpus_file, text)
    config = config_for(text, tmp_path / "datasets", shard_bytes=20_000)

    class Stop(Exception):
        pass

    def interrupted(stage, shards, what):
        for shard in range(shards)[:3]:
            stage.read(shard)
        raise Stop

    with pytest.raises(Stop):
        build.prepare(config, quiet, run=interrupted)
    text.write_text(text.read_text().replace("the", "teh"))
    with pytest.raises(UserError, match=r"changed since .*corpora/corpus-.*corpus\.txt"):
        build.prepare(config, say=quiet)
    shutil.copy(corpus_file, text)
    build.prepare(config, say=quiet)


def test_tampered_metadata_is_refused(corpus_file, tmp_path):
    config = config_for(corpus_file, tmp_path)
    (directory,) = build.prepare(config, say=quiet).directories
    path = Path(directory) / "metadata.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "vocabulary": "another"}))
    with pytest.raises(UserError, match="its vocabulary is 'another'"):
        build.prepare(config, say=quiet)


def test_too_little_text(tmp_path):
    one = tmp_path / "one.txt"
    one.write_text("A single document. " * 50)
    with pytest.raises(UserError, match="none fell in the held-out split"):
        build.prepare(config_for(one, tmp_path / "d", validation_fraction=0.01), say=quiet)
    prepared = build.prepare(config_for(one, tmp_path / "d", validation_fraction=0.0), say=quiet)
    assert "validation" not in metadata_of(prepared)
    (tmp_path / "empty.txt").write_text("\n\n")
    with pytest.raises(UserError, match="holds no text"):
        build.prepare(config_for(tmp_path / "empty.txt", tmp_path / "d"), say=quiet)


def test_broken_documents_are_passed_over_up_to_a_share(tmp_path):
    path = tmp_path / "a.jsonl"
    lines = [json.dumps({"text": f"This is document {i}."}).encode() for i in range(400)]
    lines[100], lines[200], lines[300] = b'{"text": 3}', b'{"text": "\xff"}', b'{"text": ""}'
    path.write_bytes(b"\n".join(lines))
    said = []
    config = config_for(path, tmp_path / "d", shard_bytes=2000)
    prepared = build.prepare(config, say=said.append)
    assert metadata_of(prepared)["train"]["documents"] + metadata_of(prepared)["validation"]["documents"] == 397
    assert "passed over 2 broken and 1 empty of 400 documents:" in said
    for number in (101, 201, 301):
        assert any(f"{path}, line {number}: " in line for line in said)
    strict = config_for(path, tmp_path / "d", shard_bytes=2000, max_broken_fraction=0.005)
    (tmp_path / "d" / "electra_records").rename(tmp_path / "gone")
    with pytest.raises(UserError, match=r"3 of 400 documents are broken or empty, .*=0\.005; the first: .*line 101"):
        build.prepare(strict, say=quiet)


def test_exact_duplicates_are_left_out(tmp_path, monkeypatch):
    """Within a shard, across shards and across sources; the first one stays. Also when compared in groups, as much text is."""
    texts = [f"Document number {i} says {i * i}." for i in range(300)]
    (tmp_path / "a.txt").write_text("\n\n".join(texts[:200] + texts[50:100]))
    (tmp_path / "b.txt").write_text("\n\n".join(texts[100:]))
    source = f"{tmp_path}/a.txt,{tmp_path}/b.txt"

    def kept(directory, **data):
        config = config_for(source, tmp_path / directory, shard_bytes=1000, weights=(1.0, 1.0), **data)
        prepared = build.prepare(config, say=quiet)
        found = []
        for made in prepared.sets[32]:
            counts = {split: made.metadata[split]["documents"] for split in ("train", "validation")}
            found.append((sum(counts.values()), made.metadata["survey"]["duplicates"]))
        return found, prepared

    assert kept("all")[0] == [(250, 0), (200, 0)]
    found, prepared = kept("unique", deduplicate=True)
    assert found == [(200, 50), (100, 100)]
    monkeypatch.setattr(survey, "_COMPARED", 40)
    again, other = kept("in groups", deduplicate=True)
    assert again == found
    for number in (0, 1):
        np.testing.assert_array_equal(sequences_of(prepared, number=number), sequences_of(other, number=number))


def test_near_duplicates_are_left_out(tmp_path, monkeypatch):
    texts = list(documents(small_config().data))[:150]
    altered = [text.replace(".", " .", 1) + " Indeed." for text in texts[:40] if len(text) > 400]
    (tmp_path / "a.txt").write_text("\n\n".join(t.replace("\n", " ") for t in [*texts, *altered, *texts[:5]]))
    config = config_for(tmp_path / "a.txt", tmp_path / "d", near_duplicates=0.7, shard_bytes=30_000)
    said = []
    monkeypatch.setattr(work, "memory", lambda: 1_000_000)
    prepared = build.prepare(config, say=said.append)
    assert any("WARNING: config.data.near_duplicates holds what it keeps" in line for line in said)
    left_out = metadata_of(prepared)["survey"]["duplicates"]
    assert len(altered) > 15 and len(altered) + 5 <= left_out <= len(altered) + 8
    assert f"leaving out {left_out} duplicates" in said
    exact = dataclasses.replace(config, data=dataclasses.replace(config.data, near_duplicates=0.0, deduplicate=True))
    assert metadata_of(build.prepare(exact, say=quiet))["survey"]["duplicates"] == 5  # the control


def test_the_vocabulary_is_trained_on_an_even_sample(tmp_path):
    """About as many bytes as were asked for, from every shard, never held-out text; all of it where there is less."""
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text("\n\n".join(f"{name} {i:06}" for i in range(3000)))
    config = config_for(f"{tmp_path}/*.txt", tmp_path / "d", validation_fraction=0.1, shard_bytes=4000)
    text = SourceText(config, quiet, lambda stage, shards, what: [stage.read(shard) for shard in range(shards)])
    drawn = list(text.samples(8 * 1200))
    assert drawn == list(text.samples(8 * 1200))
    assert 980 < len(drawn) < 1180  # 0.9 of 1,200
    assert 420 < sum(line.startswith("a") for line in drawn) < 640
    assert not any(survey.is_held_out(survey.digest(line.strip()), 0.1) for line in drawn)
    everything = [line.strip() for line in text.samples(10**9)]
    expected = [t for t in documents(config.data) if not survey.is_held_out(survey.digest(t), 0.1)]
    assert everything == expected
    share = config_for(f"{tmp_path}/a.txt,{tmp_path}/b.txt", tmp_path / "d", weights=(1.0, 3.0), weights_are="shares")
    drawn = list(SourceText(share, quiet, text.run).samples(8 * 1200))
    assert sum(line.startswith("b") for line in drawn) / len(drawn) == pytest.approx(0.75, abs=0.05)


def test_the_data_card(corpus_file, tmp_path):
    config = config_for(corpus_file, tmp_path, shard_bytes=40_000)
    prepared = build.prepare(config, say=quiet)
    (directory,) = map(Path, prepared.directories)
    card, page = json.loads((directory / "data_card.json").read_text()), (directory / "data_card.html").read_text()
    texts = [text for text in documents(config.data) if not isinstance(text, Broken)]
    ids = prepared.tokenizer.encode_batch(texts)
    tokens, words = sum(map(len, ids)), sum(len(text.split()) for text in texts)
    assert (card["documents"], card["tokens"], card["words"]) == (len(texts), tokens, words)
    assert card["text_bytes"] == sum(len(text.encode()) for text in texts)
    assert card["fertility"] == pytest.approx(tokens / words)
    unknown = sum(int((one == prepared.tokenizer.special.unk).sum()) for one in ids)
    assert card["unknown_share"] == pytest.approx(unknown / tokens)
    lengths = np.asarray([len(one) for one in ids])
    for limit, count in card["documents_by_tokens"].items():
        assert count == ((lengths <= int(limit)) & (lengths > int(limit) // 2)).sum()
    everything = np.concatenate([sequences_of(prepared, split) for split in ("train", "validation")])
    assert card["padding_share"] == pytest.approx((everything == 0).mean())
    assert max(card["languages"], key=card["languages"].get) == "en"
    assert len(card["examples"]) == 5
    plain = " ".join(prepared.tokenizer.decode(prepared.tokenizer.encode_batch([" ".join(texts)])[0]).split())
    assert all(
        " ".join(line.split()).removeprefix("##")[:40] in plain for e in card["examples"] for line in e.split("\n")
    )
    for part in (f"{len(texts):,}", "py3langid" if not card["languages"] else ">en<", "<blockquote>"):
        assert part in page


def wait_until(come) -> None:
    deadline = time.monotonic() + 120
    while not come():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def kill_when(arguments, cwd, come) -> None:
    """Prepares, and is killed as soon as `come()`."""
    process = Command("prepare", *arguments, cwd=cwd, env=process_env(), output=cwd / "killed.log")
    deadline = time.monotonic() + 120
    while not come():
        assert process.poll() is None and time.monotonic() < deadline, process.text()
        time.sleep(0.005)
    process.kill()
    assert process.wait() == -signal.SIGKILL


@pytest.mark.slow
def test_killed_at_any_moment_it_goes_on(tmp_path):
    """Real processes, SIGKILL at moments spread over the whole preparation; the end is that of an undisturbed one."""
    source = tmp_path / "text.txt"
    source.write_text("\n\n".join(documents(small_config().data)))
    shared = [f"--config={ROOT / 'configs/tiny.py'}", "--config.tokenizer.vocab_size=1000",
              f"--config.data.source={source}", "--config.data.shard_bytes=200000"]  # fmt: skip
    complete = run_module("prepare", *shared, "--config.data.directory=complete", cwd=tmp_path)
    assert complete.returncode == 0, complete.stderr
    (whole,) = (tmp_path / "complete").glob("electra_records/*/*")
    arguments = [*shared, "--config.data.directory=killed"]
    before = {}
    stages = [
        ("corpora/*/[0-9]*.json", 3),
        ("corpora/*/sample-*/*.txt", 2),
        *(("electra_records/*/*/shards/*.json", n) for n in (1, 9, 20)),
    ]
    for pattern, count in stages:
        kill_when(arguments, tmp_path, lambda: len(list((tmp_path / "killed").glob(pattern))) >= count)  # noqa: B023
        written = {p: p.stat().st_mtime_ns for p in (tmp_path / "killed").rglob("*.json") if p.name[0].isdigit()}
        assert before.items() <= written.items()  # what was done is not done again
        assert not list((tmp_path / "killed").glob("electra_records/*/*/metadata.json"))
        before = written
    last = run_module("prepare", *shared, "--config.data.directory=killed", cwd=tmp_path)
    assert last.returncode == 0, last.stderr
    assert before == {path: path.stat().st_mtime_ns for path in before}
    (found,) = (tmp_path / "killed").glob("electra_records/*/*")
    assert files_of(found).keys() - files_of(whole).keys() <= {
        name for name in files_of(found) if name.endswith(".partial")
    }
    for name, content in files_of(whole).items():
        assert (found / name).read_bytes() == content, name


def stop_after(count):
    """A `run` that records `count` shards and then raises, and the exception it raises."""

    class Stop(Exception):
        pass

    def run(stage, shards, what):
        for shard in range(shards)[: count if isinstance(stage, dataset.Recording) else shards]:
            stage.read(shard)
        if isinstance(stage, dataset.Recording):
            raise Stop

    return run, Stop


def test_shards_of_other_text_are_not_gone_on_with(corpus_file, tmp_path, prepared):
    """A preparation is stopped, the text changes, and its survey is removed, as the message says."""
    text = tmp_path / "corpus.txt"
    shutil.copy(corpus_file, text)
    config = config_for(text, tmp_path / "d", shard_bytes=20_000)
    run, stop = stop_after(3)
    with pytest.raises(stop):
        build.prepare(config, quiet, prepared.tokenizer, run)
    changed = text.read_text().replace("the", "teh") + "\n\nMore.\n" * 5000
    text.write_text(changed)
    with pytest.raises(UserError, match="remove that"):
        build.prepare(config, quiet, prepared.tokenizer)
    shutil.rmtree(tmp_path / "d" / "corpora")
    found = build.prepare(config, quiet, prepared.tokenizer)
    (tmp_path / "other").mkdir()
    fresh = build.prepare(config_for(text, tmp_path / "fresh", shard_bytes=20_000), quiet, prepared.tokenizer)
    for split in ("train", "validation"):
        np.testing.assert_array_equal(sequences_of(found, split), sequences_of(fresh, split))


def test_duplicates_of_a_source_that_changed(tmp_path):
    """What one source left out because another had it is kept again, once the other no longer has it."""
    texts = [f"Document number {i} says {i * i}." for i in range(300)]
    a, b = tmp_path / "a.txt", tmp_path / "b.txt"
    a.write_text("\n\n".join(texts[:200]))
    b.write_text("\n\n".join(texts[100:]))
    config = config_for(f"{a},{b}", tmp_path / "d", weights=(1.0, 1.0), deduplicate=True)
    made = build.prepare(config, say=quiet)
    counts = [one.metadata["survey"]["duplicates"] for one in made.sets[32]]
    assert counts == [0, 100]
    a.write_text("\n\n".join(texts[:150]))
    for name in ("corpora", "electra_records", "tokenizers"):
        for folder in (tmp_path / "d" / name).iterdir():
            if not folder.name.startswith("b-"):
                shutil.rmtree(folder) if folder.is_dir() else folder.unlink()
    try:
        again = build.prepare(config, quiet, made.tokenizer)
    except UserError as error:
        assert "left out duplicates of other text" in str(error)
        shutil.rmtree(next((tmp_path / "d" / "electra_records").glob("b-*")))
        again = build.prepare(config, quiet, made.tokenizer)
    assert [one.metadata["survey"]["duplicates"] for one in again.sets[32]] == [0, 50]


def test_a_part_of_a_mixture_without_text_is_named(tmp_path):
    texts = [f"Document number {i} says {i * i}." for i in range(300)]
    (tmp_path / "a.txt").write_text("\n\n".join(texts))
    (tmp_path / "b.txt").write_text("\n\n".join(texts[:20]))
    source = f"{tmp_path}/a.txt,{tmp_path}/b.txt"
    with pytest.raises(UserError, match=r"b\.txt holds no text for training"):
        build.prepare(config_for(source, tmp_path / "d", weights=(1.0, 1.0), deduplicate=True), say=quiet)
    with pytest.raises(UserError, match="different parts"):
        config_for(f"{tmp_path}/a.txt,{tmp_path}/a.txt", tmp_path / "d")


def test_directories_that_cannot_be_used(corpus_file, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"config\.data\.directory=.*file.* cannot be written to"):
        build.prepare(config_for(corpus_file, tmp_path / "file"), say=quiet)
    with pytest.raises(UserError, match=r"config\.data\.directory=.* cannot be written to"):
        build.prepare(config_for(corpus_file, tmp_path / "file" / "below"), say=quiet)


def test_text_that_may_not_be_read(corpus_file, tmp_path, monkeypatch):
    """The message blames the text, not the directory, which is written to all the while."""

    def refuse(path, mode):
        raise PermissionError(errno.EACCES, "Permission denied", path)

    monkeypatch.setattr(
        sources, "open", refuse, raising=False
    )  # made up: in containers tests run as root, who may read anything
    with pytest.raises(UserError, match=rf"config\.data\.source: {corpus_file} may not be read \(Permission denied\)"):
        build.prepare(config_for(corpus_file, tmp_path / "d"), say=quiet)


@pytest.mark.slow
def test_workers_end_with_their_parent(tmp_path):
    source = tmp_path / "text.txt"
    source.write_text("\n\n".join(documents(small_config().data)))
    config = f"--config={ROOT / 'configs/tiny.py'}"
    arguments = [config, f"--config.data.source={source}", "--config.data.shard_bytes=100000"]

    def processes() -> list[str]:
        found = []
        for pid in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError):
                if os.readlink(f"/proc/{pid}/cwd") == str(tmp_path):
                    found.append(pid)
        return found

    kill_when(
        arguments, tmp_path, lambda: len(processes()) > 3 and list(tmp_path.glob("datasets/corpora/*/[0-9]*.json"))
    )
    wait_until(lambda: not processes())


@pytest.mark.slow
def test_two_processes_at_once_build_once(tmp_path):
    arguments = [f"--config={ROOT / 'configs/tiny.py'}", "--config.tokenizer.vocab_size=1000",
                 f"--config.data.directory={tmp_path / 'd'}"]  # fmt: skip
    # The test holds the lock until both processes wait for it.
    (tmp_path / "d").mkdir()
    with filelock.FileLock(tmp_path / "d" / f".electra_jax-{storage.fingerprint(str(tmp_path / 'd'))}.lock"):
        both = [
            Command("prepare", *arguments, cwd=tmp_path, env=process_env(), output=tmp_path / f"{number}.log")
            for number in range(2)
        ]
        wait_until(lambda: all("waiting for another run" in process.text() for process in both))
        assert not list(tmp_path.glob("d/electra_records/*"))
    assert [process.wait(240) for process in both] == [0, 0]
    assert sum("prepared in" in process.text() for process in both) == 1


@pytest.mark.slow
def test_beam_gives_the_same_records(corpus_file, tmp_path):
    """Beam's direct runner with two worker processes, every stage: survey, duplicates, vocabulary, records."""
    shared = [
        f"--config={ROOT / 'configs/tiny.py'}", f"--config.data.source={corpus_file}", "--config.data.shard_bytes=50000",
        "--config.tokenizer.vocab_size=500", "--config.data.near_duplicates=0.8",
    ]  # fmt: skip
    plain = run_module("prepare", *shared, "--config.data.directory=plain", cwd=tmp_path)
    assert plain.returncode == 0, plain.stderr
    options = "--beam=--runner=DirectRunner --direct_num_workers=2 --direct_running_mode=multi_processing"
    beam = run_module("prepare", *shared, "--config.data.directory=beam", options, cwd=tmp_path)
    assert beam.returncode == 0, beam.stderr[-2000:]
    (one,), (other,) = ((tmp_path / name).glob("electra_records/*/*") for name in ("plain", "beam"))
    assert len(list(one.glob("shards/*.json"))) > 3
    assert files_of(one) == files_of(other)
    tokenizers = [(tmp_path / name / "tokenizers").glob("*.json") for name in ("plain", "beam")]
    assert len({next(found).read_text() for found in tokenizers}) == 1


def test_a_tokenizer_is_kept_with_the_records(prepared):
    (directory,) = map(Path, prepared.directories)
    kept = dataset.load_tokenizer(str(directory / "tokenizer.json"))
    assert tokenizer_lib.digest(kept) == tokenizer_lib.digest(prepared.tokenizer)
