"""Methods that exit from a network of untied blocks."""
