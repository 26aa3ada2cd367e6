"""What sequences copy from their own texts, and how much of it is verified."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

from ..drafting.copies import Copies, TextCopies
from ..drafting.copy_acceptance import CopyAcceptance
from ..drafting.grafting import graft, merge
from ..drafting.shape import BeamShape
from ..tree import DraftTree, HostTree
from .copy_pricing import CopyPricing, CopyShare

# After so many plain steps that had no use for copies they are looked for after every so many-th
# only: in a small model to look takes two or three per cent of a step. And after so many tokens of
# this text and those before it more rarely still, from the beginning of the next text on; and once
# more.
STEPS_IN_VAIN, LOOK_EVERY = 8, 4
TOKENS_IN_VAIN, LOOK_RARELY = 128, 8
MANY_IN_VAIN, LOOK_SELDOM = 512, 16
# Then shorter matches in earlier answers, which are the most doubtful, are left alone.
SURER_MATCH = 3


@dataclass(frozen=True)
class CopyProposal:
    """Copies for one step of one sequence.

    Attributes:
        copies: What may follow the text.
        chances: Of each node of their tree to be accepted, 1 for the root.
    """

    copies: Copies
    chances: Sequence[float]

    @property
    def tree(self) -> HostTree:
        """The copies, scored by the logarithms of their chances."""
        tree = self.copies.tree
        return HostTree(tree.tokens, tree.parents, tuple(map(_log, self.chances)))

    @property
    def chain(self) -> Sequence[float]:
        """The chances along the first continuation."""
        return self.chances[1 : 1 + len(self.copies.continuations[0].tokens)]


class SequenceCopies:
    """Proposes copies of one sequence's text, step by step, and learns how often they are right.

    Args:
        text: Holds the sequence's text.
        acceptance: Shared with the other texts of a planner, where there is one.
    """

    def __init__(self, text: TextCopies, acceptance: CopyAcceptance):
        self._text = text
        self._acceptance = acceptance
        self._found: Copies | None = None  # of which what is hardly ever right is not proposed
        self._proposal: CopyProposal | None = None
        self._asked = False
        self._surprised = False
        self._in_vain = 0  # steps in a row
        self._answer: list[int] = []
        self._unread: list[int] = []  # tokens since copies were looked for

    def begin(self, prompt: Sequence[int]) -> None:
        """The text is a prompt, the root of its first step included."""
        self._text.follow(prompt)
        self._unread, self._answer = [], []
        self._asked = self._surprised = False
        self._in_vain = STEPS_IN_VAIN if self._acceptance.in_vain >= TOKENS_IN_VAIN else 0

    def accepted(self, tokens: Sequence[int]) -> None:
        """Hear the tokens that a step added to the text."""
        proposal = self._proposal if self._asked else None
        if self._asked and self._found is not None:
            self._acceptance.observe(self._found, tokens)
        foretold = proposal.copies.continuations[0].tokens[0] if proposal else None
        alone = len(tokens) == 1
        self._surprised = self._asked and alone and tokens[0] != foretold
        if alone or tokens[0] != foretold:  # what was guessed says nothing of copies
            self._in_vain += 1
            self._acceptance.take_in_vain(len(tokens))
        else:
            self._in_vain = 0
            self._acceptance.take_use()
        self._unread += tokens
        self._answer += tokens
        self._asked = False

    def end(self) -> None:
        """The last token that was heard ends the text."""
        self._text.end(self._answer)

    @property
    def rests(self) -> bool:
        """Whether copies need not be looked for after this plain step."""
        if self._in_vain < STEPS_IN_VAIN:
            return False
        tokens, every = self._acceptance.in_vain, LOOK_EVERY
        if tokens >= MANY_IN_VAIN:
            every = LOOK_SELDOM
        elif tokens >= TOKENS_IN_VAIN:
            every = LOOK_RARELY
        return self._in_vain % every != 0

    def take_surprise(self) -> bool:
        """Whether a step made one token alone, and that was no copy; told once."""
        surprised, self._surprised = self._surprised, False
        return surprised

    def propose(self, max_depth: int) -> CopyProposal | None:
        """Copies of at most ``max_depth`` tokens; the same until the text goes on."""
        if not self._asked:
            self._asked, self._proposal = True, None
            self._text.accepted(self._unread)
            self._unread = []
            in_vain = self._acceptance.in_vain >= TOKENS_IN_VAIN
            self._found = self._text.propose(max_depth, least_earlier=SURER_MATCH if in_vain else 1)
            if self._found is not None:
                copies, chances = self._acceptance.likely(self._found)
                self._proposal = CopyProposal(copies, chances) if len(chances) > 1 else None
        return self._proposal


@dataclass(frozen=True)
class KnownTree:
    """A tree of guesses and copies that the host knows before it is verified.

    Attributes:
        tree: What to verify.
        copied: Its nodes that nothing but a copy proposed.
    """

    tree: HostTree
    copied: frozenset[int]

    @property
    def on_device(self) -> DraftTree:
        """The tree, to be verified."""
        tree = self.tree
        return DraftTree.from_parents(tree.tokens, tree.parents, tree.log_probs)


class Candidates:
    """Guesses and copies for one sequence, all known to the host, the likeliest first.

    Args:
        root: The sequence's last token.
        guessed: A draft that was made already.
        guess_chances: Of its nodes to be accepted, 1 for the root.
        proposal: Copies.
        chain: Whether only one path can be verified.
    """

    def __init__(
        self,
        root: int,
        guessed: HostTree | None,
        guess_chances: Sequence[float],
        proposal: CopyProposal | None,
        *,
        chain: bool = False,
    ):
        alone = HostTree((root,), (-1,), (0.0,))
        first, second = guessed or alone, proposal.tree if proposal else alone
        self._merged = merge(first, second)
        self._chances = self._merged.chances(
            guess_chances if guessed else [1.0], proposal.chances if proposal else [1.0]
        )
        self._scores = self._merged.scores(first, second)
        self._path = self._merged.best_path(self._chances) if chain else None

    @property
    def chances(self) -> list[float]:
        """The chances of its nodes, in the order in which they would be verified."""
        if self._path is not None:
            return [self._chances[node] for node in self._path[1:]]
        return sorted(self._chances[1:], reverse=True)

    def first(self, count: int) -> KnownTree:
        """The tree of the ``count`` likeliest nodes; of a chain's first."""
        if self._path is not None:
            nodes = self._path[: 1 + count]
        else:
            nodes = self._merged.likeliest(self._chances, count)
        copied = (i for i, node in enumerate(nodes) if node and self._merged.guesses[node] < 0)
        return KnownTree(self._merged.pick(nodes, self._scores), frozenset(copied))


@dataclass(frozen=True)
class StepDraft:
    """What is known of one sequence's tree before its step is launched.

    Attributes:
        shape: What its sources draft, or have drafted; None where they do not.
        tree: The tree, where it is known already.
        beside: Copies to be set beside what its sources will propose, of which the first
            ``guessed`` nodes are kept; None for no copies.
        guessed: See there; None keeps all.
        copied: Nodes of ``tree`` that nothing but a copy proposed.
        cut: Whether nodes of the draft were left out, since the text ends before them.
        watched: Whether the draft is compared with the text that follows.
    """

    shape: BeamShape | None = None
    tree: DraftTree | None = None
    beside: HostTree | None = None
    guessed: int | None = None
    copied: frozenset[int] = frozenset()
    cut: bool = False
    watched: bool = False

    @property
    def made_before(self) -> BeamShape | None:
        """What was drafted in the step before; None for nothing."""
        return self.shape if self.tree is not None else None

    @property
    def max_depth(self) -> int:
        """Depth of the nodes that are known already."""
        return max(
            self.tree.max_depth if self.tree else 0, max(self.beside.depths) if self.beside else 0
        )

    def complete(self, proposed: DraftTree) -> tuple[DraftTree, frozenset[int]]:
        """The tree with what the sources proposed, and which of its nodes only a copy did."""
        kept = proposed if self.guessed is None else proposed.first(self.guessed)
        if self.beside is None:
            return kept, frozenset()
        tree = graft(kept, self.beside)
        return tree, frozenset(range(len(kept), len(tree)))


class StepCopies:
    """Plans one step of sequences that share a forward, of which some have copies to verify.

    Args:
        pricing: Prices copied nodes.
        proposals: Copies of each sequence, None for one that has none.
        roots: The last token of each.
        context: Tokens of the longest.
        chain: Whether only one path can be verified.
    """

    def __init__(
        self,
        pricing: CopyPricing,
        proposals: Sequence[CopyProposal | None],
        roots: Sequence[int],
        context: int,
        *,
        chain: bool = False,
    ):
        self._pricing = pricing
        self._proposals = proposals
        self._roots = roots
        self._context = context
        self._chain = chain

    @property
    def found(self) -> bool:
        """Whether there is anything to copy."""
        return any(self._proposals)

    @property
    def waits(self) -> bool:
        """Whether the step after this one should not begin before this one's token is known."""
        chains = [proposal.chain for proposal in self._proposals if proposal is not None]
        first = sum(chain[0] for chain in chains) / len(self._proposals)
        after = [[chance / chain[0] for chance in chain[1:]] for chain in chains]
        return self._pricing.waits_for_copies(first, mean_chances(after), self._context)

    def take_surprise(self) -> None:
        """Tell the planner what may be copied after a token that no copy foretold."""
        self._pricing.take_surprise(mean_chances(self._ranked), self._context)

    @property
    def _ranked(self) -> list[list[float]]:
        """The chances of each sequence's copies, the largest first."""
        return [sorted(p.chances[1:], reverse=True) if p else [] for p in self._proposals]

    def with_drafts_to_make(self, shapes: Sequence[BeamShape | None]) -> list[StepDraft]:
        """What to verify where drafts would still have to be made, or are not.

        Args:
            shapes: What would be drafted for each sequence: for some the same, for others nothing.
        """
        ranked = self._ranked
        shape = next(filter(None, shapes), None)
        if shape is not None:
            share = self._pricing.share(shape, mean_chances(ranked), self._context)
            if share.guessed:
                return self._grafts(shapes, share)
        if not self._pricing.num_nodes(mean_chances(ranked), self._context):
            return [StepDraft() for _ in self._roots]  # mostly so, and soon known
        nothing = [None for _ in self._roots]
        return self.with_known_drafts(nothing, nothing, [[1.0] for _ in self._roots])

    def _grafts(self, shapes: Sequence[BeamShape | None], share: CopyShare) -> list[StepDraft]:
        """Copies beside drafts that the sequences' sources will make."""
        result = []
        for shape, root, proposal in zip(shapes, self._roots, self._proposals, strict=True):
            if proposal is None or not share.copied or self._chain:
                result.append(StepDraft(shape))
                continue
            copied = Candidates(root, None, [1.0], proposal).first(share.copied)
            if shape is None:
                result.append(StepDraft(None, copied.on_device, copied=copied.copied))
                continue
            guessed = None if share.guessed == shape.nodes else share.guessed
            result.append(StepDraft(shape, None, copied.tree, guessed))
        return result

    def with_known_drafts(
        self,
        shapes: Sequence[BeamShape | None],
        guesses: Sequence[HostTree | None],
        chances: Sequence[Sequence[float]],
    ) -> list[StepDraft]:
        """What to verify where all drafts are known already.

        Args:
            shapes: What was drafted for each sequence.
            guesses: The drafts.
            chances: Of their nodes to be accepted, 1 for the root.
        """
        candidates = [
            Candidates(root, guessed, own, proposal, chain=self._chain)
            for root, guessed, own, proposal in zip(
                self._roots, guesses, chances, self._proposals, strict=True
            )
        ]
        ranked = [candidate.chances for candidate in candidates]
        count = self._pricing.num_nodes(mean_chances(ranked), self._context)
        if not count and not any(guesses):
            return [StepDraft() for _ in self._roots]
        trees = [candidate.first(count) for candidate in candidates]
        return [
            StepDraft(shape if guessed else None, tree.on_device, copied=tree.copied)
            for shape, guessed, tree in zip(shapes, guesses, trees, strict=True)
        ]


def copied_on(drafts: Sequence[StepDraft]) -> float:
    """Chance that a step accepts copies to their end, so that the next one copies on; a mean."""
    total = 0.0
    for draft in drafts:
        tree = draft.tree.known if draft.tree else None
        if tree is not None and draft.copied:
            deepest = max(draft.copied, key=tree.depths.__getitem__)
            total += math.exp(tree.log_probs[deepest])
    return total / max(1, len(drafts))


def mean_chances(chances: Sequence[Sequence[float]]) -> list[float]:
    """Chances by rank, mean over sequences; a node that one does not have is not accepted."""
    return [sum(rank) / len(chances) for rank in zip_longest(*chances, fillvalue=0.0)]


def _log(chance: float) -> float:
    return math.log(max(chance, 1e-30))
