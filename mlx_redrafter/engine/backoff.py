"""Plain steps where drafts are wasted for a while.

Whether drafts pay on the whole is the planner's question. Within a text they come and go: where
the target writes what the drafter cannot guess (an unknown name, a rare turn that was drawn
against the odds), one draft after the other fails, and some tokens later they are right again.
"""

from __future__ import annotations

# All in plain steps: what drafts may lose before they pause, the first pause, and the longest.
# Pauses were found by playing through what drafts from every place of 300 answers of the pocket, at
# temperatures 0 and 1, and of 64 texts of the prose model would have brought; values nearby differ
# by 1 or 2 %. At temperature 1 a real model's drafts fail several times in a row by chance alone: a
# loss of 2.5, best for the pocket, cost SmolLM2-135M 4 %.
ALLOWED_LOSS = 5.0
FIRST_PAUSE = 2
LONGEST_PAUSE = 64


class DraftBackoff:
    """When a text's drafts pause; each pause that ends in another vain draft is twice the last."""

    def __init__(self) -> None:
        self._lost = 0.0
        self._left = 0
        self._length = FIRST_PAUSE

    @property
    def pausing(self) -> bool:
        """Whether the next step is to be plain."""
        return self._left > 0

    def paused(self) -> None:
        """Take note of a step that was plain for that reason."""
        self._left = max(0, self._left - 1)

    def drafted(self, cost: float, tokens: float) -> None:
        """Take note of a step that drafted.

        Args:
            cost: Its expected time, in plain steps.
            tokens: What it made, the token that needs no draft included.
        """
        self._lost = max(0.0, self._lost + cost - tokens)
        if tokens >= cost:
            self._length = FIRST_PAUSE
        elif self._lost > ALLOWED_LOSS:
            self._left = self._length
            self._length = min(2 * self._length, LONGEST_PAUSE)
