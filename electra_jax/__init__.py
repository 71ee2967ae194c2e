"""ELECTRA pretraining in JAX: from raw text to a checkpoint, on any mesh."""
