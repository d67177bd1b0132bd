"""Methods for networks whose block is iterated."""
