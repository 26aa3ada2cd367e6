"""A draft source that knows the text, for tests of verification."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from common_config import VOCAB

from mlx_redrafter.drafting.source import DraftInput
from mlx_redrafter.tree import DraftTree


class TextSource:
    """A draft source that hides what the target is about to write among wrong branches.

    Args:
        text: Prompt and continuation.
        branching: Propose trees; otherwise chains that go wrong somewhere.
        seed: Names the shapes.
    """

    seconds = 0.0
    max_depth = 4

    def __init__(self, text: Sequence[int], *, branching: bool, seed: int = 0):
        self._text = list(text)
        self._branching = branching
        self._rng = np.random.default_rng(seed)
        self.hoped = 0  # drafted tokens that should have been accepted

    def __call__(self, state: DraftInput) -> DraftTree:
        root, at = int(state.root.item()), len(state.text)
        assert [*state.text, root] == self._text[: at + 1]
        after = self._text[at + 1 : at + 2 + self.max_depth]
        depth = min(int(self._rng.integers(0, self.max_depth + 1)), max(0, len(after) - 1))
        truth, wrong = after[:depth], after[depth : depth + 1]
        self.hoped += depth
        if self._branching:
            return self._tree(root, truth, wrong)
        chain = [root, *truth]
        while len(chain) <= self.max_depth:
            chain.append(self._other(wrong if len(chain) == depth + 1 else []))
        return DraftTree.from_parents(chain, range(-1, len(chain) - 1))

    def _other(self, avoid: Sequence[int]) -> int:
        token = int(self._rng.integers(0, VOCAB - len(avoid)))
        return token + any(token >= other for other in avoid)

    def _tree(self, root: int, truth: Sequence[int], wrong: Sequence[int]) -> DraftTree:
        """Before every node of the true path stand wrong ones, some with children of their own."""
        tokens, parents, depths = [root], [-1], [0]
        line = [0]  # the nodes of the true path
        for level in range(self.max_depth):
            for _ in range(int(self._rng.integers(1, 3))):
                wrongs = [n for n in range(len(tokens)) if depths[n] < self.max_depth]
                wrongs = [n for n in wrongs if n not in line] or line[-1:]
                beside = line[-1] if level <= len(truth) else int(self._rng.choice(wrongs))
                right = [*truth, *wrong][depths[beside] :][:1] if beside in line else []
                tokens.append(self._other(right))
                parents.append(beside)
                depths.append(depths[beside] + 1)
            if level < len(truth):
                tokens.append(truth[level])
                parents.append(line[-1])
                depths.append(level + 1)
                line.append(len(tokens) - 1)
        return DraftTree.from_parents(tokens, parents)
