"""Measuring: contestants side by side, the paper's trade-offs, and what a forward costs.

Nothing here prints; ``mlx_redrafter.ui.cli.benchmark`` does. Times are wall-clock seconds, and
every ratio is between runs that took turns prompt by prompt, so that a machine that slows down
slows all of them down.
"""
