"""The comparison of objectives: what is made of its results. The runs themselves take hours."""

import io
import json
import re
import statistics
import xml.etree.ElementTree

import pytest
from scipy import stats

import compare_objectives
from conftest import ROOT, embedded_documents
from test_readme import TEXT, marked

DETECTION, MASKED_LM = [[0.80, 0.82], [0.79, 0.80], [0.83, 0.80]], [[0.78, 0.79], [0.80, 0.78], [0.79, 0.77]]


def row(objective: str, seed: int, times: float, scores: list[float]) -> dict:
    spent = {"teraflop": 90 * times} if times else {}
    about = {"task": "x", "objective": objective, "seed": seed, "times": times, "metric": "accuracy"}
    return about | spent | {"scores": scores}


def rows() -> list[dict]:
    """Three encoders of each objective, two with less compute, one that was not pretrained."""
    longest = [row("tied", seed, 2.0, scores) for seed, scores in enumerate(DETECTION)]
    longest += [row("masked_lm", seed, 2.0, scores) for seed, scores in enumerate(MASKED_LM)]
    return [row("random", 0, 0.0, [0.7, 0.72]), *longest, row("tied", 0, 0.25, [0.1]), row("masked_lm", 0, 0.25, [0.9])]


def test_the_interval_is_that_of_pairs_of_encoders_with_the_most_compute():
    one, other = ([statistics.fmean(scores) for scores in found] for found in (DETECTION, MASKED_LM))

    def expected(pairs):
        between = [a - b for a, b in pairs]
        half = stats.t.ppf(0.975, len(between) - 1) * statistics.stdev(between) / len(between) ** 0.5
        return pytest.approx((statistics.fmean(between), half))

    assert compare_objectives.difference(rows(), "tied", "masked_lm") == expected(zip(one, other))
    without_pair = [found for found in rows() if (found["objective"], found["seed"]) != ("masked_lm", 2)]
    assert compare_objectives.difference(without_pair, "tied", "masked_lm") is None
    # Left out: an encoder without a counterpart of the same seed, and compute that not all encoders have reached.
    more = [row("tied", 3, 2.0, [0.81]), row("masked_lm", 3, 2.0, [0.79]), row("masked_lm", 4, 2.0, [0.0])]
    more += [row("tied", 0, 6.0, [0.9]), row("masked_lm", 0, 6.0, [0.1])]
    found = compare_objectives.difference(rows() + more, "tied", "masked_lm")
    assert found == expected(zip([*one, 0.81], [*other, 0.79]))


def test_random_weights_are_no_pairs():
    """Welch's interval, of three encoders and of two seeds of random weights."""
    ours, theirs = [statistics.fmean(scores) for scores in DETECTION], [0.7, 0.72]
    parts = [statistics.variance(one) / len(one) for one in (ours, theirs)]
    degrees = sum(parts) ** 2 / (parts[0] ** 2 / 2 + parts[1] ** 2 / 1)
    expected = statistics.fmean(ours) - 0.71, stats.t.ppf(0.975, degrees) * sum(parts) ** 0.5
    assert compare_objectives.difference(rows(), "tied", "random") == pytest.approx(expected)


def test_the_lines_of_the_tables_and_the_picture(tmp_path):
    scores, ahead = (part.splitlines() for part in compare_objectives.table(rows()).split("\n\n"))
    spreads = [statistics.stdev(map(statistics.fmean, found)) for found in (MASKED_LM, DETECTION)]
    assert [f"{spread:.3f}" for spread in spreads] == ["0.005", "0.010"]  # of all ten scores, 0.010 and 0.015
    assert scores[-1] == "| x | accuracy | 0.710 ± 0.014 | 0.785 ± 0.005 | 0.807 ± 0.010 |"
    assert ahead[0].startswith(
        "| task | metric | masked LM over random weights | replaced tokens, one encoder over random"
    )
    pairs = [("masked_lm", "random"), ("tied", "random"), ("tied", "masked_lm")]
    shown = ["{:+.3f} ± {:.3f}".format(*compare_objectives.difference(rows(), *pair)) for pair in pairs]
    assert ahead[-1] == f"| x | accuracy | {' | '.join(shown)} |" and shown[2].startswith("+0.022 ± ")
    compare_objectives.plot(rows(), tmp_path / "worth.svg")
    assert xml.etree.ElementTree.parse(tmp_path / "worth.svg").getroot().tag.endswith("svg")
    compare_objectives.plot(rows(), tmp_path / "again.svg")
    assert (tmp_path / "again.svg").read_text() == (tmp_path / "worth.svg").read_text()


def test_what_stands_in_the_results_is_not_run_again(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    (tmp_path / "worth.jsonl").write_text("".join(json.dumps(found) + "\n" for found in rows()))
    line = [
        "--source=missing.jsonl",
        "--results=worth.jsonl",
        "--tasks",
        "tasks/x=2",
        "--objectives",
        "random",
        "tied",
        "masked_lm",
    ]
    compare_objectives.main(line)
    assert capsys.readouterr().out == compare_objectives.table(rows())
    assert not (tmp_path / "runs").exists()
    with pytest.raises(SystemExit, match="separate-0-x2.log: failed or was stopped"):
        compare_objectives.main([*line, "separate"])
    assert "+ electra_jax.train" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("metric", "train", "test", "score"),
    [
        # "bank" is NOUN twice of three times; a new word has the most frequent tag, NOUN.
        ("accuracy", [{"tokens": ["bank", "bank", "bank", "to"], "tags": [0, 0, 1, 1]}, {"tokens": ["of"], "tags": [0]}],
         [{"tokens": ["bank", "to", "new", "new"], "tags": [0, 1, 0, 1]}], 0.75),
        ("accuracy", [{"text": text, "label": label} for text, label in (("good film", 1), ("bad film", 0)) for _ in range(9)],
         [{"text": "a good one", "label": 1}, {"text": "a bad one", "label": 0}, {"text": "bad", "label": 1}], 2 / 3),
        ("spearman", [{"text": text, "label": label} for text, label in (("good", 2.0), ("fair", 1.0), ("bad", 0.0))],
         [{"text": "fair", "label": 0.0}, {"text": "good", "label": 1.0}, {"text": "bad", "label": 2.0}], -0.5),
        ("accuracy", [{"text_a": "a b c", "text_b": b, "label": label} for b, label in (("c b", 1), ("d", 0)) for _ in range(9)],
         [{"text_a": "e f", "text_b": "F e", "label": 1}, {"text_a": "a b c", "text_b": "e f", "label": 0}], 1.0),
    ],
    ids=["tags", "texts", "scores", "pairs"],
)  # fmt: skip
def test_what_counts_of_words_come_to(tmp_path, metric, train, test, score):
    (tmp_path / "info.json").write_text(json.dumps({"metric": metric}))
    for split, found in {"train": train, "test": test}.items():
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in found))
    assert compare_objectives.word_counts(tmp_path) == {"metric": metric, "scores": [pytest.approx(score, abs=1e-5)]}


def test_the_table_in_the_readme_is_that_of_the_results():
    golden = compare_objectives.read(ROOT / "tests/golden_objectives.jsonl")
    assert marked("worth").search(TEXT).group(0) == compare_objectives.table(golden) + "\n"


def test_the_pieces_of_a_text_are_all_of_it(monkeypatch, capsys):
    texts = embedded_documents(200)
    monkeypatch.setattr("sys.stdin", io.StringIO("".join(json.dumps({"text": text}) + "\n" for text in texts)))
    exec(re.search(r"```python\n(# pieces.py.*?)```", TEXT, re.S).group(1), {})
    pieces = [json.loads(line)["text"] for line in capsys.readouterr().out.splitlines()]
    assert " ".join(pieces).split() == " ".join(texts).split() and len(pieces) > len(texts)
    assert max(len(re.findall(r"[.!?]\s", piece)) for piece in pieces) == 7
