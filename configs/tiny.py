"""ELECTRA-Tiny: a whole run, from text to held-out figures, in minutes on a laptop.

A recipe of this project, not of the paper. It trains on the embedded corpus (10,033 introductions of Wikipedia articles, 4.9 MB).

    python -m electra_jax.train --config=configs/tiny.py
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    return ml_collections.ConfigDict(
        {
            "data": {"max_seq_length": 32, "validation_fraction": 0.05},
            "tokenizer": {"vocab_size": 4096},
            "model": {
                "embedding_size": 64,
                "hidden_size": 64,
                "num_hidden_layers": 2,
                # One head of 64: with narrower heads it takes much longer to learn to look at a token's neighbours.
                "num_attention_heads": 1,
                "intermediate_size": 256,
                "generator_hidden_size": 1.0,
                "generator_layers": 0.5,
                "max_position_embeddings": 128,
                # Few updates on little text: no dropout, and initial weights large enough for a quick start.
                "hidden_dropout_prob": 0.0,
                "attention_probs_dropout_prob": 0.0,
                "initializer_range": 0.05,
            },
            # More masks than the paper's 15 %: more to learn from each of the few batches.
            "objective": {"mask_prob": 0.25, "disc_weight": 10.0},
            # A short memory of the gradients' size (`beta2`) and a long time at the peak rate (`wsd`): the discriminator
            # takes a few thousand steps to look beyond single tokens, and both make that happen sooner.
            "optimizer": {
                "learning_rate": 2e-3,
                "warmup_steps": 300,
                "beta2": 0.98,
                "schedule": "wsd",
                "cooldown_steps": 2000,
            },
            "train": {"batch_size": 64, "num_train_steps": 6000},
            "evaluation": {"interval_steps": 500, "batch_size": 64},
            "checkpoint": {"save_interval_steps": 500},
            "reporting": {"interval_steps": 100},
        }
    )
