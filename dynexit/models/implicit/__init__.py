"""Networks defined by an equation: equilibria and differential equations."""
