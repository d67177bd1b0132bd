"""Networks whose block is iterated, and recurrent networks."""
