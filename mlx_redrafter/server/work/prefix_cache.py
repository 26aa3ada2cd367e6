"""What earlier requests left in a model, for later ones that begin with the same tokens.

Agents send a conversation again and again, each time a little longer. What was computed for a
prefix is kept, the least recently used first to go; who uses it gets a copy, so that several
requests can continue from one prefix, and none sees what another added. A key/value cache
continues from anywhere in its text, recurrent state from its end and the ends of its prompts.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from itertools import count

import numpy as np
import numpy.typing as npt

from ...cache.prompt_cache import PromptCache

Tokens = npt.NDArray[np.int64]
SHORTEST = 16  # fewer tokens are read again as quickly as they are found and copied


@dataclass(frozen=True)
class _Entry:
    cache: PromptCache
    tokens: Tokens
    nbytes: int


class PrefixCache:
    """Caches by the tokens that they hold; used from one thread only.

    Args:
        limit: Bytes at most; 0 keeps nothing.
    """

    def __init__(self, limit: int):
        self._limit = limit
        self._entries: OrderedDict[int, _Entry] = OrderedDict()
        self._numbers = count()
        self._nbytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def keeps(self) -> bool:
        """Whether anything is kept at all."""
        return self._limit > 0

    @property
    def nbytes(self) -> int:
        """Size of all that is kept, in bytes; copies that are in use do not count."""
        return self._nbytes

    def take(self, prompt: list[int]) -> PromptCache | None:
        """A copy of what holds the longest prefix of ``prompt`` that can be gone on from.

        At least the prompt's last token is left over.

        Returns:
            Caches whose tokens are that prefix; None where nothing of it is known.
        """
        length, number = self._longest(prompt)
        if number is None:
            return None
        self._entries.move_to_end(number)
        copied = self._entries[number].cache.copy()
        copied.rewind(length)
        return copied

    def known(self, prompt: list[int]) -> int:
        """Tokens of the prefix that :meth:`take` would find."""
        return self._longest(prompt)[0]

    def _longest(self, prompt: list[int]) -> tuple[int, int | None]:
        """Tokens of the longest prefix of ``prompt`` that can be gone on from, and whose it is."""
        wanted = np.asarray(prompt[:-1], dtype=np.int64)
        found: tuple[int, int | None] = (0, None)
        for number, entry in self._entries.items():
            length = entry.cache.reachable(_shared(entry.tokens, wanted))
            if length >= SHORTEST and length > found[0]:
                found = length, number
        return found

    def put(self, cache: PromptCache) -> None:
        """Keep a copy of caches; what would take back a part of their last steps is not in it.

        Nothing is kept twice: of two texts, one the beginning of the other, the shorter goes where
        the longer can be gone on from at its end.
        """
        cache = cache.copy()
        nbytes = cache.nbytes
        if nbytes > self._limit or len(cache) < SHORTEST:
            return
        tokens = np.asarray(cache.tokens, dtype=np.int64)
        for number, entry in list(self._entries.items()):
            shared = _shared(entry.tokens, tokens)
            if shared == len(tokens) and entry.cache.reachable(shared) == shared:
                self._entries.move_to_end(number)
                return
            if shared == len(entry.tokens) and cache.reachable(shared) == shared:
                self._drop(number)
        self._entries[next(self._numbers)] = _Entry(cache, tokens, nbytes)
        self._nbytes += nbytes
        while self._nbytes > self._limit:
            self._drop(next(iter(self._entries)))

    def clear(self) -> None:
        """Keep nothing."""
        self._entries.clear()
        self._nbytes = 0

    def _drop(self, number: int) -> None:
        self._nbytes -= self._entries.pop(number).nbytes


def _shared(one: Tokens, other: Tokens) -> int:
    """How many tokens two texts begin with alike."""
    shortest = min(len(one), len(other))
    differs = np.flatnonzero(one[:shortest] != other[:shortest])
    return int(differs[0]) if len(differs) else shortest
