"""Other formats: Hugging Face folders and TensorFlow checkpoints, read and written by one table of names each."""
