"""SQuAD 1.1 and 2.0 (Rajpurkar et al., 2016 and 2018), with the reference's hyperparameters.

    python -m electra_jax.finetune --config=configs/finetune/squad.py:2.0 --config.task.path=FOLDER --init=runs/base

FOLDER holds the official train-v2.0.json and dev-v2.0.json (v1.1 likewise); `2.0,tfds` takes them from TFDS. The
reference reports exact match of ELECTRA-Base: 86.8 on 1.1 (`exact_match`), 80.5 on 2.0 (`best_exact_match`). Its head
for 2.0 has a classifier of its own for unanswerable questions; here, as in BERT and transformers, [CLS] stands for no
answer, and the threshold is chosen on the development set.
"""

import ml_collections


def get_config(spec: str = "2.0") -> ml_collections.ConfigDict:
    version, _, form = spec.partition(",")
    if version not in ("1.1", "2.0") or form not in ("", "tfds"):
        raise ValueError(f"squad.py:{spec}; known are 1.1 and 2.0, each also with ,tfds")
    if form:
        data = {"path": f"tfds:squad/v{version}", "format": "tfds", "train": "train", "validation": "validation"}
    else:
        data = {
            "path": "squad",
            "format": "squad",
            "train": f"train-v{version}.json",
            "validation": f"dev-v{version}.json",
        }
    return ml_collections.ConfigDict(
        {
            "task": {
                **data, "kind": "question_answering", "metric": "f1", "max_length": 512,
                "doc_stride": 128, "max_query_length": 64, "max_answer_length": 30, "n_best": 20,
            },
            "optimizer": {"learning_rate": 1e-4, "layerwise_decay": 0.8, "layerwise_rule": "reference",
                          "warmup_fraction": 0.1, "weight_decay": 0.01},
            "model": {"dtype": "bfloat16"},
            "train": {"epochs": 2.0, "batch_size": 32},
        }
    )  # fmt: skip
