"""Checkpoint folders of transformers: families of language models, names of tensors, folders."""
