"""ELECTRA-Small (Clark et al., 2020, tables 1 and 6): 14M parameters.

    python -m electra_jax.train --config=configs/small.py --config.data.source='corpus/*.jsonl.zst'

Paper: Wikipedia and BooksCorpus, 1M steps, 4 days on one V100; GLUE dev 79.9. On OpenWebText the authors'
own code gives 80.4 (8-task average). Neither has been reproduced with this code yet.

Where this recipe differs from the original code: masked positions are drawn without replacement, text is
packed without loss (`data.packing`), gradients are clipped by their norm over the whole batch, not separately
on each core, and products are computed in bfloat16. `configs/reference_small.py` has all of the original's ways.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    return ml_collections.ConfigDict(
        {
            "data": {"source": "embedded", "max_seq_length": 128},
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
