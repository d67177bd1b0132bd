"""What every child process needs, imported once in the process that they are forked from."""

import jax  # noqa: F401
import numpy  # noqa: F401
import optax  # noqa: F401
import safetensors.numpy  # noqa: F401

import dynexit.cli.main
import dynexit.cli.train
import dynexit.training.loop  # noqa: F401
