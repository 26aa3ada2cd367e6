"""Run as each of three ranks: commands that cannot load, one after another; rank 0's words.

rank_loads.py BUNDLE DIRECTORY, with bundles called tiny in the directories 0 and 1 of the latter
"""

import contextlib
import io
import json
import os
import sys

from mlx_redrafter.ui.cli.plan import main

bundle, directory = sys.argv[1:]
rank = int(os.environ["MLX_RANK"])
other = f"{directory}/{min(rank, 1) if rank == 1 else 0}/tiny"
code = 0
for path in (bundle, other, f"{directory}/{'none' if rank == 2 else '0'}/tiny"):
    err = io.StringIO()
    with contextlib.redirect_stderr(err):
        code = main([path])
    if rank == 0 or err.getvalue():
        print(json.dumps({"code": code, "err": err.getvalue()}), flush=True)
sys.exit(code)
