"""The towers, as Flax NNX modules that know nothing of meshes, flags or files."""
