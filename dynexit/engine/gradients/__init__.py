"""Runs with exits that are reverse-mode differentiable."""
