"""CoNLL-2000 text chunking (Tjong Kim Sang and Buchholz, 2000), with the reference's hyperparameters.

    python -m electra_jax.finetune --config=configs/finetune/chunking.py --config.task.path=FOLDER --init=runs/small

FOLDER holds train.txt and test.txt; each line has a word, its part of speech and its chunk tag (BIO). Published F1 of
ELECTRA-Small++: 96.5. Other tags given in columns, such as CoNLL-2003's entities, work the same way.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    return ml_collections.ConfigDict(
        {
            "task": {
                "kind": "tagging", "path": "conll2000", "format": "conll", "tags": "bioes", "metric": "span_f1",
                "train": "train.txt", "test": "test.txt", "max_length": 256,
            },
            "optimizer": {"learning_rate": 1e-4, "layerwise_decay": 0.8, "layerwise_rule": "reference",
                          "warmup_fraction": 0.1, "weight_decay": 0.01},
            "model": {"dtype": "bfloat16"},
            "train": {"epochs": 3.0, "batch_size": 32},
        }
    )  # fmt: skip
