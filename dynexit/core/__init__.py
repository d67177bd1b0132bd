"""Floor 0: notation and types, settings, stacking of block parameters, checks of user callables,
costs.
"""
