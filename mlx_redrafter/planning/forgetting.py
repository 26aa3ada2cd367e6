"""How fast planners forget."""

from __future__ import annotations

# What is left of earlier steps after one more.
FORGET = 0.995
# And where the text has turned out to be another: of up to 200 steps four are left.
DOUBTED = 0.02
