"""The state of run folders, read while they are written."""
