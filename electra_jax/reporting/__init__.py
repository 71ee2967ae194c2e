"""What a run tells: metrics, writers, warnings."""
