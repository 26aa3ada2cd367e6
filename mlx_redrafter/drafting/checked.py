"""A caller's draft source, whose proposals are looked at before the target reads them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..errors import RedrafterError
from ..ranges import shown
from ..tree import DraftTree
from .source import DraftInput, DraftSource, SourceAround, as_source, proposes


class CheckedSource(SourceAround):
    """A source as it is, but for proposals that no target could read rightly: these are refused.

    What is known of a tree on the device only is not looked at, since that would wait for it.

    Args:
        source: The caller's.
        vocab_size: Number of tokens that the target has.
    """

    def __init__(self, source: DraftSource, vocab_size: int):
        super().__init__(source)
        self._vocab_size = vocab_size
        self._begun: CheckedSource | None = None

    @property
    def lookback(self) -> int | None:
        """The source's."""
        return self._source.lookback

    def __call__(self, state: DraftInput) -> DraftTree:
        """The source's tree.

        Raises:
            RedrafterError: If it is none, or none for this text and target.
        """
        return self._checked(self._source(state), state)

    def together(self, states: Sequence[DraftInput]) -> list[DraftTree]:
        """The source's trees.

        Raises:
            RedrafterError: If they are not one for each text.
        """
        trees: Any = self._source.together(states)
        if not isinstance(trees, list | tuple) or len(trees) != len(states):
            raise RedrafterError(
                "A draft source's together has to return a DraftTree for each text, and returned "
                f"{shown(trees)}."
            )
        return [self._checked(tree, state) for tree, state in zip(trees, states, strict=True)]

    def begin(self, prompt: Sequence[int]) -> DraftSource:
        """The source's own for a text; this one again where that is the same for all texts.

        Raises:
            RedrafterError: If it is none.
        """
        begun: Any = self._source.begin(prompt)
        if begun is self._source:
            return self
        if not proposes(begun):
            raise RedrafterError(
                "A draft source's begin has to return the source for one text, which may be "
                f"itself, and returned {shown(begun)}."
            )
        begun = as_source(begun)
        # Texts that share a source share what checks it, so that they are drafted for together.
        known = self._begun  # texts may begin in several threads
        if known is None or known._source is not begun:
            known = self._begun = CheckedSource(begun, self._vocab_size)
        return known

    def _checked(self, tree: Any, state: DraftInput) -> DraftTree:
        if not isinstance(tree, DraftTree):
            raise RedrafterError(
                f"A draft source has to propose a DraftTree, and proposed {shown(tree)}."
            )
        if tree.max_depth > self.max_depth:
            raise RedrafterError(
                f"A draft source proposed a tree of depth {tree.max_depth}, but its max_depth is "
                f"{self.max_depth}."
            )
        if tree.known is not None:
            self._check_tokens(tree.known.tokens, state)
        return tree

    def _check_tokens(self, tokens: Sequence[int], state: DraftInput) -> None:
        root: Any = state.root.item()  # the step that chose it is over by now
        if tokens[0] != root:
            raise RedrafterError(
                f"A draft source proposed a tree with the root {tokens[0]}, but the text's last "
                f"token is {root}."
            )
        if min(tokens) < 0 or max(tokens) >= self._vocab_size:
            raise RedrafterError(
                f"A draft source proposed token ids outside the vocabulary of {self._vocab_size}."
            )
