"""Layers that the models share; flax is imported here and in `models`."""
