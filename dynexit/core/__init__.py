"""Types and notation, settings, stacking of parameters, checks of user callables, costs."""
