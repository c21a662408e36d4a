"""`quire simulate`: how a server would fare under a load, worked out in seconds without its GPU.

The scheduler is the engine's own and decides as it would. The device is a formula (`cost_model`), and time passes as
that says.
"""
