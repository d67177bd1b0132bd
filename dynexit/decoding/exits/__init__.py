"""Decoding in which each token exits at a depth of its own."""
