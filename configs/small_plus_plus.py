"""ELECTRA-Small++: the small model that was released (google/electra-small-discriminator).

    python -m electra_jax.train --config=configs/small_plus_plus.py --config.data.source='corpus/*.jsonl.zst'

Small's encoder at length 512 with a generator as wide as the discriminator, 4M steps on XLNet's data
(README of the original code, which gives CoLA 57.0, MNLI 81.3, SQuAD 2.0 EM 70.1). Not reproduced here.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    return ml_collections.ConfigDict(
        {
            "data": {"source": "embedded", "max_seq_length": 512},
            "tokenizer": {"kind": "wordpiece", "vocab_size": 30522, "lowercase": True},
            "model": {
                "embedding_size": 128,
                "hidden_size": 256,
                "num_hidden_layers": 12,
                "num_attention_heads": 4,
                "intermediate_size": 1024,
                "generator_hidden_size": 1.0,
                "max_position_embeddings": 512,
                "hidden_dropout_prob": 0.1,
                "attention_probs_dropout_prob": 0.1,
                "dtype": "bfloat16",
            },
            "objective": {"mask_prob": 0.15, "gen_weight": 1.0, "disc_weight": 50.0},
            "optimizer": {"learning_rate": 5e-4, "warmup_steps": 10_000, "weight_decay": 0.01},
            "train": {"batch_size": 128, "num_train_steps": 4_000_000},
        }
    )
