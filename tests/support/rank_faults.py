"""Run by mlx.launch: ranks that meet again and again, until the last of them ends or hangs.

rank_faults.py ends|hangs
"""

import os
import sys
import time

from mlx_redrafter.system.rank_watch import RankWatch, ring_host
from mlx_redrafter.system.ranks import current_ranks

ranks = current_ranks()
assert ranks is not None


def fail(sentence: str) -> None:
    sys.stderr.write(f"rank {ranks.rank} says: {sentence}\n")
    sys.stderr.flush()
    os._exit(2)


watch = RankWatch(ranks, ring_host() or "", fail, hang_seconds=2)
for count in range(1000):
    if ranks.rank == ranks.size - 1 and count == 20:
        if sys.argv[1] == "ends":
            os._exit(3)
        time.sleep(60)
    try:
        ranks.gather([float(count)])
    except Exception:
        time.sleep(5)  # the watch speaks
