"""Two layers of 128, ten minutes on a CPU core: for comparing objectives at equal compute.

`configs/mini.py` detects replaced tokens, `:tied` does so with one encoder for both heads, `:masked_lm` fills in masked tokens
(BERT). Each takes 90 TFLOP, the generator included. For your own text, set `--config.data.source=FILE`; short documents are best.
"""

import ml_collections

# So many that each comes to 90 TFLOP: a step takes 23.9, 29.5, 17.8 GFLOP.
STEPS = {"separate": 3768, "tied": 3052, "masked_lm": 5056}
# At 2e-3 a separate discriminator, while its generator still learns, gets stuck: one answer, and nearly one vector, for all.
LEARNING_RATES = {"separate": 1e-3, "tied": 2e-3, "masked_lm": 2e-3}


def get_config(towers: str = "separate") -> ml_collections.ConfigDict:
    """`towers`: one of `STEPS`."""
    if towers not in STEPS:
        raise ValueError(f"mini.py:{towers}; known are {', '.join(STEPS)}")
    steps = STEPS[towers]
    return ml_collections.ConfigDict(
        {
            "data": {"max_seq_length": 128},
            "tokenizer": {"vocab_size": 8192},
            "model": {
                "towers": towers,
                "embedding_size": 128,
                "hidden_size": 128,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "intermediate_size": 512,
                "generator_hidden_size": 1.0,
                "generator_layers": 0.5,
                "max_position_embeddings": 128,
                "hidden_dropout_prob": 0.0,
                "attention_probs_dropout_prob": 0.0,
                "initializer_range": 0.05,
                "dtype": "bfloat16",
            },
            "objective": {"mask_prob": 0.25, "disc_weight": 10.0},
            "optimizer": {
                "learning_rate": LEARNING_RATES[towers],
                "warmup_steps": 3 * steps // 40,
                "beta2": 0.98,
                "bias_correction": True,
                "schedule": "wsd",
                "cooldown_steps": steps // 4,
            },
            "train": {"batch_size": 32, "num_train_steps": steps},
            "evaluation": {"interval_steps": 1000, "batch_size": 32, "max_records": 1024},
            "checkpoint": {"save_interval_steps": steps // 4, "keep_period": steps // 4},
            "reporting": {"interval_steps": 50},
        }
    )
