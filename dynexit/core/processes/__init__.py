"""Several processes that train together: how they find, follow and wait for one another."""
