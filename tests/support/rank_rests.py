"""Run as one of several ranks: rank 0 lets the others rest, and rouses them seconds later.

rank_rests.py server|chat

Prints the seconds that a processor worked meanwhile.
"""

import sys
import time

from mlx_redrafter.engine.lockstep import Follower, Leader
from mlx_redrafter.server.work.lockstep import follow, leave, rest, rouse
from mlx_redrafter.system.rank_watch import current_ranks

ranks = current_ranks()
assert ranks is not None
assert ranks.can_rest
ranks.gather([0.0])  # mlx may take seconds until all its connections are there
began = time.process_time()
if sys.argv[1] == "chat":
    if ranks.leads:
        leader = Leader(ranks)
        leader.rest()
        leader.rest()  # they do already
        time.sleep(6)
        leader.leave()
    else:
        assert Follower(ranks).hear() is None
elif ranks.leads:
    for _ in range(2):
        rest(ranks)
        time.sleep(3)
        rouse(ranks)
    leave(ranks)
else:
    follow(ranks, {})
print(time.process_time() - began, flush=True)
