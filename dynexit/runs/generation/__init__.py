"""Text written by a language model, with the depth of each token."""
