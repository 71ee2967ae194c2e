"""How cost grows: the sizes, the timing of one, the picture."""

import xml.etree.ElementTree

import pytest

from conftest import ROOT, run_module
from electra_jax import growth
from electra_jax.config_loading import from_dict
from electra_jax.errors import UserError

CONFIG = from_dict(
    {
        "data": {"max_seq_length": 64, "curriculum_lengths": (32,), "curriculum_steps": (5,)},
        "tokenizer": {"vocab_size": 300},
        "model": {"embedding_size": 16, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
                  "intermediate_size": 32, "max_position_embeddings": 64},
    }
)  # fmt: skip


def test_one_size_grows_at_a_time():
    points = growth.points(CONFIG)
    base = {"length": 32, "layers": 2, "vocab_size": 300}
    assert {point.grows for point in points} == {"length", "batch", "layers", "vocabulary"}
    for point in points:
        fixed = {
            name: value
            for name, value in base.items()
            if name != {"vocabulary": "vocab_size"}.get(point.grows, point.grows)
        }
        assert fixed.items() <= point._asdict().items()
    assert {p.length * p.batch_size for p in points if p.grows == "length"} == {4096}


def test_a_size_is_timed_and_drawn(tmp_path):
    rows = [
        growth.measure(CONFIG, growth.Point("length", *sizes), steps=2) for sizes in ((48, 4, 1, 200), (96, 8, 2, 400))
    ]
    for row in rows:
        assert 0 < row["step_seconds"] < 60
        assert row["tokens_per_second"] == pytest.approx(row["length"] * row["batch_size"] / row["step_seconds"])
    ratio = (rows[1]["flops_per_second"] * rows[1]["step_seconds"]) / (
        rows[0]["flops_per_second"] * rows[0]["step_seconds"]
    )
    assert ratio > 4 * 3 / 2  # twice the length, twice the batch, more layers, and attention
    rows = [{**row, "grows": grows} for grows in ("length", "batch", "layers", "vocabulary") for row in rows]
    growth.plot(rows, tmp_path / "growth.svg")
    picture = xml.etree.ElementTree.parse(tmp_path / "growth.svg")
    assert picture.getroot().tag.endswith("svg")


def test_a_wrong_number_of_steps_is_refused(tmp_path):
    done = run_module("growth", "--config=small.py", "--steps=0", cwd=tmp_path)
    assert done.returncode == 2 and "--steps: 0" in done.stderr


def test_a_picture_of_a_kind_that_cannot_be_drawn_is_refused_before_anything_is_measured():
    with pytest.raises(UserError, match=r"--plot=growth.xyz must end in .svg or .png"):
        growth.main([f"--config={ROOT / 'configs/tiny.py'}", "--plot=growth.xyz"])
