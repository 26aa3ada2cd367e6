"""How likely copied tokens are to be accepted, learnt as texts go on.

A copied token is judged by the length of the match that it would follow, which for a deeper one
counts the copied tokens before it, and by what the text shows of the match: followed by one token
once, by the same one several times, or by different ones. Each token of text tells whether what
would have been copied was right, verified or not, so nothing has to be tried to learn this.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import replace

from .copies import Copies

# The longest match of each bin but the last.
LENGTHS = (1, 2, 3, 4, 6, 8, 12, 16, 32, 64)
# What is believed beforehand: the share of right tokens in 1,000 answers of SmolLM2-135M-Instruct
# to its own questions (temperatures 0 to 1), as experiments/copies_replay.py --shares counts it.
# Rows: the match was followed by different tokens, of which this is the first; by one token, once;
# by the same token several times; by different tokens, of which this is not the first; and deeper
# tokens of a continuation.
PRIOR = (
    (0.15, 0.26, 0.28, 0.40, 0.37, 0.36, 0.40, 0.39, 0.31, 0.30, 0.30),
    (0.24, 0.45, 0.53, 0.63, 0.71, 0.78, 0.84, 0.89, 0.93, 0.96, 0.99),
    (0.50, 0.80, 0.84, 0.89, 0.93, 0.94, 0.97, 0.98, 0.98, 0.98, 0.98),
    (0.10, 0.12, 0.12, 0.15, 0.16, 0.14, 0.13, 0.12, 0.10, 0.08, 0.08),
    (0.24, 0.46, 0.53, 0.66, 0.73, 0.79, 0.86, 0.90, 0.93, 0.96, 0.99),
    # The same of answers that were given before, in 1,500 such answers.
    (0.15, 0.20, 0.23, 0.34, 0.30, 0.40, 0.37, 0.37, 0.37, 0.37, 0.37),
    (0.19, 0.23, 0.32, 0.39, 0.45, 0.51, 0.59, 0.64, 0.82, 0.92, 0.92),
    (0.46, 0.56, 0.74, 0.74, 0.76, 0.82, 0.84, 0.86, 0.86, 0.92, 0.92),
    (0.07, 0.07, 0.09, 0.08, 0.10, 0.18, 0.18, 0.18, 0.18, 0.18, 0.18),
    (0.19, 0.21, 0.32, 0.39, 0.47, 0.57, 0.60, 0.66, 0.85, 0.92, 0.92),
)
SHARED, ONCE, OFTEN, OTHER, DEEPER = range(5)
EARLIER = 5  # rows further down: the same of copies from earlier answers
PRIOR_WEIGHT = 8.0
FORGET = 0.99
# Nodes below this chance are not worth looking at on any machine.
LEAST_CHANCE = 0.02


class CopyAcceptance:
    """Chance that a copied token is right; learnt with a short memory.

    Attributes:
        in_vain: Tokens in a row, of all texts, that had no use for copies.
    """

    def __init__(self) -> None:
        self.in_vain = 0
        self._hits = [[PRIOR_WEIGHT * chance for chance in row] for row in PRIOR]
        self._trials = [[PRIOR_WEIGHT] * len(row) for row in PRIOR]

    def take_in_vain(self, tokens: int) -> None:
        """Count tokens for which copies were of no use."""
        self.in_vain += tokens

    def take_use(self) -> None:
        """Copies were of use."""
        self.in_vain = 0

    def likely(self, copies: Copies) -> tuple[Copies, list[float]]:
        """The copies without what is hardly ever right, and the chances of the nodes left."""
        kept, chances = [], [1.0]
        for rank, continuation in enumerate(copies.continuations):
            first, chance = len(chances), 1.0
            for depth in range(len(continuation.tokens)):
                kind, column = place(copies, rank, depth)
                chance *= self._hits[kind][column] / self._trials[kind][column]
                if chance < LEAST_CHANCE:
                    break
                chances.append(chance)
            if length := len(chances) - first:
                kept.append(replace(continuation, tokens=continuation.tokens[:length]))
        return replace(copies, continuations=tuple(kept)), chances

    def observe(self, copies: Copies, tokens: Sequence[int]) -> None:
        """Learn from what the text went on with.

        Args:
            copies: What was proposed, verified or not.
            tokens: The tokens that followed the root.
        """
        for rank, continuation in enumerate(copies.continuations):
            for depth, (copied, token) in enumerate(zip(continuation.tokens, tokens, strict=False)):
                kind, column = place(copies, rank, depth)
                self._count(kind, column, copied == token)
                if copied != token:
                    break

    def _count(self, kind: int, column: int, hit: bool) -> None:
        hits, trials = self._hits[kind], self._trials[kind]
        hits[column] = FORGET * hits[column] + hit
        trials[column] = FORGET * trials[column] + 1


def place(copies: Copies, rank: int, depth: int) -> tuple[int, int]:
    """Row and column of a copied token, the first of a continuation at depth 0."""
    column = bisect_left(LENGTHS, copies.match_length + depth)
    row = EARLIER if copies.earlier else 0
    if depth:
        return row + DEEPER, column
    if rank:
        return row + OTHER, column
    if copies.shared:
        return row + SHARED, column
    return row + (ONCE if copies.continuations[0].occurrences == 1 else OFTEN), column
