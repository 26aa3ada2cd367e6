"""A served model that several processes share: rank 0 takes the requests, and tells the others.

What the engine does follows from what it is told, and from measurements that the ranks agree on
already. So rank 0 says each order (a text joins, a step is taken, a text is stopped) before it does
it, and the others do the same with an engine of their own.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from ...errors import RedrafterError
from ...system.ranks import Ranks
from .sequences import Decoding, SequenceEvent, Sequences

log = logging.getLogger("mlx_redrafter.server")
PARTED = "a step failed on rank 0, and the other ranks cannot take it back: start all of them again"


class LedSequences:
    """Rank 0's sequences of one model; see :class:`Sequences`.

    Args:
        ranks: All processes.
        name: Of the model.
        own: Decodes here.
    """

    def __init__(self, ranks: Ranks, name: str, own: Sequences):
        self._ranks, self._name, self._own = ranks, name, own

    def add(self, decoding: Decoding) -> int:
        self._say("add", decoding=asdict(decoding))
        return self._own.add(decoding)

    def known(self, prompt: list[int]) -> int:
        return self._own.known(prompt)

    def step(self) -> Iterable[SequenceEvent]:
        self._say("step")
        try:
            return list(self._own.step())
        except Exception:
            # The others are somewhere in the middle of this step.
            log.exception("a step of %s failed", self._name)
            sys.stderr.write(f"server: {PARTED}.\n")
            sys.stderr.flush()
            os._exit(2)

    def stop(self, sequence: int) -> None:
        self._say("stop", sequence=sequence)
        self._own.stop(sequence)

    def statistics(self, sequence: int) -> dict[str, Any]:
        return self._own.statistics(sequence)

    def plain_tokens_per_second(self, context: int) -> float | None:
        return self._own.plain_tokens_per_second(context)

    @property
    def cache_bytes(self) -> int:
        return self._own.cache_bytes

    def _say(self, order: str, **values: Any) -> None:
        self._ranks.share(json.dumps({"do": order, "model": self._name, **values}).encode())


def leave(ranks: Ranks) -> None:
    """Rank 0 lets the others go."""
    ranks.share(json.dumps({"do": "leave"}).encode())


def rest(ranks: Ranks) -> None:
    """Rank 0 has nothing to do, and lets the others sleep until it calls :func:`rouse`."""
    # The exchange that says so is one that rank 0 has made by then.
    ranks.share(json.dumps({"do": "rest", "progress": ranks.progress + 1}).encode())


def rouse(ranks: Ranks) -> None:
    """Rank 0 goes on."""
    ranks.rouse()


def follow(ranks: Ranks, models: Mapping[str, Sequences]) -> None:
    """Do what rank 0 does, until it leaves; for the other ranks.

    Args:
        ranks: All processes.
        models: Their sequences, by name.
    """
    while True:
        order = json.loads(ranks.share(b"", patient=True))
        if order["do"] == "leave":
            return
        if order["do"] == "rest":
            ranks.rest(order["progress"])
            continue
        sequences = models[order["model"]]
        if order["do"] == "step":
            list(sequences.step())
        elif order["do"] == "stop":
            sequences.stop(order["sequence"])
        else:
            _add(sequences, Decoding(**order["decoding"]))


def _add(sequences: Sequences, decoding: Decoding) -> None:
    try:
        sequences.add(decoding)
    except RedrafterError:
        return  # rank 0 says so to whoever asked
