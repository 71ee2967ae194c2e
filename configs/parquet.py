"""ELECTRA-Small on a folder of Parquet files, such as a corpus downloaded as is from the Hugging Face Hub.

    python -m electra_jax.train --config=configs/parquet.py --config.data.source='corpus/*.parquet'

Also from a bucket: `--config.data.source='gs://BUCKET/corpus/*.parquet' --config.data.directory=gs://BUCKET/datasets`
(extra `[gcs]`). The recipe is the paper's Small; how well it does on your text is unknown.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    return ml_collections.ConfigDict(
        {
            "data": {
                "source": "corpus/*.parquet",
                "text_field": "text",
                "max_seq_length": 128,
                "deduplicate": True,
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
