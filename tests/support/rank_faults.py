"""Run as one of several ranks, which meet again and again, until something happens to the last.

rank_faults.py ends|hangs|leaves
"""

import os
import sys
import time

from mlx_redrafter.system.rank_watch import RankWatch, leave
from mlx_redrafter.system.ranks import join
from mlx_redrafter.system.rendezvous import meet

peers, ranks = meet(), join()
assert ranks is not None
assert peers is not None

patience = 4 if sys.argv[1] == "hangs" else 30
watch = RankWatch(ranks, peers, leave, hang_seconds=patience, silent_seconds=5)
for count in range(10_000):
    if ranks.rank == ranks.size - 1 and count == 20:
        if sys.argv[1] == "ends":
            os._exit(3)
        if sys.argv[1] == "leaves":
            watch.stop()
            sys.exit(0)
        if sys.argv[1] == "hangs":
            time.sleep(60)
    if count == 20:
        print("under way", flush=True)
    ranks.gather([float(count)])
    time.sleep(0.02)
