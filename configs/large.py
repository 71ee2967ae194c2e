"""ELECTRA-Large, 400K steps (Clark et al., 2020, tables 2 and 6): 335M parameters.

    python -m electra_jax.train --config=configs/large.py --config.data.source='corpus/*.jsonl.zst'

Paper: XLNet's 33B tokens, 400K steps; GLUE dev 89.0 (1.75M steps: 89.5). Not reproduced with this code.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    return ml_collections.ConfigDict(
        {
            "data": {"source": "embedded", "max_seq_length": 512},
            "tokenizer": {"kind": "wordpiece", "vocab_size": 30522, "lowercase": True},
            "model": {
                "embedding_size": 1024,
                "hidden_size": 1024,
                "num_hidden_layers": 24,
                "num_attention_heads": 16,
                "intermediate_size": 4096,
                "generator_hidden_size": 0.25,
                "max_position_embeddings": 512,
                "hidden_dropout_prob": 0.1,
                "attention_probs_dropout_prob": 0.1,
                "dtype": "bfloat16",
            },
            "objective": {"mask_prob": 0.25, "gen_weight": 1.0, "disc_weight": 50.0},
            "optimizer": {"learning_rate": 2e-4, "warmup_steps": 10_000, "weight_decay": 0.01},
            "train": {"batch_size": 2048, "num_train_steps": 400_000},
        }
    )
