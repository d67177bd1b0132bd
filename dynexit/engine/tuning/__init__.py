"""Measured tile costs, and the executor and tile sizes that follow from them."""
