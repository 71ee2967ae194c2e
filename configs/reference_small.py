"""ELECTRA-Small as the original code trains it (google-research/electra): every quirk included.

    python -m electra_jax.train --config=configs/reference_small.py --config.data.source='corpus/*.txt'

For comparison with the original; to train a model for use, take `configs/small.py`. The quirks are set by name below. On
several TPU cores, the original takes the means of its losses and clips gradients on each core separately: set
`train.replicas` to the number of cores. Not yet run to the end with this code.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    return ml_collections.ConfigDict(
        {
            # Pairs of segments of one document, padded; what does not fit is dropped.
            "data": {"source": "embedded", "max_seq_length": 128, "packing": "two_segments"},
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
                "dtype": "float32",
            },
            "objective": {
                "mask_prob": 0.15,
                "gen_weight": 1.0,
                "disc_weight": 50.0,
                "mask_sampling": "with_replacement",
                "duplicate_positions": "average",
                "loss_mean": "per_replica",
            },
            "optimizer": {
                "learning_rate": 5e-4,
                "warmup_steps": 10_000,
                "schedule": "linear",
                "weight_decay": 0.01,
                "decay_embeddings": True,
                "bias_correction": False,
                "clipping": "per_replica",
                "layerwise_rule": "reference",
            },
            "train": {"batch_size": 128, "num_train_steps": 1_000_000, "replicas": 1},
            "evaluation": {"disc_auc_padding": "counted"},
        }
    )
