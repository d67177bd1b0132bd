"""Sweeps: a grid of settings as separate runs, and their summary."""
