"""Run as one of several ranks, which meet again and again, until something happens to the last.

rank_faults.py ends|hangs|leaves|loads
"""

import os
import sys
import time

from mlx_redrafter.system.rank_watch import RankWatch, leave
from mlx_redrafter.system.ranks import join
from mlx_redrafter.system.rendezvous import meet
from mlx_redrafter.text.sharding import fail_together

peers, ranks = meet(), join()
assert ranks is not None
assert peers is not None

ranks.gather([0.0])  # mlx may take seconds until all its connections are there
patience = {"hangs": 4, "loads": 1}.get(sys.argv[1], 30)
silence = 5 if sys.argv[1] == "nothing" else 30
watch = RankWatch(ranks, peers, leave, hang_seconds=patience, silent_seconds=silence)
for count in range(10_000):
    if ranks.rank == ranks.size - 1 and count == 20:
        if sys.argv[1] == "ends":
            os._exit(3)
        if sys.argv[1] == "leaves":
            watch.stop()
            sys.exit(0)
        if sys.argv[1] == "hangs":
            time.sleep(60)
    if sys.argv[1] == "loads" and count == 20:
        with fail_together(ranks):
            time.sleep(4 * (ranks.rank == 1))
        watch.stop()
        sys.exit(0)
    if count == 20:
        print("under way", flush=True)
    ranks.gather([float(count)])
    time.sleep(0.02)
