"""Any task of your own: a folder with train.jsonl, validation.jsonl and test.jsonl (or .tsv, .conllu, .conll).

    python -m electra_jax.finetune --config=configs/finetune/jsonl.py --config.task.path=FOLDER --init=runs/small

A line is an object with `text` (or `text_a` and `text_b`) and `label`; with `tokens` and `tags`; or with `question`,
`context` and `answers`. `info.json`, which may be absent, gives `kind`, `labels` in order, and `metric`.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    return ml_collections.ConfigDict(
        {
            "seeds": 3,
            "task": {"kind": "auto", "max_length": 128},
            # For encoders of Small's size; the reference takes 1e-4 for Base, 5e-5 and a decay of 0.9 for Large.
            "optimizer": {
                "learning_rate": 3e-4,
                "layerwise_decay": 0.8,
                "warmup_fraction": 0.1,
                # The reference has none, which makes its first updates several times as large: too large for small data sets.
                "bias_correction": True,
            },
            "model": {"dtype": "bfloat16"},
            "train": {"epochs": 3.0, "batch_size": 32},
            "evaluation": {"interval_epochs": 0.5, "select": "best"},
        }
    )
