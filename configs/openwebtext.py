"""ELECTRA-Small on OpenWebText: the authors' own run on open data (their README, "ELECTRA-Small-OWT").

    pip install -e '.[tensorflow]' datasets
    python -m electra_jax.prepare --config=configs/openwebtext.py
    python -m electra_jax.train --config=configs/openwebtext.py

TFDS gets OpenWebText through Hugging Face's `datasets` (the authors give 12 GB for their own download); if it is already on
disk, name its files instead: `--config.data.source='openwebtext/*.parquet'`. Authors: GLUE dev 80.4 (8-task
average) after 1M steps, slightly over 4 days on one V100. Neither the download nor the run has been tried yet.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    return ml_collections.ConfigDict(
        {
            "data": {
                "source": "tfds:huggingface:Skylion007__openwebtext",
                "max_seq_length": 128,
                "deduplicate": True,
                # Reads blocks of neighbouring sequences at a time, which is efficient wherever the data set is stored.
                "shuffle": "blocks",
            },
            "tokenizer": {"kind": "wordpiece", "vocab_size": 30522, "lowercase": True},
            "model": {
                "embedding_size": 128,
                "hidden_size": 256,
                "num_hidden_layers": 12,
                "num_attention_heads": 4,
                "intermediate_size": 1024,
                "generator_hidden_size": 0.25,
                "max_position_embeddings": 512,
                "hidden_dropout_prob": 0.1,
                "attention_probs_dropout_prob": 0.1,
                "dtype": "bfloat16",
            },
            "objective": {"mask_prob": 0.15, "gen_weight": 1.0, "disc_weight": 50.0},
            "optimizer": {"learning_rate": 5e-4, "warmup_steps": 10_000, "weight_decay": 0.01},
            "train": {"batch_size": 128, "num_train_steps": 1_000_000},
        }
    )
