"""Reading text in all its forms, whole and in pieces, here and in a bucket."""

import bz2
import gzip
import importlib
import json
import lzma
import pwd
import random
import re

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from conftest import documents
from electra_jax.config import DataConfig
from electra_jax.data import readers, sources
from electra_jax.data.readers import Broken
from electra_jax.errors import UserError

TEXTS = ["First document,\ntwo lines.", "Second: ünïcödé 汉字.", "Third."]


def read(path, **options) -> list[str | Broken]:
    return list(documents(DataConfig(source=str(path), **options)))


def test_embedded_corpus():
    found = read("embedded")
    assert len(found) == 10_033
    assert sum(map(len, found)) > 4_800_000


@pytest.mark.parametrize("suffix", ["", ".gz", ".xz", ".zst"])
@pytest.mark.parametrize("form", ["txt", "jsonl"])
def test_forms_and_compressions(tmp_path, form, suffix):
    text = "\n\n".join(TEXTS) if form == "txt" else "".join(json.dumps({"text": t}) + "\n" for t in TEXTS)
    pack = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress, ".zst": zstandard.compress}[suffix]
    path = tmp_path / f"a.{form}{suffix}"
    path.write_bytes(pack(text.encode()))
    assert read(path) == TEXTS


def test_several_sources_in_order_and_once(tmp_path):
    for name in "cab":
        (tmp_path / f"{name}.txt").write_text(name * 3)
    assert read(f"{tmp_path}/*.txt") == ["aaa", "bbb", "ccc"]
    assert read(f"{tmp_path}/c.txt, {tmp_path}/*.txt") == ["ccc", "aaa", "bbb"]
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "d.jsonl").write_text('{"body": "ddd"}\n\n')
    assert read(f"{tmp_path}/**/*.jsonl", text_field="body") == ["ddd"]
    both = f"{tmp_path}/c.txt, {tmp_path}/deep/d.jsonl"
    assert read(both, text_field="text, body") == ["ccc", "ddd"]


def test_separators(tmp_path):
    (tmp_path / "a.txt").write_text("one\ntwo\n\n  \n\nthree\n")
    assert read(tmp_path / "a.txt") == ["one\ntwo", "three"]
    assert read(tmp_path / "a.txt", document_separator="line") == ["one", "two", "three"]


def test_byte_order_mark_is_no_text(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone")
    assert read(tmp_path / "a.txt") == ["one"]


@pytest.mark.parametrize("shard_bytes", [1, 7, 64, 1000])
@pytest.mark.parametrize("separator", ["blank_line", "line"])
@pytest.mark.parametrize("form", ["txt", "jsonl"])
def test_pieces_of_a_file_have_every_document_once(tmp_path, form, separator, shard_bytes):
    """Cut at any byte: within a character, a line, a run of blank lines."""
    rng = random.Random(shard_bytes)
    words = ["é", "汉字", "word", "x" * 50]
    texts = [
        "\n".join(" ".join(rng.choices(words, k=rng.randrange(1, 6))) for _ in range(rng.randrange(1, 4)))
        for _ in range(60)
    ]
    path = tmp_path / f"a.{form}"
    if form == "txt":
        path.write_text("\n\n" + "".join(text + "\n" * rng.randrange(2, 5) for text in texts))
        expected = texts if separator == "blank_line" else [line for text in texts for line in text.split("\n")]
    else:
        path.write_text("".join(json.dumps({"text": text}) + "\n" * rng.randrange(1, 3) for text in texts))
        expected = texts
    (corpus,) = sources.corpora(DataConfig(source=str(path)))
    plan = sources.make_plan(corpus, shard_bytes)
    assert len(plan.shards) >= path.stat().st_size // max(shard_bytes, 1) // 2
    assert [text for shard in plan.shards for text in readers.documents(shard, separator)] == expected


def test_small_files_share_a_shard(tmp_path):
    for i in range(100):
        (tmp_path / f"{i:03}.txt").write_text("x" * 10)
    (corpus,) = sources.corpora(DataConfig(source=f"{tmp_path}/*.txt"))
    assert [len(shard) for shard in sources.make_plan(corpus, 250).shards] == [25] * 4


@pytest.mark.parametrize("kind", ["string", "large_string", "dictionary", "binary"])
def test_parquet(tmp_path, kind):
    texts = [f"document {i} é" for i in range(2500)]
    column = pyarrow.array(texts)
    column = column.dictionary_encode() if kind == "dictionary" else column.cast(getattr(pyarrow, kind)())
    table = pyarrow.table({"meta": [{"id": i, "tags": ["a"]} for i in range(2500)], "body": column})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet", row_group_size=700)
    assert read(tmp_path / "*.parquet", text_field="body") == texts
    (corpus,) = sources.corpora(DataConfig(source=f"{tmp_path}/a.parquet", text_field="body"))
    plan = sources.make_plan(corpus, 1)
    assert len(plan.shards) == 4
    assert list(readers.documents(plan.shards[1], "line")) == texts[700:1400]


def test_hugging_face_data_sets(tmp_path):
    """As `datasets` itself saves them, in several files, and with splits."""
    datasets = pytest.importorskip("datasets")
    texts = [f"document {i} é" for i in range(1000)]
    made = datasets.Dataset.from_dict({"text": texts, "id": list(range(1000))})
    made.save_to_disk(tmp_path / "plain", num_shards=3)
    assert read(tmp_path / "plain") == texts
    datasets.DatasetDict({"train": made, "test": made.select(range(5))}).save_to_disk(tmp_path / "dict")
    assert read(tmp_path / "dict") == texts
    assert read(tmp_path / "dict" / "test") == texts[:5]
    made.filter(lambda row: row["id"] % 2 == 0).save_to_disk(tmp_path / "filtered")
    assert read(tmp_path / "filtered") == texts[::2]
    with pytest.raises(UserError, match=r"no field 'body' \(fields: text, id\)"):
        read(tmp_path / "plain", text_field="body")
    datasets.DatasetDict({"a": made}).save_to_disk(tmp_path / "other")
    with pytest.raises(UserError, match="has splits a and no 'train'"):
        read(tmp_path / "other")


@pytest.mark.parametrize("file_format", ["array_record", "tfrecord"])
def test_tfds_data_sets(tmp_path, monkeypatch, file_format):
    """By folder and by name, as TFDS itself builds them."""
    import tensorflow_datasets as tfds

    texts = [f"document {i} é" for i in range(300)]
    # A builder of TFDS's own; it shuffles.
    tfds.dataset_builders.store_as_tfds_dataset(
        name="made", version="1.0.0", data_dir=tmp_path, file_format=file_format,
        features=tfds.features.FeaturesDict({"text": tfds.features.Text(), "id": tfds.features.Scalar(dtype=np.int64)}),
        split_datasets={"train": [(i, {"text": text, "id": i}) for i, text in enumerate(texts)],
                        "extra": [(i, {"text": text, "id": i}) for i, text in enumerate(["one", "two"])]},
    )  # fmt: skip
    by_folder = read(tmp_path / "made" / "1.0.0")
    assert sorted(by_folder) == sorted(texts)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(tmp_path))
    with pytest.raises(UserError, match="has splits .* and no 'test'"):
        read("tfds:made@test")
    assert read("tfds:made") == by_folder
    assert sorted(read("tfds:made@extra")) == ["one", "two"]
    with pytest.raises(UserError, match=r"no field 'body' \(fields: id, text\)"):
        read("tfds:made", text_field="body")
    with pytest.raises(UserError, match="tfds:no_such_thing cannot be had"):
        read("tfds:no_such_thing")


def test_a_tfds_data_set_that_is_not_there_yet_is_made(tmp_path, monkeypatch):
    """A builder as TFDS's own are, in a package folder, found by its name."""
    import tensorflow_datasets as tfds

    (tmp_path / "three_texts").mkdir()
    (tmp_path / "three_texts" / "__init__.py").write_text("")
    (tmp_path / "three_texts" / "three_texts_dataset_builder.py").write_text(
        "import tensorflow_datasets as tfds\n"
        "class Builder(tfds.core.GeneratorBasedBuilder):\n"
        "    VERSION = tfds.core.Version('1.0.0')\n"
        "    def _info(self):\n"
        "        return self.dataset_info_from_configs(features=tfds.features.FeaturesDict({'text': tfds.features.Text()}))\n"
        "    def _split_generators(self, dl_manager):\n"
        "        return {'train': ((i, {'text': text}) for i, text in enumerate(['one', 'two', 'three']))}\n"
        "    def _generate_examples(self):\n"
        "        pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("three_texts.three_texts_dataset_builder")
    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(tmp_path / "data"))
    assert sorted(read("tfds:three_texts")) == ["one", "three", "two"]
    assert list((tmp_path / "data" / "three_texts").glob("1.0.0/*tfrecord*"))


BROKEN = [
    ("a.jsonl", b'{"text": "x"}\n{"text": \n', 2, "line", ["not JSON", "column"]),
    ("a.jsonl", b'{"text": "x"}\n{"body": "x", "id": 3}\n', 2, "line", ["'text'", "body, id", "data.text_field"]),
    ("a.jsonl", b'{"text": "x"}\n[1]\n', 2, "line", ["the line is a list"]),
    ("a.jsonl", b'\n\n{"text": "a \\ud83d b"}\n{"text": "x"}', 3, "line", ["surrogate"]),
    ("a.jsonl", b'{"text": "x"}\n{"text": "  "}\n', 2, "line", ["empty"]),
    ("a.jsonl", b'{"text": "x"}\n{"text": ' + b'[' * 100_000 + b"\n", 2, "line", ["not JSON"]),
    ("a.jsonl", b'{"text": "x"}\n{"text": "y", "n": ' + b"1" * 5000 + b"}\n", 2, "line", ["not JSON", "digits"]),
    ("a.txt", b"x\n\ngood\nbad \xff\ngood\n\n", 4, "line", ["not UTF-8", "0xff"]),
    ("a.txt.gz", gzip.compress(b"x\n\nbad \xff\n", mtime=0), 3, "line", ["not UTF-8"]),
]  # fmt: skip


@pytest.mark.parametrize("shard_bytes", [2, 2**20])
@pytest.mark.parametrize(("name", "content", "number", "unit", "parts"), BROKEN)
def test_a_broken_document_is_named_and_the_others_are_read(tmp_path, name, content, number, unit, parts, shard_bytes):
    """Whatever shard it is in, its line is counted from the beginning of the file."""
    (tmp_path / name).write_bytes(content)
    found = read(tmp_path / name, shard_bytes=shard_bytes)
    (broken,) = [one for one in found if isinstance(one, Broken)]
    assert [one for one in found if not isinstance(one, Broken)] == ["x"]
    assert readers.where(broken) == f"{tmp_path / name}, {unit} {number}"
    assert all(part in broken.why for part in parts)


def test_a_text_without_blank_lines_is_not_held_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "_LARGEST", 1000)
    (tmp_path / "a.txt").write_text("x\n\n" + "a line\n" * 1000 + "\ny\n")
    one, broken, other = read(tmp_path / "a.txt")
    assert (one, other) == ("x", "y")
    assert "data.document_separator=line" in broken.why and readers.where(broken).endswith("line 3")


def test_one_file_for_two_fields(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"title": "one", "text": "two"}\n')
    assert read(f"{tmp_path}/a.jsonl,{tmp_path}/a.jsonl", text_field="title,text") == ["one", "two"]


def test_broken_rows_are_named(tmp_path):
    column = pyarrow.array([b"x", None, b"bad \xff", b" "], pyarrow.binary())
    pyarrow.parquet.write_table(pyarrow.table({"text": column}), tmp_path / "a.parquet", row_group_size=2)
    found = read(tmp_path / "a.parquet", shard_bytes=1)
    assert found[0] == "x"
    assert [re.sub(".*, ", "", readers.where(one)) for one in found[1:]] == ["row 2", "row 3", "row 4"]
    assert [one.why for one in found[1:]] == [readers.EMPTY, "not UTF-8 (byte 0xff)", readers.EMPTY]


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("a.txt.gz", gzip.compress(b"x" * 1000, mtime=0)[:-9], ["a.txt.gz", "decompressed"]),
        ("a.txt.xz", lzma.compress(b"x" * 1000)[:-9], ["a.txt.xz", "decompressed"]),
        ("a.txt.zst", b"no zstandard", ["a.txt.zst", "decompressed"]),
        ("a.txt.zst", zstandard.compress(b"x" * 1000)[:-3], ["a.txt.zst", "decompressed"]),
        ("a.txt.gz", gzip.compress(bytes(range(256)) * 9, mtime=0)[:60] + b"zzzzzzzz", ["a.txt.gz", "decompressed"]),
        ("a.txt.bz2", bz2.compress(b"x"), ["a.txt.bz2", "not read", ".jsonl"]),
        ("a.parquet", b"x", ["a.parquet", "no Parquet file"]),
        ("gz", b"x", ["gz", "not read"]),
    ],
)
def test_files_that_cannot_be_read_are_refused(tmp_path, name, content, parts):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as caught:
        read(tmp_path / name)
    assert "\n" not in str(caught.value)
    for part in parts:
        assert part in str(caught.value)


def test_columns_that_are_no_text(tmp_path):
    pyarrow.parquet.write_table(pyarrow.table({"text": [1, 2], "other": ["a", "b"]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match="field 'text' holds int64 and no text"):
        read(tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"no field 'body' \(fields: text, other\)"):
        read(tmp_path / "a.parquet", text_field="body")


def test_missing_files(tmp_path):
    with pytest.raises(UserError, match="names no file"):
        read(tmp_path / "absent*.txt")
    with pytest.raises(UserError, match=r"names no file; .*\*\.txt"):
        read(tmp_path)


def test_zstandard_of_several_frames(tmp_path):
    frames = [zstandard.compress(part.encode()) for part in ("one\n\ntw", "o\n\n", "three" * 100_000)]
    (tmp_path / "a.txt.zst").write_bytes(b"".join(frames))
    assert read(tmp_path / "a.txt.zst") == ["one", "two", "three" * 100_000]


def test_a_change_anywhere_in_a_file_of_some_size_is_noticed(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"x" * 4_000_000)
    before = sources.describe(str(path))
    with open(path, "r+b") as file:
        file.seek(1_700_000)
        file.write(b"y")
    assert sources.describe(str(path)) != before


@pytest.mark.parametrize("shard_bytes", [100, 1000, 10**6])
def test_a_line_that_is_too_long_is_named_and_not_held_in_memory(tmp_path, monkeypatch, shard_bytes):
    """A whole JSON array on one line, between lines that are as they should be."""
    monkeypatch.setattr(readers, "_LARGEST", 500)
    array = json.dumps([{"text": text} for text in TEXTS * 40])
    lines = [json.dumps({"text": f"line {i}"}) for i in range(8)]
    (tmp_path / "a.jsonl").write_text("\n".join([*lines[:4], array, *lines[4:]]) + "\n")
    found = read(tmp_path / "a.jsonl", shard_bytes=shard_bytes, max_broken_fraction=1.0)
    assert [one for one in found if isinstance(one, str)] == [f"line {i}" for i in range(8)]
    (broken,) = (one for one in found if isinstance(one, Broken))
    assert (
        readers.where(broken).endswith("a.jsonl, line 5")
        and "each line is an object, not the file a list" in broken.why
    )
    monkeypatch.setattr(readers, "_COUNTED", 10)
    assert readers.where(broken).endswith(f"a.jsonl, byte {broken.place}")
    (tmp_path / "b.txt").write_text(f"first\n\nbefore\n{'x' * 3000}\nafter\n\nlast\n")
    found = read(tmp_path / "b.txt", shard_bytes=shard_bytes, max_broken_fraction=1.0)
    assert [one for one in found if isinstance(one, str)] == ["first", "last"] and len(found) == 3


def test_zstandard_of_a_long_window(tmp_path):
    """As `zstd --long=28` writes it; readers refuse such a window unless they are told to accept it."""
    parameters = zstandard.ZstdCompressionParameters.from_level(1, window_log=28)
    packing = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    content = "\n\n".join(TEXTS * 1000).encode()
    (tmp_path / "a.txt.zst").write_bytes(packing.compress(content) + packing.flush())
    with pytest.raises(zstandard.ZstdError, match="too much memory"):
        zstandard.ZstdDecompressor().decompressobj().decompress((tmp_path / "a.txt.zst").read_bytes())
    assert read(tmp_path / "a.txt.zst") == TEXTS * 1000


def test_files_of_a_user_without_a_name(tmp_path, monkeypatch):
    """In containers, and on shared disks."""

    def nobody(number):
        raise KeyError(f"getpwuid(): uid not found: {number}")

    (tmp_path / "a.txt").write_text("text")
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    assert read(tmp_path / "a.txt") == ["text"]
