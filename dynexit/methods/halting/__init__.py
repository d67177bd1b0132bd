"""Methods with a learned halting probability."""
