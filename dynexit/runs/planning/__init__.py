"""What a run needs on a mesh: training, and dynamic depth."""
