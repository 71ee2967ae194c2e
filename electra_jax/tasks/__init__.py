"""Fine-tuning: tasks, heads, metrics."""
