"""Which rank a process was started as, known before mlx is asked, which takes long to import."""

from __future__ import annotations

import os

# As mlx.launch names it, and MPI's launchers.
_NAMES = ("MLX_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK")


def launched_rank() -> int:
    """The rank that the launcher gave this process; 0 where there is none, or it does not say."""
    given = (os.environ.get(name, "") for name in _NAMES)
    return next((int(rank) for rank in given if rank.isdecimal()), 0)
