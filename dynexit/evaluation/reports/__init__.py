"""Reports, plots and pictures of an evaluation."""
