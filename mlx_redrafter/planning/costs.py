"""What the parts of a step cost on this machine, and what follows from that for a step.

Drafting pays only where checking n tokens at once costs much less than n steps, and that is a
property of the machine, the model and its precision, so it is measured (``calibration``) and never
assumed. Nor is it assumed that more tokens cost more: matrix products come in blocks, and a product
over sixteen rows may take half the time of one over thirteen.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from ..drafting.shape import BeamShape
from .measuring import AGREEMENT

# Context lengths at which forwards are measured when a text gets there.
CONTEXTS = (512, 4096, 16384, 32768)


@dataclass(frozen=True)
class CostModel:
    """Seconds of the parts of a step.

    Attributes:
        sizes: Numbers of tokens whose forward was measured, ascending from 1.
        contexts: Context lengths they were measured at, ascending.
        verify: Seconds of a forward, one row a context, one column a size.
        draft: Seconds a drafted level costs, by beam width.
        plain: Seconds of a token of plain decoding at each context. Less than a forward over one
            token, since plain steps overlap with the host's work.
        draft_start: Seconds that a draft costs before its first level, such as reading the tokens
            before the root.
        replay: What it costs to bring recurrent state back after a rejected tail, as a share of a
            forward over the rows that stay; 0 where there is none to bring back.
        path_row: Seconds of each row that recurrent modules run beyond one a token, since they see
            a tree as a batch of its paths; 0 where there are none.
        around: Seconds of a step that verifies more than a root beyond its draft and its forward,
            each of which was timed alone: the host's work, and weights that have to be read again.
        doubtful: Whether the times contradicted each other, so that they are not to be stored.
    """

    sizes: tuple[int, ...]
    contexts: tuple[int, ...]
    verify: tuple[tuple[float, ...], ...]
    draft: Mapping[int, float]
    plain: tuple[float, ...]
    replay: float = 0.0
    draft_start: float = 0.0
    path_row: float = 0.0
    around: float = 0.0
    doubtful: bool = False

    def verify_seconds(self, tokens: int, context: int) -> float:
        """Seconds of a forward over ``tokens`` tokens after ``context`` others.

        Interpolated; beyond the longest context measured it grows as it did before.
        """
        place = self._places.get(tokens)
        if place is not None:
            columns = [row[place] for row in self.verify]
        else:
            columns = [interpolated(tokens, self.sizes, row) for row in self.verify]
        if tokens > self.sizes[-1]:
            columns = [seconds * tokens / self.sizes[-1] for seconds in columns]
        return grown(context, self.contexts, columns)

    def check_seconds(self, rows: int, context: int) -> float:
        """Seconds of a step that verifies so many rows, and for which nothing had to be drafted."""
        return self.verify_seconds(rows, context) + (self.around if rows > 1 else 0.0)

    def beyond_plain(self, tokens: int) -> float:
        """Share of a forward over ``tokens`` tokens that one over a single token does not take."""
        return 1.0 - self.verify[0][0] / interpolated(tokens, self.sizes, self.verify[0])

    def draft_seconds(self, shape: BeamShape) -> float:
        """Seconds of a beam search; widths in between are interpolated."""
        return self.draft_start + self._level_seconds(shape.width) * shape.length

    @cached_property
    def _places(self) -> dict[int, int]:
        """Where a number of tokens that was timed stands; most that are asked for were."""
        return {tokens: place for place, tokens in enumerate(self.sizes)}

    @cached_property
    def _levels(self) -> tuple[list[int], list[float]]:
        """Beam widths, ascending, and seconds of a level of each."""
        widths = sorted(self.draft)
        return widths, [self.draft[width] for width in widths]

    def _level_seconds(self, width: int) -> float:
        widths, seconds = self._levels
        return interpolated(width, widths, seconds) * max(1.0, width / widths[-1])

    def step_seconds(
        self,
        shape: BeamShape | None,
        context: int,
        *,
        nodes: int | None = None,
        kept: float = 1.0,
        rejected: float = 0.0,
        path_rows: float = 0.0,
    ) -> float:
        """Seconds of a step: plain where ``shape`` is None, else drafting and verifying.

        Args:
            shape: What is drafted.
            context: Tokens before the step.
            nodes: Candidates that are verified, where that is not all of the shape's.
            kept: Rows of the step that stay, the root counted.
            rejected: The chance that not all rows stay, and recurrent state is brought back.
            path_rows: Rows of the tree's root-to-leaf paths, the root left out of each.
        """
        if shape is None:
            return grown(context, self.contexts, self.plain)
        rows = 1 + (shape.nodes if nodes is None else nodes)
        seconds = self.draft_seconds(shape) + self.check_seconds(rows, context)
        if self.path_row:
            seconds += self.path_row * max(0.0, path_rows - (rows - 1))
        if self.replay:
            seconds += rejected * self.replay * self.verify_seconds(max(1, round(kept)), context)
        return seconds

    def for_batch(self, texts: int) -> CostModel:
        """What steps cost that ``texts`` texts take together.

        A forward then has ``texts`` times the rows, a beam search so many times the beams, and a
        plain step is a forward over one row of each text. What attention reads of each text's
        context is counted once, so long contexts cost more than this says; and the rows of several
        texts were seldom timed, so what they cost is interpolated.
        """
        if texts == 1:
            return self
        verify = tuple(
            tuple(self.verify_seconds(texts * size, context) for size in self.sizes)
            for context in self.contexts
        )
        draft = {width: self._level_seconds(width * texts) for width in sorted(self.draft)}
        plain = tuple(row[0] for row in verify)
        path_row = texts * self.path_row
        return replace(self, verify=verify, draft=draft, plain=plain, path_row=path_row)

    def knows(self, context: int) -> bool:
        """Whether costs are known there; what lies between ``CONTEXTS`` is interpolated."""
        reached = max((known for known in CONTEXTS if known <= 1.1 * context), default=0)
        return reached <= 1.5 * self.contexts[-1]

    def with_context(self, context: int, seconds: Mapping[int, float]) -> CostModel:
        """The same costs, and those at another context.

        Args:
            context: Tokens before the forwards.
            seconds: Of a forward over some of the sizes, 1 among them. What the context adds for
                sizes in between is interpolated.

        Returns:
            What is known by now; a token of plain decoding takes as much more than before as a
            forward over one token. A context at which forwards take longer than at a longer one was
            measured beside another program, and is left out; the first one's are made as short.
        """
        known = sorted(seconds)
        shares = {n: seconds[n] / self.verify_seconds(n, self.contexts[0]) for n in known}
        if context > self.contexts[0] and min(shares.values()) * AGREEMENT < 1:
            shorter = self.scaled({n: min(1.0, share) for n, share in shares.items()})
            return shorter.with_context(context, seconds)
        added = [seconds[size] - self.verify_seconds(size, self.contexts[0]) for size in known]
        row = tuple(
            self.verify_seconds(size, self.contexts[0]) + interpolated(size, known, added)
            for size in self.sizes
        )
        rows = dict(zip(self.contexts, zip(self.verify, self.plain, strict=True), strict=True))
        rows[context] = (row, self.plain[0] + added[0])
        contexts = tuple(_growing({at: row for at, (row, _) in rows.items()}))
        return replace(
            self,
            contexts=contexts,
            verify=tuple(rows[at][0] for at in contexts),
            plain=tuple(rows[at][1] for at in contexts),
        )

    def scaled(self, factors: Mapping[int, float]) -> CostModel:
        """The same costs with each size's times a factor.

        Args:
            factors: For some of the sizes, 1 among them; for others interpolated.
        """
        known = sorted(factors)
        by_size = [interpolated(size, known, [factors[n] for n in known]) for size in self.sizes]
        return replace(
            self,
            verify=tuple(
                tuple(seconds * factor for seconds, factor in zip(row, by_size, strict=True))
                for row in self.verify
            ),
            plain=tuple(seconds * factors[1] for seconds in self.plain),
            draft={width: seconds * factors[1] for width, seconds in self.draft.items()},
            draft_start=self.draft_start * factors[1],
            around=self.around * factors[1],
            path_row=self.path_row * factors[1],
        )

    def doubted(self) -> CostModel:
        """The same costs, not to be stored."""
        return replace(self, doubtful=True)

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {
            "sizes": list(self.sizes),
            "contexts": list(self.contexts),
            "verify": [list(row) for row in self.verify],
            "plain": list(self.plain),
            "replay": self.replay,
            "draft_start": self.draft_start,
            "path_row": self.path_row,
            "around": self.around,
            "draft": {str(width): seconds for width, seconds in self.draft.items()},
        }

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> CostModel:
        """Inverse of :meth:`to_dict`.

        Raises:
            ValueError: If a number is missing, or none that a time can be.
        """
        costs = cls(
            sizes=tuple(value["sizes"]),
            contexts=tuple(value["contexts"]),
            verify=tuple(tuple(row) for row in value["verify"]),
            plain=tuple(value["plain"]),
            replay=float(value["replay"]),
            draft_start=float(value["draft_start"]),
            path_row=float(value["path_row"]),
            around=float(value["around"]),
            draft={int(width): seconds for width, seconds in value["draft"].items()},
        )
        costs._check()
        return costs

    def _check(self) -> None:
        times = [*self.plain, *self.draft.values(), *(s for row in self.verify for s in row)]
        shares = (self.replay, self.draft_start, self.path_row, self.around)
        whole = all(
            isinstance(one, int) and one > 0 for one in (*self.sizes, *self.contexts, *self.draft)
        )
        ordered = all(
            len(some) and list(some) == sorted(set(some)) for some in (self.sizes, self.contexts)
        )
        fits = len(self.plain) == len(self.verify) == len(self.contexts)
        fits = fits and all(len(row) == len(self.sizes) for row in self.verify)
        if not (whole and ordered and fits and all(math.isfinite(t) and t > 0 for t in times)):
            raise ValueError("costs that make no sense")
        if not all(math.isfinite(share) and share >= 0 for share in shares):
            raise ValueError("costs that make no sense")


def _growing(rows: Mapping[int, Sequence[float]]) -> list[int]:
    """Contexts whose forwards do not take clearly longer than those of a longer one; the first."""
    kept: list[int] = []
    least = math.inf
    for context in sorted(rows, reverse=True):
        if sum(rows[context]) <= AGREEMENT * least or context == min(rows):
            kept.insert(0, context)
            least = min(least, sum(rows[context]))
    return kept


def interpolated(x: float, known: Sequence[float], values: Sequence[float]) -> float:
    """A value interpolated at x; outside of what is known the nearest.

    As numpy's interp, which takes several times as long for a single number, and is asked for at
    every step.
    """
    right = bisect_right(known, x)
    if right in (0, len(known)):
        return values[min(right, len(known) - 1)]
    low, high = known[right - 1], known[right]
    share = (x - low) / (high - low)
    return values[right - 1] + share * (values[right] - values[right - 1])


def grown(x: float, known: Sequence[float], values: Sequence[float]) -> float:
    """As :func:`interpolated`, but beyond the last that is known it grows as it did before it."""
    if x <= known[-1] or len(known) == 1:
        return interpolated(x, known, values)
    slope = (values[-1] - values[-2]) / (known[-1] - known[-2])
    return values[-1] + max(0.0, slope) * (x - known[-1])
