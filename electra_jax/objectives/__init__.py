"""Pretraining objectives: pure functions over the towers that return named (sum, weight) losses."""
