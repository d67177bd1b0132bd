"""Functions and modules of flax and equinox in one form; internal to `dx.build`."""
