"""Reading text in all its forms."""

import bz2
import gzip
import json
import lzma

import pytest
import zstandard

from electra_jax.config import DataConfig
from electra_jax.data import corpus
from electra_jax.errors import UserError

TEXTS = ["First document,\ntwo lines.", "Second: ünïcödé 汉字.", "Third."]


def read(path, **options) -> list[str]:
    return list(corpus.documents(DataConfig(source=str(path), **options)))


def test_embedded_corpus():
    documents = read("embedded")
    assert len(documents) == 10_033
    assert sum(map(len, documents)) > 4_800_000


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


def test_separators(tmp_path):
    (tmp_path / "a.txt").write_text("one\ntwo\n\n  \n\nthree\n")
    assert read(tmp_path / "a.txt") == ["one\ntwo", "three"]
    assert read(tmp_path / "a.txt", document_separator="line") == ["one", "two", "three"]


def test_byte_order_mark_is_no_text(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone")
    assert read(tmp_path / "a.txt") == ["one"]


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("a.jsonl", b'{"text": "x"}\n{"text": \n', ["a.jsonl, line 2", "not JSON"]),
        (
            "a.jsonl",
            b'{"text": "x"}\n{"body": "x", "id": 3}\n',
            ["a.jsonl, line 2", "'text'", "body, id", "data.text_field"],
        ),
        ("a.jsonl", b"[1]\n", ["a.jsonl, line 1", "the line is a list"]),
        ("a.txt", b"good\nbad \xff\n", ["a.txt, line 2", "not UTF-8", "0xff"]),
        ("a.txt.gz", gzip.compress(b"x" * 1000, mtime=0)[:-9], ["a.txt.gz", "decompressed"]),
        ("a.txt.xz", lzma.compress(b"x" * 1000)[:-9], ["a.txt.xz", "decompressed"]),
        ("a.txt.zst", b"no zstandard", ["a.txt.zst", "decompressed"]),
        ("a.txt.zst", zstandard.compress(b"x" * 1000)[:-3], ["a.txt.zst", "decompressed"]),
        ("a.txt.gz", gzip.compress(bytes(range(256)) * 9, mtime=0)[:60] + b"zzzzzzzz", ["a.txt.gz", "decompressed"]),
        ("a.jsonl", b'{"text": "a \\ud83d b"}\n', ["a.jsonl, line 1", "surrogate"]),
        ("a.txt.bz2", bz2.compress(b"x"), ["a.txt.bz2", "not read", ".jsonl"]),
        ("a.parquet", b"x", ["a.parquet", "not read"]),
    ],
)
def test_broken_files_are_named(tmp_path, name, content, parts):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as caught:
        read(tmp_path / name)
    assert "\n" not in str(caught.value)
    for part in parts:
        assert part in str(caught.value)


def test_missing_files(tmp_path):
    with pytest.raises(UserError, match="names no file"):
        read(tmp_path / "absent*.txt")
    with pytest.raises(UserError, match=r"names no file; name files or a glob such as .*\*\.txt"):
        read(tmp_path)


def test_held_out_split_goes_by_text():
    config = DataConfig(validation_fraction=0.2)
    held_out = [corpus.is_held_out(f"document {i}", config) for i in range(5000)]
    assert 0.18 < sum(held_out) / 5000 < 0.22
    assert not any(corpus.is_held_out(f"document {i}", DataConfig(validation_fraction=0.0)) for i in range(100))
    larger = DataConfig(validation_fraction=0.3)
    assert all(corpus.is_held_out(f"document {i}", larger) for i in range(5000) if held_out[i])


def test_sample_is_bounded_even_and_without_held_out_text(tmp_path):
    (tmp_path / "a.txt").write_text("\n\n".join(f"a {i:06}" for i in range(3000)))
    (tmp_path / "b.txt").write_text("\n\n".join(f"b {i:06}" for i in range(3000)))
    config = DataConfig(source=f"{tmp_path}/*.txt", validation_fraction=0.1)
    drawn = corpus.sample(config, 8 * 1000)
    assert 1000 <= len(drawn) <= 1001
    assert drawn == corpus.sample(config, 8 * 1000)
    assert 420 < sum(text.startswith("a") for text in drawn) < 580
    assert not any(corpus.is_held_out(text, config) for text in drawn)
    everything = corpus.sample(config, 10**9)
    assert sorted(everything) == sorted(t for t in corpus.documents(config) if not corpus.is_held_out(t, config))


def test_zstandard_of_several_frames(tmp_path):
    frames = [zstandard.compress(part.encode()) for part in ("one\n\ntw", "o\n\n", "three" * 100_000)]
    (tmp_path / "a.txt.zst").write_bytes(b"".join(frames))
    assert read(tmp_path / "a.txt.zst") == ["one", "two", "three" * 100_000]


def test_a_change_anywhere_in_a_file_of_some_size_is_noticed(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"x" * 4_000_000)
    before = corpus.describe_files(str(path))
    with open(path, "r+b") as file:
        file.seek(1_700_000)
        file.write(b"y")
    assert corpus.describe_files(str(path)) != before
