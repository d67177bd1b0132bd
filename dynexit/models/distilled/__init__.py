"""Networks trained to copy another network."""
