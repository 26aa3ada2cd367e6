"""What a step of decoding is: pending, as it went, and as text."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import mlx.core as mx

from ..choices import Choices
from ..drafting.next_draft import NextDraft
from ..drafting.shape import BeamShape
from ..tree import DraftTree, HostTree

TokenSource = Literal["guessed", "copied", "own"]


@dataclass(frozen=True)
class PendingStep:
    """One sequence's part of a step whose graph is under way and not read back yet.

    Attributes:
        tree: What is verified.
        size: How many of its nodes are the text's own; leaves after those make it as large as the
            trees of other texts, and are of no token.
        choices: The target's choices after its nodes.
        hidden: What drafts start from at its nodes, see ``DraftInput``, (n, ...).
        shape: What was drafted, of which ``tree`` may be a part; None is a plain step.
        context: Committed tokens before it.
        draft_seconds: What its draft takes, measured alone, and one that is only watched.
        drafted_before: What was drafted for it in the graph of the step before, verified or not;
            None for nothing.
        watched: Whether that is compared with the text that follows.
        probing: Whether what was drafted is to tell what other shapes would yield.
        next_draft: The next step's draft, where that is made in this step's graph.
        copied: Nodes of ``tree`` that nothing but a copy of the text proposed.
        cut: Whether nodes of the draft were left out, since the text ends before them.
        finite: Whether all hidden states are numbers, bool (); None for a root alone, which is
            what plain decoding computes.
    """

    tree: DraftTree
    size: int
    choices: Choices
    hidden: mx.array
    shape: BeamShape | None
    context: int
    draft_seconds: float
    drafted_before: BeamShape | None = None
    watched: bool = False
    probing: bool = False
    next_draft: NextDraft | None = None
    copied: frozenset[int] = frozenset()
    cut: bool = False
    finite: mx.array | None = None

    @property
    def is_trustworthy(self) -> bool:
        """Whether no branch spoilt the others; waits for the step.

        A mask gives a rejected branch no weight, but zero times NaN or infinity is NaN.
        """
        return self.finite is None or bool(self.finite.item())

    @property
    def is_plain(self) -> bool:
        """Whether the outcome is known before it is read: nothing drafted, the root accepted."""
        return len(self.tree) == 1

    @property
    def watches_next(self) -> bool:
        """Whether the next step's draft is made with it, and compared with the text."""
        return self.next_draft is not None and self.next_draft.watched

    @property
    def is_quiet(self) -> bool:
        """Whether it is plain and drafts nothing for the step after it."""
        return self.is_plain and (self.next_draft is None or self.next_draft.shape is None)

    @property
    def read_back(self) -> list[mx.array]:
        """What the host reads when the step is over; of a root alone only its token is unknown."""
        arrays = self.choices.arrays + ([] if self.finite is None else [self.finite])
        for tree in (self.tree, self.next_draft.tree if self.next_draft else None):
            if tree is None or tree.known is not None:
                continue
            alone = len(tree) == 1
            arrays += [tree.tokens] if alone else [tree.tokens, tree.parents, tree.log_probs]
        return arrays

    @property
    def kept(self) -> list[mx.array]:
        """What steps after it are made of, besides what is read back.

        Evaluated with the step, so that nothing is left that only its thread could compute.
        """
        draft = self.next_draft
        verified = draft is not None and draft.to_verify is not None
        tree = draft.tree if draft and verified else None
        return [self.hidden, *([] if tree is None else tree.arrays)]


@dataclass(frozen=True)
class StepRecord:
    """One step as it went, for those who want to look at it.

    Attributes:
        tree: What was verified.
        choices: The target's choice after each node.
        path: The accepted nodes, the root (0) first.
        copied: The nodes that nothing but a copy of the text proposed.
        cut: Whether nodes of the draft were left out, since the text ends before them.
        watched: Whether the whole draft is compared with the text that follows, and told of then.
    """

    tree: HostTree
    choices: tuple[int, ...]
    path: tuple[int, ...]
    copied: frozenset[int] = frozenset()
    cut: bool = False
    watched: bool = False

    @property
    def guessed(self) -> StepRecord:
        """The part of the step that was guessed, without what only copies proposed."""
        if not self.copied:
            return self
        kept = [node for node in range(len(self.choices)) if node not in self.copied]
        place = {node: index for index, node in enumerate(kept)}
        path = tuple(place[node] for node in self.path if node in place)
        choices = tuple(self.choices[node] for node in kept)
        tree = self.tree.pick(kept)
        return StepRecord(tree, choices, path, cut=self.cut, watched=self.watched)

    @property
    def drafted(self) -> int:
        """Candidates verified."""
        return len(self.tree.tokens) - 1

    def source(self, place: int) -> TokenSource:
        """Who came up with the step's token number ``place``."""
        if place >= self.accepted:
            return "own"
        return "copied" if self.path[1 + place] in self.copied else "guessed"

    @property
    def accepted(self) -> int:
        """Candidates on the accepted path."""
        return len(self.path) - 1

    @property
    def tokens(self) -> list[int]:
        """What the step adds to the text: the accepted tokens and the target's own."""
        return [self.choices[node] for node in self.path]


@dataclass(frozen=True)
class DecodedToken:
    """One token of text.

    Attributes:
        token: Its id.
        source: Who came up with it: the drafter ("guessed"), a copy of the text ("copied") or the
            target itself ("own").
        finish_reason: "stop" for an end-of-sequence token, "length" for the last of max_tokens.
        step: The step that produced it; None for the first token, which the prompt's own forward
            produced.
        logprob: Its log-probability, where ``SamplingConfig.logprobs`` asks for it.
        top_logprobs: (token, log-probability) of the likeliest, the likeliest first; as many as
            are asked for, if so many may come next.
        all_logprobs: Those of all tokens, float32 (vocab_size,), evaluated, where it is True.
    """

    token: int
    source: TokenSource
    finish_reason: str | None
    step: StepRecord | None
    logprob: float | None = None
    top_logprobs: tuple[tuple[int, float], ...] = ()
    all_logprobs: mx.array | None = field(default=None, compare=False, repr=False)

    @property
    def from_draft(self) -> bool:
        """Whether it had been guessed or copied before the target chose it."""
        return self.source != "own"
