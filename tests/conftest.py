"""Runs before any test module: OpenBLAS has to be loaded before mlx is."""

import mlx_redrafter  # noqa: F401
