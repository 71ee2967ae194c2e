"""ELECTRA-Small on Wikipedia, in any language that TFDS has.

    pip install -e '.[tensorflow]'
    python -m electra_jax.prepare --config=configs/wikipedia.py --config.data.source=tfds:wikipedia/20230601.fr
    python -m electra_jax.train --config=configs/wikipedia.py --config.data.source=tfds:wikipedia/20230601.fr

TFDS downloads some languages ready-made, and builds the others from the dump, which needs Apache Beam (`[beam]`) and
mwparserfromhell. The paper's Small saw Wikipedia and BooksCorpus for 1M steps (GLUE dev 79.9, 4 days on one V100).
Neither the download nor the run has been tried yet. The vocabulary is cased, as most of the languages have upper and lower
case; set `tokenizer.lowercase` and `tokenizer.strip_accents` to suit yours.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    return ml_collections.ConfigDict(
        {
            "data": {
                "source": "tfds:wikipedia/20230601.en",
                "max_seq_length": 128,
                # Stubs and redirects leave many empty articles in some languages.
                "max_broken_fraction": 0.2,
                "shuffle": "blocks",
            },
            "tokenizer": {"kind": "wordpiece", "vocab_size": 30522, "lowercase": False},
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
