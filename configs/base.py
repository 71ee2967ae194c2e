"""ELECTRA-Base (Clark et al., 2020, table 6): 110M parameters.

    python -m electra_jax.train --config=configs/base.py --config.data.source='corpus/*.jsonl.zst'

Paper: Wikipedia and BooksCorpus, 766K steps, 4 days on 16 TPUv3; GLUE dev 85.1. Not reproduced with this code.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    return ml_collections.ConfigDict(
        {
            "data": {"source": "embedded", "max_seq_length": 512},
            "tokenizer": {"kind": "wordpiece", "vocab_size": 30522, "lowercase": True},
            "model": {
                "embedding_size": 768,
                "hidden_size": 768,
                "num_hidden_layers": 12,
                "num_attention_heads": 12,
                "intermediate_size": 3072,
                "generator_hidden_size": 1 / 3,
                "max_position_embeddings": 512,
                "hidden_dropout_prob": 0.1,
                "attention_probs_dropout_prob": 0.1,
                "dtype": "bfloat16",
            },
            "objective": {"mask_prob": 0.15, "gen_weight": 1.0, "disc_weight": 50.0},
            "optimizer": {"learning_rate": 2e-4, "warmup_steps": 10_000, "weight_decay": 0.01},
            "train": {"batch_size": 256, "num_train_steps": 766_000},
        }
    )
