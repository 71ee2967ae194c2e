"""Fine-tuning's parts: formats, features, measures, batches, each against something independent."""

import dataclasses
import itertools
import json
import re

import numpy as np
import pytest
import sklearn.metrics
from scipy import stats

import task_data
from conftest import embedded_documents
from electra_jax.config import TokenizerConfig
from electra_jax.data import tokenizer as tokenizer_lib
from electra_jax.errors import UserError
from electra_jax.interop import tokenizer_files
from electra_jax.tasks import batches, metrics, squad
from electra_jax.tasks import config as task_config
from electra_jax.tasks import data as loading
from electra_jax.tasks.config import TaskConfig
from electra_jax.tasks.examples import Answer, TaskExample
from electra_jax.tasks.kinds import check_labels, check_vocabulary, cut_pair
from electra_jax.tasks.labels import are_of_spans
from electra_jax.tasks.of_kind import make_kind
from runs import TEXTS, tokenizer


@pytest.fixture
def rng():
    return np.random.default_rng(0)


# Measures.


@pytest.mark.parametrize("labels", [2, 5])
def test_measures_of_labels_are_scikit_learns(rng, labels):
    for _ in range(20):
        expected, predicted = rng.integers(labels, size=(2, 50))
        predicted = np.where(rng.random(50) < 0.5, expected, predicted)
        np.testing.assert_allclose(
            metrics.accuracy(expected, predicted), sklearn.metrics.accuracy_score(expected, predicted)
        )
        np.testing.assert_allclose(
            metrics.matthews(expected, predicted), sklearn.metrics.matthews_corrcoef(expected, predicted)
        )
        np.testing.assert_allclose(
            metrics.macro_f1(expected, predicted), sklearn.metrics.f1_score(expected, predicted, average="macro")
        )
        theirs = sklearn.metrics.precision_recall_fscore_support(expected == 1, predicted == 1, average="binary")[:3]
        np.testing.assert_allclose(metrics.precision_recall_f1(expected, predicted), theirs)


def test_measures_of_numbers_are_scipys_and_nothing_is_nan(rng):
    x = rng.normal(size=40)
    y = np.round(x + rng.normal(size=40))  # ties
    np.testing.assert_allclose(metrics.pearson(x, y), stats.pearsonr(x, y)[0])
    np.testing.assert_allclose(metrics.spearman(x, y), stats.spearmanr(x, y)[0])
    assert metrics.pearson(x, np.ones(40)) == metrics.spearman(np.ones(40), x) == 0.0
    assert metrics.matthews(np.array([0, 1]), np.array([1, 1])) == 0.0


def test_chance_is_told_from_knowledge(rng):
    """Few random predictions pass for knowledge, and no good ones for chance, however many labels there are."""
    for count, labels in ((300, 3), (300, 2), (100, 20)):
        expected = rng.integers(labels, size=(200, count))
        noise = [metrics.agreement_over_chance(e, rng.integers(labels, size=count)) for e in expected]
        assert np.mean(np.asarray(noise) < 2) > 0.93 and np.std(noise) == pytest.approx(1, abs=0.15)
        known = [metrics.agreement_over_chance(e, np.where(rng.random(count) < 0.4, e, 0)) for e in expected]
        assert not any(metrics.knows_nothing(e, over) for e, over in zip(expected, known))
    few = np.array([0, 1, 1])
    assert not metrics.knows_nothing(few, metrics.agreement_over_chance(few, few[::-1]))


def test_agreement_over_chance_is_that_of_shuffled_predictions(rng):
    expected, predicted = rng.choice(4, 60, p=[0.7, 0.1, 0.1, 0.1]), rng.choice(4, 60, p=[0.4, 0.4, 0.1, 0.1])
    shuffled = [(expected == rng.permutation(predicted)).sum() for _ in range(20_000)]
    over = ((expected == predicted).sum() - np.mean(shuffled)) / np.std(shuffled)
    assert metrics.agreement_over_chance(expected, predicted) == pytest.approx(over, abs=0.03)
    two = (expected > 0) * 1, (predicted > 0) * 1
    matthews = sklearn.metrics.matthews_corrcoef(*two)
    assert metrics.agreement_over_chance(*two) == pytest.approx(matthews * 59**0.5)


def spans_by_regex(tags):
    """Spans of well-formed BIO, read off the tags as one string: B, then as many I of the same label as follow."""
    text, found = " ".join(tags) + " ", set()
    for match in re.finditer(r"B-(\w+) ((?:I-\1 )*)", text):
        first = text[: match.start()].count(" ")
        found.add((match[1], first, first + match[0].count(" ") - 1))
    return found


def test_spans_of_bio_and_bioes(rng):
    for _ in range(200):
        tags = ["O"]
        for _ in range(12):
            label = "XY"[rng.integers(2)]
            inside = f"I-{label}" if tags[-1] in (f"B-{label}", f"I-{label}") else f"B-{label}"
            tags.append(("O", f"B-{label}", inside)[rng.integers(3)])
        assert metrics.spans(tags) == spans_by_regex(tags)
        bioes = metrics.to_bioes(tags)
        assert metrics.spans(bioes) == metrics.spans(tags)
        for tag, after in itertools.pairwise([*bioes, "O"]):
            assert (tag[0] in "BI") == (after[0] in "IE"), bioes  # what has begun goes on until it ends
    # Ill-formed tags are read as conlleval reads them: a span begins where no span of its label is going on.
    assert metrics.spans(["I-X", "I-X", "I-Y", "O", "E-Y"]) == {("X", 0, 1), ("Y", 2, 2), ("Y", 4, 4)}
    assert metrics.spans(["S-X", "I-X", "DT", "."]) == {("X", 0, 0), ("X", 1, 1)}


def test_spans_of_bilou_are_those_of_bioes():
    tags = ["U-X", "O", "B-Y", "I-Y", "L-Y", "B-X", "L-X", "U-X"]
    assert metrics.spans(tags) == {("X", 0, 0), ("Y", 2, 4), ("X", 5, 6), ("X", 7, 7)}
    assert metrics.to_bioes(tags) == [{"U": "S", "L": "E"}.get(tag[0], tag[0]) + tag[1:] for tag in tags]


def test_spans_of_bmes_are_those_of_bioes():
    tags = ["B-P", "M-P", "E-P", "O", "S-Q", "B-P", "E-P"]
    assert (
        metrics.spans(tags)
        == metrics.spans([tag.replace("M-", "I-") for tag in tags])
        == {("P", 0, 2), ("Q", 4, 4), ("P", 5, 6)}
    )


def test_f1_of_spans():
    expected = [{("X", 0, 1), ("Y", 3, 3)}, {("X", 0, 0)}]
    predicted = [{("X", 0, 1), ("Y", 2, 3)}, set()]
    precision, recall, f1 = metrics.span_precision_recall_f1(expected, predicted)
    assert (precision, recall) == (0.5, 1 / 3) and f1 == pytest.approx(0.4)
    assert metrics.span_precision_recall_f1([set()], [set()]) == (0.0, 0.0, 0.0)


def test_f1_of_spans_is_that_of_conlleval(rng):
    """Of any tags in BIO and BIOES, well-formed or not."""
    from conlleval import evaluate

    tags = ["O", *(f"{prefix}-{name}" for prefix in "BIES" for name in "XY")]
    for _ in range(50):
        expected, predicted = (
            [[tags[i] for i in rng.integers(len(tags), size=8)] for _ in range(4)] for _ in range(2)
        )  # fmt: skip
        lines = [f"w {one} {other}" for pair in zip(expected, predicted) for one, other in [*zip(*pair), ("O", "O")]]
        theirs = evaluate(lines)["overall"]["chunks"]["evals"]
        ours = metrics.span_precision_recall_f1(map(metrics.spans, expected), map(metrics.spans, predicted))
        assert ours == pytest.approx([theirs[name] for name in ("prec", "rec", "f1")])


def test_squad_measures_are_the_official_ones(rng):
    """By torchmetrics, which has the official script of SQuAD 1.1."""
    from torchmetrics.functional.text import squad as official

    words = ["The", "a", "an", "Norman", "norman", "conquest", "conquest!", "10th", "U.S.", "-", "ÄRA", "ära"]
    for _ in range(300):
        answers = [" ".join(rng.choice(words, rng.integers(1, 5))) for _ in range(rng.integers(1, 4))]
        answers = [text for text in answers if squad.normalised(text)] or ["conquest"]
        said = " ".join(rng.choice(words, rng.integers(1, 5)))
        given = {"text": answers, "answer_start": [0] * len(answers)}
        theirs = official([{"prediction_text": said, "id": "q"}], [{"answers": given, "id": "q"}])
        assert 100 * squad.exact_match(answers, said) == pytest.approx(float(theirs["exact_match"]), abs=1e-4)
        assert 100 * squad.f1(answers, said) == pytest.approx(float(theirs["f1"]), abs=1e-4)


# What the official script of SQuAD 2.0 adds: questions without an answer, and answers that normalise to nothing.
@pytest.mark.parametrize(
    ("expected", "predicted", "value"), [([], "", 1), ([], "something", 0), (["x"], "", 0), (["the"], "", 1)]
)
def test_squad_measures_where_there_is_no_answer(expected, predicted, value):
    assert squad.exact_match(expected, predicted) == value
    assert squad.f1(expected, predicted) == value


def test_the_threshold_is_the_best_of_all(rng):
    for _ in range(100):
        odds = np.round(rng.normal(size=12), 1)  # with ties
        answered, not_answered = rng.random((2, 12))
        chosen = squad.best_threshold(odds, answered, not_answered)

        def score(threshold, odds=odds, answered=answered, not_answered=not_answered):
            return np.where(odds > threshold, not_answered, answered).sum()

        best = max(score(threshold) for threshold in (*(odds - 0.05), *(odds + 0.05)))
        assert score(chosen) == pytest.approx(best)


# Formats.


def load(folder, **task):
    return loading.load(task_config.from_dict({"task": {"path": str(folder), **task}}).task)


def test_json_lines_and_their_info(tmp_path):
    data = load(task_data.make(tmp_path / "a", "classification"))
    assert (data.task.kind, data.task.metric, data.task.labels) == ("classification", "accuracy", ("bad", "good"))
    parts = data.train, data.validation, data.test
    assert [{name: len(found) for name, found in part.items()} for part in parts] == [
        {"train": 160}, {"validation": 40}, {"test": 40},
    ]  # fmt: skip
    first = data.train["train"][1]
    assert first.label == 1 and first.texts[0].startswith("Good!") and first.where.endswith("train.jsonl:2")


def test_labels_that_nobody_named_are_found(tmp_path):
    task_data.write_lines(tmp_path / "train.jsonl", [{"text": "a", "label": n} for n in (10, 9, 2)])
    assert load(tmp_path).task.labels == ("2", "9", "10")
    task_data.write_lines(tmp_path / "train.jsonl", [{"text": "a", "label": n} for n in ("no", "yes", "maybe")])
    assert load(tmp_path).task.labels == ("maybe", "no", "yes")


GLUE = {  # a line of each official file, as gluebenchmark.com hands them out
    "cola": ("train.tsv", "gj04\t1\t\tOur friends won't buy this.\ngj04\t0\t*\tThey drank the pub.\n",
             "test.tsv", "index\tsentence\n0\tBill whistled past the house.\n", ["acceptable", "unacceptable"]),
    "sst2": ("train.tsv", "sentence\tlabel\nhide new secretions \t0\n", "test.tsv", "index\tsentence\n0\tuneasy \n", ["negative"]),
    "mrpc": ("train.tsv", "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t70\t71\tHe said \"no.\t\"No, he said.\n",
             "test.tsv", "index\t#1 ID\t#2 ID\t#1 String\t#2 String\n0\t1\t2\tA\tB\n", ["equivalent"]),
    "stsb": ("train.tsv", "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore\n"
             "0\tm\tM\t2012\t0001\tnone\tnone\tA plane.\tAn air plane.\t5.000\n",
             "test.tsv", "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\n"
             "0\tm\tM\t2012\t0001\tnone\tnone\tA\tB\n", [5.0]),
    "qqp": ("train.tsv", "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n133273\t1\t2\tWhy?\tHow?\t0\n",
            "test.tsv", "id\tquestion1\tquestion2\n0\tA?\tB?\n", ["not_duplicate"]),
    "mnli": ("train.tsv", "index\tpromptID\tgenre\tsentence1\tsentence2\tlabel1\tgold_label\n0\t1\tg\tA\tB\tneutral\tneutral\n",
             "test_matched.tsv", "index\tpromptID\tgenre\tsentence1\tsentence2\n0\t1\tg\tA\tB\n", ["neutral"]),
    "qnli": ("train.tsv", "index\tquestion\tsentence\tlabel\n0\tWhen?\tThen.\tentailment\n",
             "test.tsv", "index\tquestion\tsentence\n0\tA?\tB.\n", ["entailment"]),
    "rte": ("train.tsv", "index\tsentence1\tsentence2\tlabel\n0\tNo Weapons.\tWeapons.\tnot_entailment\n",
            "test.tsv", "index\tsentence1\tsentence2\n0\tA\tB\n", ["not_entailment"]),
}  # fmt: skip


@pytest.mark.parametrize("name", GLUE)
def test_the_files_of_glue(tmp_path, name):
    from electra_jax.cli import load_finetune_config

    train_file, train, test_file, test, labels = GLUE[name]
    config = load_finetune_config(f"configs/finetune/glue.py:{name},tsv", [("task.path", str(tmp_path))])
    folder = tmp_path / config.task.train.partition("/")[0]
    folder.mkdir()
    (folder / train_file).write_text(train)
    for file in config.task.validation.split(","):
        (tmp_path / file).write_text(train)
    for file in config.task.test.split(","):
        (tmp_path / file).write_text(test)
    data = loading.load(config.task)
    found = [example.label for example in data.train["train"]]
    assert [data.task.labels[i] for i in found] == labels if name != "stsb" else found == labels
    assert all(len(e.texts) == (1 if name in ("cola", "sst2") else 2) for e in data.train["train"])
    tests = list(data.test.values())
    assert len(tests) == (2 if name == "mnli" else 1)
    assert all(e.label is None and e.id == "0" for split in tests for e in split)


def test_squads_own_json(tmp_path):
    from electra_jax.cli import load_finetune_config

    qas = [{"id": "a", "question": "Who?", "answers": [{"text": "Anna", "answer_start": 4}], "is_impossible": False},
           {"id": "b", "question": "Why?", "answers": [], "is_impossible": True}]  # fmt: skip
    whole = {"version": "v2.0", "data": [{"title": "T", "paragraphs": [{"context": "Oh, Anna came.", "qas": qas}]}]}
    for name in ("train-v2.0.json", "dev-v2.0.json"):
        (tmp_path / name).write_text(json.dumps(whole))
    data = loading.load(load_finetune_config("configs/finetune/squad.py:2.0", [("task.path", str(tmp_path))]).task)
    one, other = data.validation["validation"]
    assert one.label == (Answer("Anna", 4),) and other.label == () and other.id == "b"
    for start in (2, 3, 5, 6):  # some of SQuAD's answer positions are off by this much
        qas[0]["answers"][0]["answer_start"] = start
        (tmp_path / "dev-v2.0.json").write_text(json.dumps(whole))
        data = loading.load(load_finetune_config("configs/finetune/squad.py:2.0", [("task.path", str(tmp_path))]).task)
        assert data.validation["validation"][0].label == (Answer("Anna", 4),)
    qas[0]["answers"][0]["answer_start"] = 1
    (tmp_path / "dev-v2.0.json").write_text(json.dumps(whole))
    with pytest.raises(
        UserError, match="question a: the answer 'Anna' is not at character 1 of the context, 'h, A' is"
    ):
        loading.load(load_finetune_config("configs/finetune/squad.py:2.0", [("task.path", str(tmp_path))]).task)


CONLL = """-DOCSTART- -X- -X- O

Confidence NN B-NP
in IN B-PP
the DT B-NP
pound NN I-NP

It PRP B-NP
fell VBD B-VP
"""
CONLLU = """# sent_id = 1
# text = Vámonos al mar.
1-2\tVámonos\t_\t_\t_\t_\t_\t_\t_\t_
1\tVamos\tir\tVERB\tV\t_\t0\troot\t_\t_
2\tnos\tnosotros\tPRON\tP\t_\t1\tobj\t_\t_
3\tal\ta\tADP\tA\t_\t4\tcase\t_\t_
3.1\tnada\t_\t_\t_\t_\t_\t_\t_\t_
4\tmar\tmar\tNOUN\tN\t_\t1\tobl\t_\tSpaceAfter=No

"""


def test_columns(tmp_path):
    from electra_jax.cli import load_finetune_config

    for name in ("train.txt", "test.txt"):
        (tmp_path / name).write_text(CONLL)
    data = loading.load(load_finetune_config("configs/finetune/chunking.py", [("task.path", str(tmp_path))]).task)
    one, other = data.train["train"]
    assert one.words == ("Confidence", "in", "the", "pound") and other.where.endswith("train.txt:8")
    assert [data.task.labels[i] for i in one.label] == ["S-NP", "S-PP", "B-NP", "E-NP"]
    assert [e.label for e in load(tmp_path, kind="tagging", label="1").train["train"]][1] == (
        3,
        4,
    )  # PRP and VBD of five
    (tmp_path / "u").mkdir()
    (tmp_path / "u" / "train.conllu").write_text(CONLLU)
    data = load(tmp_path / "u")
    (only,) = data.train["train"]
    assert only.words == ("Vamos", "nos", "al", "mar")
    assert [data.task.labels[i] for i in only.label] == ["VERB", "PRON", "ADP", "NOUN"]
    assert load(tmp_path / "u", label="deprel").task.labels == ("case", "obj", "obl", "root")
    with pytest.raises(UserError, match="config.task.label='uposs': the columns of CoNLL-U are id, form"):
        load(tmp_path / "u", label="uposs")
    with pytest.raises(UserError, match="config.task.label='pos': of a file of columns it must be a number"):
        load(tmp_path, kind="tagging", label="pos")


@pytest.mark.parametrize("file_format", ["array_record", "tfrecord"])
def test_data_sets_of_tfds(tmp_path, file_format):
    import tensorflow_datasets as tfds

    features = {
        "sentence": tfds.features.Text(),
        "label": tfds.features.ClassLabel(names=["no", "yes"]),
        "idx": np.int32,
    }
    rows = {"train": [("ä b", 1), ("c", 0)], "validation": [("d", 1)], "test": [("e", -1)]}
    tfds.dataset_builders.store_as_tfds_dataset(
        name="made", version="1.0.0", data_dir=tmp_path, file_format=file_format,
        features=tfds.features.FeaturesDict(features),
        split_datasets={split: [(i, {"sentence": text, "label": label, "idx": i}) for i, (text, label) in enumerate(found)]
                        for split, found in rows.items()},
    )  # fmt: skip
    data = load(f"tfds:{tmp_path / 'made' / '1.0.0'}", text="sentence")
    assert sorted((e.texts, e.label) for e in data.train["train"]) == [(("c",), 0), (("ä b",), 1)]
    assert data.task.labels == ("no", "yes") and data.test["test"][0].label is None
    # -1 in every row is TFDS's way of having no labels, even in a regression; among other labels it is a mistake.
    numbers = load(f"tfds:{tmp_path / 'made' / '1.0.0'}", text="sentence", kind="regression")
    assert numbers.test["test"][0].label is None and sorted(e.label for e in numbers.train["train"]) == [0.0, 1.0]
    with pytest.raises(UserError, match="config.task.test=tset: .* has train, validation, test"):
        load(f"tfds:{tmp_path / 'made' / '1.0.0'}", text="sentence", test="tset")


def test_tags_of_tfds_have_their_names(tmp_path):
    """In the form of wikiann and others, whose field is `tags`."""
    import tensorflow_datasets as tfds

    tags = tfds.features.ClassLabel(names=["O", "B-PER", "I-PER"])
    features = {"tokens": tfds.features.Sequence(tfds.features.Text()), "tags": tfds.features.Sequence(tags)}
    rows = [(0, {"tokens": ["Anna", "came"], "tags": ["B-PER", "O"]})]
    tfds.dataset_builders.store_as_tfds_dataset(
        name="made", version="1.0.0", data_dir=tmp_path, features=tfds.features.FeaturesDict(features),
        split_datasets={"train": rows}, file_format="array_record",
    )  # fmt: skip
    found = load(f"tfds:{tmp_path / 'made' / '1.0.0'}")
    assert found.task.labels == ("O", "B-PER", "I-PER") and found.task.metric == "span_f1"
    assert found.train["train"][0].label == (1, 0)


def test_squad_of_tfds(tmp_path):
    """In the form of its builder, read by the configuration for it."""
    import tensorflow_datasets as tfds

    from electra_jax.cli import load_finetune_config

    text = tfds.features.Text()
    features = {"id": text, "title": text, "context": text, "question": text, "is_impossible": np.bool_}
    features["answers"] = tfds.features.Sequence({"text": text, "answer_start": np.int32})
    row = {"id": "q", "title": "t", "context": "Oh, Anna came.", "question": "Who?", "is_impossible": False}
    rows = [row | {"answers": {"text": ["Anna", "came"], "answer_start": [4, 9]}},
            row | {"id": "r", "is_impossible": True, "answers": {"text": [], "answer_start": []}}]  # fmt: skip
    tfds.dataset_builders.store_as_tfds_dataset(
        name="squad", version="2.0.0", data_dir=tmp_path, features=tfds.features.FeaturesDict(features),
        split_datasets={split: list(enumerate(rows)) for split in ("train", "validation")}, file_format="array_record",
    )  # fmt: skip
    config = load_finetune_config(
        "configs/finetune/squad.py:2.0,tfds", [("task.path", f"tfds:{tmp_path / 'squad' / '2.0.0'}")]
    )
    found = sorted(loading.load(config.task).validation["validation"], key=lambda one: one.id)
    assert [one.id for one in found] == ["q", "r"] and found[0].texts == ("Who?", "Oh, Anna came.")
    assert [one.label for one in found] == [(Answer("Anna", 4), Answer("came", 9)), ()]
    assert load_finetune_config("configs/finetune/squad.py:1.1,tfds", []).task.path == "tfds:squad/v1.1"


BROKEN = [
    ('{"text": "a", "label": "maybe"}', {}, "train.jsonl:2: label 'maybe' is not one of the 2 labels: no, yes"),
    ('{"text": "a", "label": 2}', {}, "train.jsonl:2: label 2 is not an index of the 2 labels"),
    ('{"text": "a", "label": -1}', {}, "train.jsonl:2: label -1 is not an index of the 2 labels"),
    ('{"text": null, "label": 1}', {}, "train.jsonl:2: field 'text' is null"),
    ('{"text": "  ", "label": 1}', {}, "train.jsonl:2: the text is empty"),
    ('{"text": "a"}', {}, "train.jsonl:2: no field 'label'; there are text"),
    ('{"body": "a", "label": 1}', {}, "train.jsonl:2: no field 'text'; there are body, label"),
    ('{"text": "a", ', {}, "train.jsonl:2 is no JSON"),
    ("[1]", {}, "train.jsonl:2 holds a JSON list, not an object"),
    ('{"text": "a", "label": "x"}', {"kind": "regression"}, "train.jsonl:2: label 'x' is not a number"),
    ('{"text": "a", "label": 1}', {"kind": "tagging"}, "no field 'tokens'"),
    ('{"text": "a", "label": 1}', {"validation": "dev.jsonl"}, "dev.jsonl is not there"),
    ('{"text": "a", "label": 1}', {"train": "train.foo"}, "train.foo is not there"),
]


@pytest.mark.parametrize(("line", "task", "message"), BROKEN)
def test_what_is_wrong_is_named_by_file_and_line(tmp_path, line, task, message):
    (tmp_path / "train.jsonl").write_text('{"text": "fine", "label": 1}\n' + line + "\n")
    with pytest.raises(UserError) as error:
        load(tmp_path, **{"kind": "classification", "labels": ("no", "yes"), **task})
    assert message in str(error.value)


def labels_of(folder, rows, **task):
    task_data.write_lines(folder / "train.jsonl", rows)
    found = load(folder, **task)
    return [found.task.labels[example.label] for example in found.train["train"]]


@pytest.mark.parametrize(
    ("names", "given", "expected"),
    [
        (("a", "b", "c"), [2, 0], ["c", "a"]),
        (("a", "b", "c"), ["2", "0"], ["c", "a"]),
        (("1", "2", "3"), [1, 3], ["1", "3"]),
        (("1", "2", "3"), [0, 1, 2], ["1", "2", "3"]),  # 1 and 2 are names as well
        (("0", "1"), [1, 0], ["1", "0"]),
        ((), [9, 2, 10], ["9", "2", "10"]),
    ],
)
def test_labels_are_names_or_indices_throughout(tmp_path, names, given, expected):
    assert labels_of(tmp_path, [{"text": "a", "label": n} for n in given], labels=names) == expected


@pytest.mark.parametrize(
    ("names", "given", "message"),
    [
        (("1", "2", "3"), [0, 1, 3], "train.jsonl:1: label '0' is not one of the 3 labels: 1, 2, 3"),
        (("a", "b"), ["a", 1], "train.jsonl:2: label '1' is not one of the 2 labels: a, b"),
    ],
)
def test_labels_that_are_given_two_ways_are_refused(tmp_path, names, given, message):
    with pytest.raises(UserError, match=re.escape(message)):
        labels_of(tmp_path, [{"text": "a", "label": n} for n in given], labels=names)


def test_labels_that_training_does_not_have(tmp_path):
    task = TaskConfig(kind="classification", path="data", labels=("x", "y", "z"))
    found = [TaskExample("", "", ("a",), label=label) for label in (0, 1)]
    assert check_labels(task, found) == "no training example has the label z"
    assert check_labels(dataclasses.replace(task, labels=("x", "y")), found) is None
    with pytest.raises(
        UserError, match="config.task.path=data: all of training has the label x: there is nothing to tell"
    ):
        check_labels(task, found[:1])
    tags = dataclasses.replace(task, kind="tagging")
    found = [TaskExample("", "", words=("a", "b"), label=label) for label in ((0, 0), (0, 1))]
    assert check_labels(tags, found) is None
    with pytest.raises(UserError, match="all of training has the label x"):
        check_labels(tags, found[:1])


def test_a_test_set_has_labels_in_the_form_of_training(tmp_path):
    task_data.write_lines(tmp_path / "train.jsonl", [{"text": "a", "label": n} for n in (0, 1)])
    task_data.write_lines(tmp_path / "test.jsonl", [{"text": "a", "label": "x"}])
    with pytest.raises(UserError, match="test.jsonl:1: label 'x' is given by name, in training by index"):
        load(tmp_path, labels=("x", "y"))


def test_a_label_that_training_does_not_have_is_refused_also_where_it_could_be_an_index(tmp_path):
    task_data.write_lines(tmp_path / "train.jsonl", [{"text": "a", "label": n} for n in (2, 9, 10)])
    task_data.write_lines(tmp_path / "test.jsonl", [{"text": "a", "label": 1}])
    with pytest.raises(UserError, match="test.jsonl:1: label '1' is not one of the 3 labels: 2, 9, 10"):
        load(tmp_path)


def test_the_kind_follows_from_all_rows_and_signed_labels_are_numbers(tmp_path):
    task_data.write_lines(tmp_path / "train.jsonl", [{"text": "a", "label": n} for n in (3, 2.5, 1)])
    assert load(tmp_path).task.kind == "regression"
    task_data.write_lines(tmp_path / "train.jsonl", [{"text": "a", "label": n} for n in (1, -1)])
    assert load(tmp_path).task.labels == ("-1", "1")
    task_data.write_lines(tmp_path / "train.jsonl", [{"text": "a", "label": n} for n in ("²", "1")])
    assert load(tmp_path).task.labels == ("1", "²")


def test_the_tags_that_are_asked_for(tmp_path):
    rows = [{"tokens": ["a", "b"], "tags": ["NN", "VB"], "ner": ["O", "B-X"]}]
    task_data.write_lines(tmp_path / "train.jsonl", rows)
    assert load(tmp_path).task.labels == ("NN", "VB")
    assert load(tmp_path, label="ner").task.labels == ("B-X", "O")


def test_tags_by_index_as_spans(tmp_path):
    rows = [{"tokens": ["a", "b", "c"], "tags": [1, 2, 0]}]
    task_data.write_lines(tmp_path / "train.jsonl", rows)
    found = load(tmp_path, labels=("O", "B-N", "I-N"), tags="bioes")
    assert [found.task.labels[i] for i in found.train["train"][0].label] == ["B-N", "E-N", "O"]
    task_data.write_lines(tmp_path / "train.jsonl", [{"tokens": ["a", "b"], "tags": ["NN", "O"]}])
    with pytest.raises(UserError, match="config.task.tags=bioes cannot work: tag 'NN' is neither O nor of a span"):
        load(tmp_path, tags="bioes")


def test_files_of_one_name_are_all_read(tmp_path):
    for name, count in (("a", 2), ("b", 3)):
        (tmp_path / name).mkdir()
        rows = [{"text": name, "label": n % 2} for n in range(count)]
        task_data.write_lines(tmp_path / name / "part.jsonl", rows)
    found = load(tmp_path, train="a/part.jsonl,b/part.jsonl", validation="a/part.jsonl", test="b/part.jsonl")
    assert {name: len(part) for name, part in found.train.items()} == {"a-part.jsonl": 2, "b-part.jsonl": 3}
    assert (len(found.validation["validation"]), len(found.test["test"])) == (2, 3)
    both = "a/part.jsonl,b/part.jsonl"
    with pytest.raises(UserError, match="a-part.jsonl stands for validation and test; list it under one of them"):
        load(tmp_path, train="a/part.jsonl", validation=both, test=both)
    (tmp_path / "a" / "part.tsv").write_text("text\tlabel\na\t0\nb\t1\n")
    assert [len(one) for one in load(tmp_path, train="a/part.jsonl,a/part.tsv").train.values()] == [2, 2]
    with pytest.raises(UserError, match="two of these would go by one name; rename a file"):
        load(tmp_path, train="a/part.jsonl,a/part.jsonl")


def test_broken_lines_of_a_table_are_left_out_where_a_few_may_be(tmp_path):
    """As in the official files of QQP; a test set has to be whole."""
    lines = ["text\tlabel", *(f"a{n}\t{n % 2}" for n in range(30)), "cut", *(f"b{n}\t{n % 2}" for n in range(30))]
    (tmp_path / "train.tsv").write_text("\n".join(lines))
    with pytest.raises(UserError, match="train.tsv:32 has 1 columns, the first line 2"):
        load(tmp_path)
    found = load(tmp_path, max_broken_fraction=0.02)
    assert len(found.train["train"]) == 60
    assert "train: 1 of 61 lines are broken and left out, the first: " in found.warnings[0]
    with pytest.raises(UserError, match="train.tsv:32 has 1 columns"):
        load(tmp_path, max_broken_fraction=0.01)
    (tmp_path / "test.tsv").write_text("\n".join(lines))
    with pytest.raises(UserError, match="test.tsv:32 has 1 columns"):
        load(tmp_path, max_broken_fraction=0.02)


@pytest.mark.parametrize(
    ("name", "text"),
    [("train.jsonl", '{"tokens": ["a", "b"], "tags": ["X", "Y"]}\n'), ("train.conll", "a X\nb Y\n"),
     ("train.conllu", "1\ta\t_\tX\t_\t_\t_\t_\t_\t_\n2\tb\t_\tY\t_\t_\t_\t_\t_\t_\n")],
)  # fmt: skip
def test_a_byte_order_mark_is_no_text(tmp_path, name, text):
    (tmp_path / "info.json").write_text('\ufeff{"kind": "tagging"}', encoding="utf-8")
    (tmp_path / name).write_text("\ufeff" + text, encoding="utf-8")
    (only,) = load(tmp_path).train["train"]
    assert only.words == ("a", "b") and only.label == (0, 1)


def test_columns_without_tags_are_words_to_be_tagged(tmp_path):
    (tmp_path / "train.conll").write_text("a X\nb Y\n")
    (tmp_path / "test.conll").write_text("b\na\n")
    found = load(tmp_path, kind="tagging")
    assert found.test["test"][0].words == ("b", "a") and found.test["test"][0].label is None
    assert found.warnings == ()
    (tmp_path / "test.conll").write_text("b X\na\n")
    with pytest.raises(UserError, match="test.conll:2: 'a' has no tag, the words before it in the sentence have them"):
        load(tmp_path, kind="tagging")
    (tmp_path / "test.conll").write_text("b\na X\n")
    with pytest.raises(UserError, match="test.conll:2: 'a X' has a tag, the words before it in the sentence have none"):
        load(tmp_path, kind="tagging")


def test_a_sentence_without_anything_in_its_column_is_tagged_where_others_have_something(tmp_path):
    def word(form, feats):
        return f"1\t{form}\t_\tX\t_\t{feats}\t_\t_\t_\t_\n"

    (tmp_path / "train.conllu").write_text(word("Oh", "_") + "\n" + word("dogs", "Number=Plur"))
    (tmp_path / "test.conllu").write_text(word("Ah", "_") + "\n" + word("cats", "_"))
    found = load(tmp_path, kind="tagging", label="feats")
    assert [e.label for e in found.train["train"]] == [(1,), (0,)] and found.task.labels == ("Number=Plur", "_")
    assert [e.label for e in found.test["test"]] == [None, None]  # all are _: still to be tagged


def test_columns_are_split_at_tabs_or_else_at_spaces(tmp_path):
    """Other white space belongs to words: French writes numbers with it."""
    lines = ("10\u00a0000\tNUM\tB-X", "New York\tPROPN\tO", "", "10\u00a0000  NUM B-X", "a X O", "\u3000 P O")
    (tmp_path / "train.conll").write_text("\n".join(lines))
    one, other = load(tmp_path, kind="tagging").train["train"]
    assert one.words == ("10\u00a0000", "New York") and other.words == ("10\u00a0000", "a", "\u3000")
    assert load(tmp_path, kind="tagging", label="1").task.labels == ("NUM", "P", "PROPN", "X")


@pytest.mark.parametrize(
    ("text", "label", "message"),
    [
        ("he PRP B-NP\nin IN\n", "label", "train.conll:2 has 2 columns, the line before 3"),
        ("# id 1 domain=en\nhe _ _ O\n\n# id 2 domain=en\nA _ _ B-X\n", "label",
         "train.conll:1: every sentence of .* begins with '#': take out the comments"),
        ("# one\nhe O\n\n# two\nA B-X\n", "label", "begins with '#': take out the comments"),
        ("1\tDie\tO\n2\tBank\tB-X\n\n1\tGut\tO\n", "label", "must be the words, not their numbers"),
        ("a X\nb Y\n", "2", "train.conll:1: 'a X' has no column 2 for the tag"),
    ],
)  # fmt: skip
def test_columns_that_are_no_words_and_tags_are_refused(tmp_path, text, label, message):
    (tmp_path / "train.conll").write_text(text)
    with pytest.raises(UserError, match=message):
        load(tmp_path, kind="tagging", label=label)


def test_words_that_look_like_comments_or_numbers_are_words(tmp_path):
    (tmp_path / "train.conll").write_text("# SYM\n1 NUM\n\n1 NUM\n3 NUM\n\nsee VERB\n# SYM\n")
    assert [e.words for e in load(tmp_path, kind="tagging").train["train"]] == [("#", "1"), ("1", "3"), ("see", "#")]


def test_scores_in_a_column_of_another_name_and_in_any_notation_are_a_regression(tmp_path):
    task_data.write_lines(tmp_path / "train.jsonl", [{"text": "a", "score": x} for x in (1.5, 2.25, 3.0)])
    found = load(tmp_path, label="score")
    assert found.task.kind == "regression" and [e.label for e in found.train["train"]] == [1.5, 2.25, 3.0]
    (tmp_path / "train.jsonl").unlink()
    (tmp_path / "train.tsv").write_text("text\tlabel\na\t0.5\nb\t1e-05\nc\t5.\nd\t+1\n")
    assert [e.label for e in load(tmp_path).train["train"]] == [0.5, 1e-5, 5.0, 1.0]
    (tmp_path / "train.tsv").write_text("text\tlabel\na\t0\nb\t1\nc\tnan\n")
    assert load(tmp_path).task.kind == "classification"


def test_tags_that_stand_for_none(tmp_path):
    """-1 throughout a test set, which is how TFDS and Hugging Face withhold tags."""
    task_data.write_lines(tmp_path / "train.jsonl", [{"tokens": ["a", "b"], "tags": [1, 0]}])
    task_data.write_lines(tmp_path / "test.jsonl", [{"tokens": ["a", "b"], "tags": [-1, -1]}])
    for labels in ((), ("x", "y")):
        found = load(tmp_path, labels=labels)
        assert len(found.task.labels) == 2 and found.test["test"][0].label is None
    task_data.write_lines(tmp_path / "test.jsonl", [{"tokens": ["a", "b"], "tags": [-1, 0]}])
    with pytest.raises(UserError, match="label -1 is not an index"):
        load(tmp_path, labels=("x", "y"))


def test_an_id_that_is_no_text_is_no_id(tmp_path):
    rows = [{"text": "a", "label": n, "idx": {"paragraph": 0, "answer": n}} for n in range(2)]
    task_data.write_lines(tmp_path / "train.jsonl", rows)
    assert [e.id for e in load(tmp_path).train["train"]] == ["0", "1"]


def test_cells_between_tabs_may_be_empty(tmp_path):
    (tmp_path / "train.conll").write_text("a\t\tO\t\nb\tx\tB-P\t\n\nc\t\tO\n")
    one, other = load(tmp_path, kind="tagging").train["train"]
    assert (one.words, one.label, other.words, other.label) == (("a", "b"), (1, 0), ("c",), (1,))
    (tmp_path / "train.conll").write_text("a\tO\n\tB-P\n")
    with pytest.raises(UserError, match=r"train.conll:2: '\\tB-P' has no word in its first column"):
        load(tmp_path, kind="tagging")


def test_a_table_of_scores_is_a_regression(tmp_path):
    (tmp_path / "train.tsv").write_text("text\tlabel\na\t0.25\nb\t1.5\nc\t4\n")
    assert load(tmp_path).task.kind == "regression"
    for labels in (("0", "1", "4"), ("1.0", "2.0.1", "v3")):  # the controls: no fraction, no numbers
        (tmp_path / "train.tsv").write_text("text\tlabel\n" + "".join(f"x\t{label}\n" for label in labels))
        assert load(tmp_path).task.kind == "classification"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("train.jsonl", '{"text": "a", "label": 1}\n{"text": "b", "label": ""}\n', 'jsonl:2: the label must be a name or .*not ""'),
        ("train.jsonl", '{"text": "a", "label": ["0", "1"]}\n', r'jsonl:1: the label must be a name or .*not \["0", "1"\]'),
        ("train.jsonl", '{"text": "a", "label": {"0": 1}}\n', "jsonl:1: the label must be a name or a number, not {"),
        ("train.jsonl", '{"tokens": ["a", "b"], "tags": ["O", null]}\n', "jsonl:1: a tag must be a name or a number, not null"),
        ("train.tsv", "text\tlabel\ngood\t1\nmeh\t\n", 'tsv:3: the label must be a name or a number, not ""'),
        ("train.jsonl", '{"text": "a", "label": ' + "9" * 5000 + "}\n", "jsonl:1 cannot be read as JSON"),
        ("train.jsonl", "[" * 100_000 + "\n", "jsonl:1 cannot be read as JSON"),
    ],
)  # fmt: skip
def test_what_is_no_label_is_named(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        load(tmp_path)


def test_an_empty_column_throughout_a_test_set_is_no_label(tmp_path):
    (tmp_path / "train.tsv").write_text("text\tlabel\na\t0\nb\t1\n")
    (tmp_path / "test.tsv").write_text("text\tlabel\nc\t\nd\t\n")
    assert [e.label for e in load(tmp_path).test["test"]] == [None, None]


def test_names_of_columns_that_are_read_as_an_example_are_said(tmp_path):
    rows = "".join(f"good {n}\t{n % 2}\n" for n in range(10))
    (tmp_path / "train.tsv").write_text("review\tscore\n" + rows)
    (warning,) = load(tmp_path, text="0", label="1").warnings
    assert "train.tsv:1 alone has the label 'score'; if that line is the columns' names" in warning
    assert load(tmp_path, text="review", label="score").warnings == ()
    (tmp_path / "train.tsv").write_text(rows)
    assert load(tmp_path, text="0", label="1").warnings == ()


def test_answers_that_are_none_or_kept_back(tmp_path):
    def rows(*answers):
        one = {"question": "Who?", "context": "The fox."}
        return "".join(json.dumps(one | {"answers": each}) + "\n" for each in answers)

    fox, none = {"text": ["fox"], "answer_start": [4]}, {"text": [], "answer_start": []}
    for empty in ([{"text": "", "answer_start": -1}], {"text": [""], "answer_start": [0]}, none, []):
        (tmp_path / "train.jsonl").write_text(rows(fox, empty))
        (tmp_path / "test.jsonl").write_text(rows(empty, empty))
        found = load(tmp_path)
        assert [e.label for e in found.train["train"]] == [(Answer("fox", 4),), ()]
        assert [e.label for e in found.test["test"]] == [(), ()]
    # Where all other questions have answers, a test set without any has had them withheld.
    (tmp_path / "train.jsonl").write_text(rows(fox, fox))
    (tmp_path / "validation.jsonl").write_text(rows(fox))
    found = load(tmp_path)
    assert [e.label for e in found.test["test"]] == [None, None] and found.validation["validation"][0].label


def test_a_context_without_a_token_is_refused():
    kind = answering()
    with pytest.raises(UserError, match=r"f:3: the context is empty: no token is in '\\u200b"):
        kind.features([TaskExample("f:3", "", ("Who?", "\u200b\u200b"))])


def test_what_is_no_text_is_named(tmp_path):
    for line, message in (
        ('{"text": "a", "id": "\\ud800", "label": 1}', "train.jsonl:1: id holds half of a character"),
        ('{"text": "a", "label": "\\ud800"}', r"label '\\ud800' holds half of a character"),
        ('{"text": "a \\ud800 b", "label": 1}', "train.jsonl:1: text holds half of a character, which is no text: 'a "),
        ('{"text": ["a", "b"], "label": 1}', r'train.jsonl:1: text must be text, not \["a", "b"\]'),
        ('{"text": NaN, "label": 1}', "train.jsonl:1: text must be text, not NaN"),
        ('{"text": "a", "label": NaN}', "train.jsonl:1: the label must be a name or a number, not NaN"),
        (
            '{"question": "a", "context": "b", "answers": [{"text": "b", "answer_start": Infinity}]}',
            "train.jsonl:1: answers must be a list of",
        ),
    ):
        (tmp_path / "train.jsonl").write_text(line + "\n" + '{"text": "b", "label": 0}')
        with pytest.raises(UserError, match=message):
            load(tmp_path)
    task_data.write_lines(tmp_path / "train.jsonl", [{"tokens": ["a", None], "tags": ["X", "Y"]}])
    with pytest.raises(UserError, match="train.jsonl:1: a word of tokens must be text, not null"):
        load(tmp_path)
    (tmp_path / "train.jsonl").write_bytes(b'{"text": "a", "label": 1}\n{"text": "\xff", "label": 0}\n')
    with pytest.raises(UserError, match="train.jsonl:2 is no UTF-8 text .* at byte 10 of the line"):
        load(tmp_path)


def test_a_misspelt_field_of_tags_is_named(tmp_path):
    rows = [{"tokens": ["a", "b"], "tags": ["X", "Y"], "pos": ["N", "V"]}, {"tokens": ["a"], "tags": ["X"]}]
    task_data.write_lines(tmp_path / "train.jsonl", rows[:1])
    assert load(tmp_path, label="pos").task.labels == ("N", "V") and load(tmp_path).task.labels == ("X", "Y")
    for label, line in (("poss", 1), ("pos", 2)):
        task_data.write_lines(tmp_path / "train.jsonl", rows)
        with pytest.raises(UserError, match=f"train.jsonl:{line}: no field '{label}'; there are tokens, tags"):
            load(tmp_path, label=label, kind="tagging")


def test_squads_file_in_another_encoding_is_named_by_line(tmp_path):
    (tmp_path / "train.json").write_text('{"data": [\n{"paragraphs": [{"context": "café ' + "x" * 3000, "latin-1")
    with pytest.raises(UserError, match="train.json:2 is no UTF-8 text") as raised:
        load(tmp_path)
    assert len(str(raised.value)) < 300


def test_a_carriage_return_ends_no_line(tmp_path):
    (tmp_path / "train.tsv").write_bytes(b"text\tlabel\r\none\rtwo\t1\r\nthree\t0\r\n")
    found = load(tmp_path).train["train"]
    assert [(example.texts, example.where[-2:]) for example in found] == [(("one\rtwo",), ":2"), (("three",), ":3")]


def test_long_fields_of_a_table(tmp_path):
    (tmp_path / "train.tsv").write_text("text\tlabel\n" + "a " * 100_000 + "\t1\nb\t0\n")
    assert len(load(tmp_path).train["train"][0].texts[0]) == 200_000


def test_labels_that_are_missing_are_said(tmp_path):
    task_data.write_lines(tmp_path / "train.jsonl", [{"text": "a", "label": n} for n in ("x", "y")])
    task_data.write_lines(tmp_path / "test.jsonl", [{"text": "a", "label": -1}, {"text": "b", "label": -1}])
    found = load(tmp_path)
    assert [example.label for example in found.test["test"]] == [None, None]
    assert found.warnings == ()
    task_data.write_lines(tmp_path / "test.jsonl", [{"text": "a"}, {"text": "b", "label": "x"}])
    assert load(tmp_path).warnings == ("test: 1 of 2 examples have no label, so none of it is measured",)
    # -1 as a number, as in TFDS; where training has the label -1, it is a label.
    task_data.write_lines(tmp_path / "test.jsonl", [{"text": "a", "label": -1.0}] * 2)
    assert load(tmp_path, kind="classification").test["test"][0].label is None
    task_data.write_lines(tmp_path / "train.jsonl", [{"text": "a", "label": n} for n in (-1.0, 1.0)])
    assert load(tmp_path).test["test"][0].label == -1.0
    task_data.write_lines(tmp_path / "train.jsonl", [{"text": "a", "label": n} for n in (0.0, 5.0)])
    assert load(tmp_path).test["test"][0].label is None
    task_data.write_lines(tmp_path / "train.jsonl", [{"text": "a", "label": n} for n in ("x", "y")])
    task_data.write_lines(tmp_path / "test.jsonl", [{"text": "a", "label": -1}, {"text": "b", "label": "x"}])
    with pytest.raises(UserError, match="test.jsonl:1: label '-1' is not one of"):
        load(tmp_path)


def test_the_second_text_alone_may_be_named(tmp_path):
    rows = [{"text_a": "one", "hyp": "two", "label": n} for n in (0, 1)]
    task_data.write_lines(tmp_path / "train.jsonl", rows)
    assert load(tmp_path, text_pair="hyp").train["train"][0].texts == ("one", "two")


def test_impossible_questions_have_no_answer(tmp_path):
    qas = [{"id": "a", "question": "Who?", "is_impossible": True, "answers": [{"text": "Anna", "answer_start": 4}]},
           {"id": "b", "question": "Why?", "is_impossible": True}]  # fmt: skip
    whole = {"data": [{"paragraphs": [{"context": "Oh, Anna came.", "qas": qas}]}]}
    (tmp_path / "train.json").write_text(json.dumps(whole))
    assert [e.label for e in load(tmp_path, kind="question_answering").train["train"]] == [(), ()]


def test_files_by_their_names(tmp_path):
    for name in ("train", "val"):
        task_data.write_lines(tmp_path / f"{name}.jsonl", [{"text": "a", "label": n} for n in range(2)])
    assert [*load(tmp_path).validation] == ["validation"]
    (tmp_path / "train.jsonl").rename(tmp_path / "train.json")
    said = ".json is read as SQuAD's; of an object a line, set config.task.format=jsonl"
    with pytest.raises(UserError, match=f"train.json:2 is no JSON .*; {said}"):
        load(tmp_path)
    (tmp_path / "train.json").write_text("[]")
    with pytest.raises(UserError, match=f"not SQuAD's form.*; {said}"):
        load(tmp_path)


def test_lists_on_the_command_line():
    from electra_jax.cli import load_finetune_config

    def labels(text):
        return load_finetune_config(
            "configs/finetune/jsonl.py", [("task.path", "x"), ("task.labels", text)]
        ).task.labels

    assert labels("neg, pos") == labels("neg,pos,") == labels("('neg', 'pos')") == ("neg", "pos")
    assert labels("no,yes (maybe)") == ("no", "yes (maybe)")


def test_other_mistakes(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        load(tmp_path / "absent")
    with pytest.raises(UserError, match="nothing to train on there; expected train.jsonl, .tsv"):
        load(tmp_path)
    task_data.write_lines(tmp_path / "train.jsonl", [{"tokens": ["a", "b"], "tags": ["X"]}])
    with pytest.raises(UserError, match="train.jsonl:1: 2 words and 1 tags"):
        load(tmp_path)
    with pytest.raises(UserError, match="config.task.max_query_length=64 cannot work"):
        task_config.from_dict({"task": {"path": "x", "kind": "question_answering", "max_length": 60}})
    with pytest.raises(UserError, match="config.evaluation.patience=2 cannot work: it must be 0 unless"):
        task_config.from_dict({"task": {"path": "x"}, "evaluation": {"patience": 2}})
    with pytest.raises(UserError, match="did you mean config.task.max_length"):
        task_config.from_dict({"task": {"path": "x", "max_lenght": 3}})


# Features.


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The tokenizer of the tests as transformers loads it."""
    import transformers

    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer_files.write(tokenizer(), folder, 32)
    (folder / "config.json").write_text(json.dumps({"model_type": "electra"}))
    return transformers.AutoTokenizer.from_pretrained(folder)


def decided(kind, **settings):
    metric = "f1" if kind == "question_answering" else "accuracy"
    return TaskConfig(kind=kind, path="x", labels=("a", "b"), metric=metric, max_length=32, **settings)


@pytest.mark.parametrize("count", [1, 2])
def test_texts_are_cut_as_transformers_cuts_them(rng, exported, count):
    texts = [text[: int(size)] for text, size in zip(embedded_documents(60), rng.integers(3, 90, 60))]
    pairs = [(texts[i], texts[i + 1])[:count] for i in range(59)]
    kind = make_kind(decided("classification"), tokenizer())
    found = kind.features([TaskExample("", "", pair, label=0) for pair in pairs])
    for feature, pair in zip(found, pairs, strict=True):
        theirs = exported(*pair, truncation="longest_first" if count == 2 else True, max_length=32)
        if count == 1 or sum(map(len, tokenizer().encode_batch(pair))) <= 29:
            assert feature.input_ids.tolist() == theirs["input_ids"]
            assert feature.token_type_ids.tolist() == theirs["token_type_ids"]
        assert len(feature.input_ids) == len(theirs["input_ids"])


def test_the_longer_of_a_pair_is_cut_first():
    """BERT's rule, step by step."""
    for one, two, room in itertools.product(range(12), range(12), range(2, 16)):
        left = [one, two]
        while sum(left) > room:
            left[0 if left[0] > left[1] else 1] -= 1
        assert cut_pair(one, two, room) == tuple(left)


def test_words_and_their_tokens():
    """The first token of each word has its tag, and a long sentence is read in parts without losing a word."""
    words = ("The", "quick", "brown", "fox", "naïve", "😀", "jumps", "over", "the", "lazy", "dog") * 5
    example = TaskExample("", "", words=words, label=tuple(i % 2 for i in range(len(words))))
    kind, made = make_kind(decided("tagging"), tokenizer()), tokenizer()
    found = kind.features([example, example._replace(words=("\x00",), label=(1,))])
    parts = [feature for feature in found if feature.example == 0]
    assert len(parts) > 1 and all(len(feature.input_ids) <= 32 for feature in parts)
    labels = np.concatenate([feature.target[feature.tokens] for feature in parts])
    assert labels.tolist() == list(example.label)
    assert sum((feature.target >= 0).sum() for feature in parts) == len(words)
    place = iter(words)
    for feature in parts:
        ends = [*feature.tokens[1:], len(feature.input_ids) - 1]
        for start, end in zip(feature.tokens, ends):
            assert feature.input_ids[start:end].tolist() == made.encode_batch([next(place)])[0].tolist()
    assert found[-1].input_ids.tolist() == [
        made.special.cls,
        made.special.unk,
        made.special.sep,
    ]  # a word without tokens
    outputs = [np.eye(2)[np.maximum(feature.target, 0)] for feature in found]
    predicted = kind.predictions([example, example._replace(words=("\x00",), label=(1,))], found, outputs)
    assert np.argmax(predicted[0], -1).tolist() == list(example.label)


def answering(**settings):
    return make_kind(decided("question_answering", doc_stride=8, max_query_length=6, **settings), tokenizer())


def test_windows_over_a_long_context_are_those_of_transformers(exported):
    question, context = "Which fox?", " ".join(embedded_documents(3))[:400]
    start = context.index(" ", 300) + 1
    text = context[start : context.index(" ", start)]
    kind = answering()
    found = kind.features([TaskExample("", "", (question, context), label=(Answer(text, start),))])
    size = min(6, len(tokenizer().encode_batch([question])[0]))
    cut = exported.decode(exported(question, add_special_tokens=False)["input_ids"][:size])
    theirs = exported(
        cut, context, truncation="only_second", max_length=32, stride=32 - size - 3 - 8, return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )  # fmt: skip
    assert [feature.input_ids.tolist() for feature in found] == theirs["input_ids"]
    for feature, offsets in zip(found, theirs["offset_mapping"], strict=True):
        inside = feature.token_type_ids == 1
        inside[-1] = False
        assert feature.tokens[inside, :2].tolist() == [list(pair) for pair in np.asarray(offsets)[inside].tolist()]
    # Every token of the context is marked as best seen in some window; all windows that hold the answer have it as target.
    best = {tuple(row[:2]) for feature in found for row in feature.tokens.tolist() if row[2] == 1}
    assert best == {tuple(row[:2]) for feature in found for row in feature.tokens.tolist() if row[0] >= 0}
    spans = {
        context[feature.tokens[feature.target[0], 0] : feature.tokens[feature.target[1], 1]]
        for feature in found
        if feature.target.any()
    }
    assert spans == {text}


def test_answers_out_of_logits():
    """The best span within the length allowed; no answer where [CLS] beats it by more than the threshold."""
    context = "The quick brown fox jumps over the lazy dog, twice."
    example = TaskExample("", "q", ("Who?", context), label=(Answer("fox", 16),))
    kind = answering(max_answer_length=3)
    kind.fit([example, example._replace(label=())])
    features = kind.features([example])
    outputs = [np.full((len(feature.input_ids), 2), -5.0) for feature in features]
    for feature, output in zip(features, outputs):
        if feature.target.any():
            output[feature.target[0], 0] = output[feature.target[1], 1] = 3.0
            output[-2, 1] = 9.0  # far behind: longer than an answer may be
        output[0] = -1.0
    (prediction,) = kind.predictions([example], features, outputs)
    assert kind.answer(prediction) == "fox" and prediction.n_best[0].score == 6.0
    assert prediction.null_odds == -8.0 and kind.figures([example], [prediction])["exact_match"] == 1.0
    kind.null_threshold = -9.0
    assert kind.answer(prediction) == "" and kind.figures([example], [prediction])["f1"] == 0.0
    kind.tune([example], [prediction])
    assert kind.answer(prediction) == "fox"
    assert len({one.text for one in prediction.n_best}) == len(prediction.n_best)


def test_windows_of_a_context_are_compared_by_the_average_as_by_each_model():
    """Three equal models average to what each says, also where windows differ in how sure they are."""
    context = " ".join(f"{word}" for word in ("fox", "dog", "cat", "hen") * 12)
    kind = answering()
    example = TaskExample("", "q", ("Who?", context), label=(Answer("fox", 0),))
    found = kind.features([example])
    assert len(found) > 2
    rng = np.random.default_rng(0)
    outputs = [
        scale * rng.normal(size=(len(one.input_ids), 2)) for one, scale in zip(found, itertools.cycle((9, 1, 3)))
    ]
    (one,) = kind.predictions([example], found, outputs)
    (several,) = kind.predictions([example], found, [kind.average([output] * 3) for output in outputs])
    assert [each.text for each in several.n_best] == [each.text for each in one.n_best]
    assert several.null_odds == pytest.approx(one.null_odds)
    # The control: probabilities alone know nothing of how sure a window is.
    (control,) = kind.predictions(
        [example], found, [super(type(kind), kind).average([output] * 3) for output in outputs]
    )
    assert [each.text for each in control.n_best] != [each.text for each in one.n_best]


def _said(text: str, start: int, null_odds: float):
    """A prediction, as if read off a model's output."""
    from electra_jax.tasks.question_answering import Candidate, Prediction

    return Prediction((Candidate(text, start, 1.0),), null_odds)


def test_questions_of_either_kind_and_at_the_best_threshold():
    """What the official script of SQuAD 2.0 gives as HasAns, NoAns and best."""
    kind = answering()
    context = "The quick brown fox jumps over the lazy dog."
    right, none = (
        TaskExample("", "", ("?", context), label=(Answer("fox", 16),)),
        TaskExample("", "", ("?", context), label=()),
    )
    kind.fit(examples := [right, right, right, none, none])
    # Answered at odds below 0. In turn: right; wrong; held back, though right; rightly held back; wrongly answered.
    said = [
        _said("fox", 16, -2.0),
        _said("dog", 40, -1.0),
        _said("fox", 16, 1.0),
        _said("fox", 16, 2.0),
        _said("fox", 16, -3.0),
    ]
    figures = kind.figures(examples, said)
    assert figures["exact_match"] == pytest.approx(2 / 5)
    assert figures["answerable_exact_match"] == pytest.approx(1 / 3) and figures["unanswerable_exact_match"] == 0.5
    # With a threshold between 1 and 2, the third is answered, and right, as well.
    assert figures["best_exact_match"] == pytest.approx(3 / 5) and figures["no_answer_accuracy"] == pytest.approx(3 / 5)
    kind.tune(examples, said)
    assert 1.0 < kind.null_threshold < 2.0 and kind.figures(examples, said)["f1"] == figures["best_f1"]


def test_kinds_that_learnt_nothing(rng):
    """Chance, or the same answer for all, is told from knowledge."""
    count = 60
    kind = make_kind(decided("regression"), tokenizer())
    examples = [TaskExample("", "", ("a",), label=float(x)) for x in rng.normal(size=count)]
    labels = [one.label for one in examples]
    assert kind.is_collapsed(examples, [0.5] * count) and kind.is_collapsed(examples, [-x for x in labels])
    assert not kind.is_collapsed(examples, [x + rng.normal() for x in labels])

    kind = make_kind(decided("tagging"), tokenizer())
    examples = [TaskExample("", "", words=("a", "b"), label=tuple(rng.integers(2, size=2))) for _ in range(count)]
    assert kind.is_collapsed(examples, [np.eye(2)[[0, 0]]] * count)
    assert not kind.is_collapsed(examples, [np.eye(2)[list(one.label)] for one in examples])

    kind, words = answering(), ["one", "two", "three", "four", "five", "six"]
    examples = []
    for _ in range(count):
        context = " ".join(rng.permutation(words))
        word = words[rng.integers(6)]
        examples.append(TaskExample("", "", ("?", context), label=(Answer(word, context.index(word)),)))
    kind.fit(examples)
    first = [_said(one.texts[1].split()[0], 0, -1.0) for one in examples]  # different texts, always from the same place
    assert kind.is_collapsed(examples, first) and kind.is_collapsed(examples, [_said("one", 3, -1.0)] * count)
    assert not kind.is_collapsed(examples, [_said(one.label[0].text, one.label[0].start, -1.0) for one in examples])


def test_tags_of_spans_are_measured_as_spans_unless_it_is_said(tmp_path):
    rows = [{"tokens": ["a", "b", "c"], "tags": ["O", "B-X", "I-X"]}, {"tokens": ["d"], "tags": ["O"]}]
    task_data.write_lines(tmp_path / "train.jsonl", rows)
    assert load(tmp_path).task.metric == "span_f1" and load(tmp_path, metric="accuracy").task.metric == "accuracy"
    for names, are in (("BMES", True), ("BIO", True), ("BI", True), ("IO", False), ("NVB", False), ("B", False)):
        assert are_of_spans(names) == are, names
    (tmp_path / "info.json").write_text('{"metric": "accuracy"}')
    assert load(tmp_path).task.metric == "accuracy"
    (tmp_path / "info.json").unlink()
    task_data.write_lines(tmp_path / "train.jsonl", [{"tokens": ["a", "b"], "tags": ["noun", "verb"]}])
    assert load(tmp_path).task.metric == "accuracy"


def test_a_vocabulary_of_another_script_is_refused():
    kind = make_kind(decided("classification"), tokenizer())
    foreign = kind.features([TaskExample("", "", ("ქართული ენა მშვენიერია",), label=0)] * 3)
    with pytest.raises(UserError, match="100% of the task's tokens are unknown to the vocabulary of runs/x"):
        check_vocabulary(foreign, tokenizer(), "runs/x")
    own = kind.features([TaskExample("", "", ("The quick brown fox",), label=0)] * 3)
    assert check_vocabulary(own, tokenizer(), "runs/x") is None


# Batches.


def test_every_example_once_an_epoch_in_batches_of_a_length(rng):
    sizes = rng.integers(3, 120, 203)
    lengths = batches.lengths_up_to(120)
    assert lengths == (32, 64, 120)
    for rng in (None, np.random.default_rng(1)):
        planned = batches.plan(sizes, 16, lengths, rng)
        assert len(planned) == 13 and sorted(len(p.features) for p in planned) == [11] + [16] * 12
        assert sorted(np.concatenate([p.features for p in planned])) == list(range(203))
        assert all(sizes[p.features].max() <= p.length for p in planned)
        padding = sum(16 * p.length for p in planned)
        assert padding < 0.75 * 13 * 16 * 120  # against all at full length
    same, other = (batches.plan(sizes, 16, lengths, np.random.default_rng(seed)) for seed in (1, 2))
    assert all((a.features == b.features).all() for a, b in zip(same, planned))
    assert not all(
        len(a.features) == len(b.features) and (a.features == b.features).all() for a, b in zip(other, planned)
    )


def test_lengths_are_those_that_need_the_fewest_padding_tokens(rng):
    def tokens(lengths):
        return np.asarray(lengths)[np.searchsorted(lengths, sizes)].sum()

    sizes = np.minimum(rng.geometric(1 / 25, 5000) + 2, 117)
    found = batches.lengths_of(sizes, 128, 400)
    assert 3 <= len(found) <= 7 and found[-1] == 128 and all(length % 8 == 0 for length in found)
    least = [
        min(tokens((*some, 120)) for some in itertools.combinations(range(8, 120, 8), count))
        for count in range(len(found))
    ]
    assert tokens(found) == least[len(found) - 2]  # the last is for what is longer than all of these
    assert least[len(found) - 2] <= 0.97 * least[len(found) - 3]
    assert len(found) == 7 or least[len(found) - 1] > 0.97 * least[len(found) - 2]
    assert tokens(found) < 0.9 * tokens(batches.lengths_up_to(128))

    assert batches.lengths_of(sizes, 128, 63) == (120, 128)  # too few batches for more
    assert batches.lengths_of(np.full(5000, 40), 128, 400) == (40, 128)  # more would not help
    assert batches.lengths_of(np.full(5000, 126), 126, 400) == (126,)
    assert batches.lengths_of(np.arange(5000) % 500 + 1, 512, 400, 128) == (128, 256, 384, 512)


def test_batches_from_a_step_on_are_those_of_the_whole_run():
    kind = make_kind(decided("classification"), tokenizer())
    features = kind.features(
        [TaskExample("", "", (text[:80],), label=i % 2) for i, text in enumerate(embedded_documents(21))]
    )
    whole = list(itertools.islice(batches.training(features, 4, (32,), 0, False, 5, 0), 14))
    later = list(itertools.islice(batches.training(features, 4, (32,), 0, False, 5, 8), 6))
    for one, other in zip(whole[8:], later, strict=True):
        assert all((a == b).all() for a, b in zip(one, other))
    assert not (whole[0].input_ids == whole[6].input_ids).all()  # another order in the next epoch
    weights = sum(batch.weight.sum() for batch in whole[:6])
    assert weights == 21 and all((batch.input_ids[batch.weight == 0] == 0).all() for batch in whole)


def test_pairs_in_both_orders():
    kind = make_kind(dataclasses.replace(decided("classification"), double_unordered=True), tokenizer())
    one = TaskExample("", "", ("a", "b"), label=1)
    assert [example.texts for example in kind.training_examples([one])] == [("a", "b"), ("b", "a")]


def test_what_a_kind_cannot_measure_is_refused():
    from electra_jax.tasks.kinds import check_metric

    three = dataclasses.replace(decided("classification"), labels=("a", "b", "c"))
    with pytest.raises(
        UserError, match="config.task.metric='f1' cannot work: of classification with 3 labels there are acc"
    ):
        check_metric(make_kind(dataclasses.replace(three, metric="f1"), tokenizer()))
    with pytest.raises(UserError, match="config.task.metric='span_f1' cannot work"):
        check_metric(make_kind(dataclasses.replace(decided("tagging"), metric="span_f1"), tokenizer()))
    # And what it can measure, it does.
    for task in (
        three,
        decided("classification"),
        decided("regression"),
        dataclasses.replace(decided("tagging"), labels=("O", "B-X")),
    ):
        kind = make_kind(task, tokenizer())
        if task.kind == "tagging":
            example, said = TaskExample("", "", words=("a", "b"), label=(0, 1)), np.eye(2)
        else:
            example, said = (
                TaskExample("", "", ("a",), label=1),
                np.eye(3)[1] if task is three else np.array([0.2, 0.8]),
            )
        said = 0.5 if task.kind == "regression" else said
        figures = kind.figures([example, example], [said, said])
        assert {*kind.measures} <= figures.keys()
        if task.kind != "tagging":
            assert kind.is_collapsed([example], [said]) is False  # nothing to tell apart


def test_windows_that_would_lose_words_are_refused(tmp_path):
    """Also where the kind follows from the data."""
    rows = [{"question": "Who?", "context": "Anna came.", "answers": [{"text": "Anna", "answer_start": 0}]}]
    task_data.write_lines(tmp_path / "train.jsonl", rows)
    with pytest.raises(UserError, match="config.task.doc_stride=100 cannot work: it must be at most 61"):
        load(tmp_path, doc_stride=100)
    assert load(tmp_path).task.kind == "question_answering"
    task_data.write_lines(tmp_path / "train.jsonl", [{**rows[0], "answers": {"text": ["Anna"]}}])
    with pytest.raises(UserError, match="train.jsonl:1: answers must be a list"):
        load(tmp_path)


def test_tags_that_training_never_shows(tmp_path):
    task_data.write_lines(tmp_path / "train.jsonl", [{"tokens": ["a", "b"], "tags": ["B-X", "I-X"]}])
    task_data.write_lines(tmp_path / "test.jsonl", [{"tokens": ["a", "b"], "tags": ["B-X", "B-Y"]}])
    assert load(tmp_path).task.labels == ("B-X", "B-Y", "I-X")
    data = load(tmp_path, tags="bioes")
    assert data.task.labels == tuple(f"{prefix}-{name}" for name in "XY" for prefix in "BIES")
    assert [data.task.labels[i] for i in data.test["test"][0].label] == ["S-X", "S-Y"]
    task_data.write_lines(tmp_path / "train.jsonl", [{"words": ["a", "b"], "ner": ["O", "X"]}])
    (tmp_path / "test.jsonl").unlink()
    assert load(tmp_path, kind="tagging", text="words", label="ner").train["train"][0].words == ("a", "b")


@pytest.mark.parametrize(
    "setting",
    [{"seeds": 0}, {"max_restarts": -1}, {"evaluation": {"patience": -1, "select": "best"}}, {"train": {"epochs": 0.0}},
     {"model": {"classifier_dropout": 1.0}}, {"optimizer": {"warmup_fraction": -0.1}}, {"checkpoint": {"keep_period": 5}},
     {"task": {"path": "x", "submission": "glue/CoLA.tsv"}}],
)  # fmt: skip
def test_numbers_out_of_range(setting):
    with pytest.raises(UserError, match="cannot work: it must be"):
        task_config.from_dict({"task": {"path": "x"}, **setting})


@pytest.mark.parametrize("answer", ["fox", "alle\u0301", "\u0915\u093f\u0924\u093e\u092c \u092e\u0947\u0902"])
@pytest.mark.parametrize("vocabulary", ["unigram", "wordpiece"])
def test_an_answer_is_whole_and_begins_where_it_does(vocabulary, answer):
    """SentencePiece's pieces hold the space before a word; marks that tokenizers drop, or keep apart, are part of an answer."""
    made = tokenizer_lib.train(TokenizerConfig(kind=vocabulary, vocab_size=300), TEXTS * 5)
    context = f"The quick brown {answer} jumps over the lazy dog, twice."
    kind = make_kind(decided("question_answering", doc_stride=8, max_query_length=6), made)
    example = TaskExample("", "q", ("Who?", context), label=(Answer(answer, 16),))
    features = kind.features([example])
    outputs = [np.full((len(feature.input_ids), 2), -5.0) for feature in features]
    for feature, output in zip(features, outputs):
        if feature.target.any():
            output[feature.target[0], 0] = output[feature.target[1], 1] = 3.0
    (prediction,) = kind.predictions([example], features, outputs)
    assert prediction.n_best[0][:2] == (answer, 16)


def test_submissions_are_named_with_spaces_or_without_and_for_labels_of_texts(tmp_path):
    assert task_config.submission_files(TaskConfig(submission="MNLI-m.tsv, MNLI-mm.tsv")) == [
        "MNLI-m.tsv",
        "MNLI-mm.tsv",
    ]
    (tmp_path / "train.conll").write_text("a X\nb Y\n")
    with pytest.raises(UserError, match="config.task.submission=A.tsv: GLUE takes none of tagging"):
        load(tmp_path, kind="tagging", submission="A.tsv")


def test_runs_that_were_replaced_are_said():
    """And the mean with them is given: leaving out runs because they are low makes the mean of the others too high."""
    from types import SimpleNamespace

    from electra_jax.tasks import results

    split = SimpleNamespace(name="validation", examples=[TaskExample("", "0", label=1)], is_labelled=True)
    job = SimpleNamespace(
        data=SimpleNamespace(task=decided("classification"), test={}, validation={"validation": 0}), splits=[split],
        metric="accuracy", encoder=SimpleNamespace(name="e"), validation=split,
        config=SimpleNamespace(evaluation=SimpleNamespace(select="best")),
    )  # fmt: skip
    done = [results.SeedResult(1, 9, 1.0, {"validation": {"accuracy": 0.7}}, False, {}, {})]
    low = {"seed": 0, "figures": {"validation": {"accuracy": 0.5}}}
    found = results.combine(job, done, [low, {"seed": 2, "figures": {}}], {})
    assert (found["mean"], found["mean_of_all"], found["replaced"]) == (0.7, 0.6, 2)
    line = results.last_line(found, "accuracy")
    assert line == (
        "validation accuracy 0.7000; 2 more collapsed and replaced, mean of all 0.6000; the weights were chosen by this split"
    )
    assert results.collapses(found, in_percent=True) == "; 2 more collapsed and replaced, mean of all 60.0"
    assert "replaced" not in results.combine(job, done, [], {})


def test_a_submission_is_in_the_order_of_the_index():
    from types import SimpleNamespace

    from electra_jax.tasks.results import glue_submission

    job = SimpleNamespace(data=SimpleNamespace(task=decided("classification")))
    split = SimpleNamespace(examples=[TaskExample("", identity) for identity in ("2", "0", "1")])
    said = [np.array(x) for x in ([0.9, 0.1], [0.2, 0.8], [0.3, 0.7])]
    assert glue_submission(job, split, said, "CoLA").splitlines()[1:] == ["0\t1", "1\t1", "2\t0"]
