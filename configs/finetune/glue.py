"""GLUE (Wang et al., 2019) except WNLI, with the reference's hyperparameters (google-research/electra, configure_finetuning.py).

    python -m electra_jax.finetune --config=configs/finetune/glue.py:cola --init=runs/small
    python -m electra_jax.finetune --config=configs/finetune/glue.py:all --init=runs/small --config.seeds=5

Data come from TFDS (`tfds:glue/...`), or, with `cola,tsv` and --config.task.path=FOLDER, from the files that
gluebenchmark.com hands out, FOLDER holding CoLA/, SST-2/ ... (default: GLUE). `:all` runs all eight and prints their
average beside the one published for ELECTRA-Small++ (medians on the development sets, README of google-research/electra).
Large: --config.optimizer.learning_rate=5e-5 --config.optimizer.layerwise_decay=0.9; the paper's Small: 3e-4.
"""

import ml_collections

_SENTENCE, _ONE, _TWO = (
    "sentence|3",
    "sentence1|question1|premise|#1 String",
    "sentence2|question2|hypothesis|#2 String",
)
_NLI = ("entailment", "neutral", "contradiction")
_ENTAILED = ("entailment", "not_entailment")
_SAME = ("not_equivalent", "equivalent")

# name: task, epochs, its folder in the official data, and the files of the development and test sets there.
_TASKS = {
    "cola": (
        {"text": _SENTENCE, "label": "label|1", "labels": ("unacceptable", "acceptable"), "metric": "matthews",
         "submission": "CoLA.tsv", "published": 57.0}, 3, "CoLA", "dev.tsv", "test.tsv",
    ),
    "sst2": (
        {"text": "sentence", "labels": ("negative", "positive"), "submission": "SST-2.tsv", "published": 91.2},
        3, "SST-2", "dev.tsv", "test.tsv",
    ),
    "mrpc": (
        {"text": _ONE, "text_pair": _TWO, "label": "label|Quality", "labels": _SAME, "double_unordered": True,
         "submission": "MRPC.tsv", "published": 88.0}, 3, "MRPC", "dev.tsv", "test.tsv",
    ),
    "stsb": (
        {"kind": "regression", "text": _ONE, "text_pair": _TWO, "label": "label|score", "double_unordered": True,
         "submission": "STS-B.tsv", "published": 87.5}, 10, "STS-B", "dev.tsv", "test.tsv",
    ),
    "qqp": (
        {"text": _ONE, "text_pair": _TWO, "label": "label|is_duplicate", "labels": ("not_duplicate", "duplicate"),
         "submission": "QQP.tsv", "published": 89.0,
         # Some lines of the official file are broken; the reference passes over them.
         "max_broken_fraction": 0.001}, 3, "QQP", "dev.tsv", "test.tsv",
    ),
    "mnli": (
        {"text": _ONE, "text_pair": _TWO, "label": "label|gold_label", "labels": _NLI,
         "submission": "MNLI-m.tsv,MNLI-mm.tsv", "published": 81.3},
        3, "MNLI", "dev_matched.tsv,dev_mismatched.tsv", "test_matched.tsv,test_mismatched.tsv",
    ),
    "qnli": (
        {"text": "question", "text_pair": "sentence", "labels": _ENTAILED, "submission": "QNLI.tsv", "published": 88.4},
        3, "QNLI", "dev.tsv", "test.tsv",
    ),
    "rte": (
        {"text": _ONE, "text_pair": _TWO, "labels": _ENTAILED, "submission": "RTE.tsv", "published": 66.7},
        10, "RTE", "dev.tsv", "test.tsv",
    ),
}  # fmt: skip


def get_config(spec: str = "") -> ml_collections.ConfigDict:
    name, _, form = spec.partition(",")
    config = {
        "optimizer": {"learning_rate": 1e-4, "layerwise_decay": 0.8, "layerwise_rule": "reference",
                      "warmup_fraction": 0.1, "weight_decay": 0.01},
        "model": {"dtype": "bfloat16"},
    }  # fmt: skip
    if name == "all":
        suite = tuple(f"{task},{form}" if form else task for task in _TASKS)
        return ml_collections.ConfigDict({**config, "suite": suite})
    if name not in _TASKS or form not in ("", "tsv"):
        raise ValueError(f"glue.py:{spec}; known are {', '.join(_TASKS)} and all, each also with ,tsv")
    task, epochs, folder, validation, test = _TASKS[name]
    task = {"kind": "classification", "max_length": 128, **task}
    if form:
        files = {"train": "train.tsv", "validation": validation, "test": test}
        task |= {part: ",".join(f"{folder}/{name}" for name in names.split(",")) for part, names in files.items()}
        task |= {"path": "GLUE"}
    else:
        parts = ("_matched", "_mismatched") if name == "mnli" else ("",)
        task |= {f"{split}": ",".join(f"{split}{part}" for part in parts) for split in ("validation", "test")}
        task |= {"path": f"tfds:glue/{name}", "train": "train"}
    return ml_collections.ConfigDict({**config, "task": task, "train": {"epochs": float(epochs), "batch_size": 32}})
