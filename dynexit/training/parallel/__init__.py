"""Training on several devices: the mesh, where parameters and batches go, and constraints."""
