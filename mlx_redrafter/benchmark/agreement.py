"""Whether two contestants wrote the same, and by how little the choice was decided where not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

import mlx.core as mx

from ..engine.model import SpeculativeModel
from ..noise import noise_rows
from ..sampling import SamplingConfig, scores
from ..tree import DraftTree
from .contestants import Contestant
from .measuring import Round
from .prompts import Prompt


@dataclass(frozen=True)
class Difference:
    """The first difference between two answers to a prompt.

    Attributes:
        prompt: Index of the prompt.
        repeat: The first repeat in which the answers differ.
        position: Tokens of the answer before the difference.
        expected, found: The token of the reference and the other one's; None where an answer ended.
        gap: Score of the best token minus that of the second best, in a forward over what is
            common to both answers. Scores are logits when greedy, in nats; else log-probabilities
            over the temperature plus noise.
        between: Score of the expected token minus that of the found one; None where one ended.
        best: Score of the best token, for the scale: two scores are within rounding where their gap
            is some units of the last place of numbers of this size.
    """

    prompt: int
    repeat: int
    position: int
    expected: int | None
    found: int | None
    gap: float
    between: float | None
    best: float


@dataclass(frozen=True)
class Agreement:
    """How one contestant's texts compare with the reference's.

    Attributes:
        comparable: False where they need not be the same: sampled by mlx-lm, which draws from a
            sequence of random numbers, while here noise belongs to positions.
        identical: Prompts whose answers were the same in every repeat; 0 where not comparable.
        prompts: Prompts in all.
        differences: The first one of each other prompt.
    """

    comparable: bool
    identical: int
    prompts: int
    differences: tuple[Difference, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return asdict(self)


def compare(
    contestant: Contestant,
    reference: str,
    prompts: Sequence[Prompt],
    rounds: Sequence[Round],
    model: SpeculativeModel,
    sampling: SamplingConfig,
) -> Agreement:
    """Compare a contestant's answers in every repeat with the reference's in the first.

    Args:
        contestant: Whose answers.
        reference: Name of the contestant to compare with.
        prompts: What was answered.
        rounds: All repeats.
        model: For the scores at a difference.
        sampling: How tokens were chosen.
    """
    if sampling.temperature > 0 and not contestant.reproducible:
        return Agreement(False, 0, len(prompts))
    differences = []
    for index, prompt in enumerate(prompts):
        expected = rounds[0][reference][index].tokens
        for repeat, answers in enumerate(rounds):
            found = answers[contestant.name][index].tokens
            position = first_difference(expected, found)
            if position is None:
                continue
            context = [*prompt.tokens, *expected[:position]]
            pair = _at(expected, position), _at(found, position)
            gap, between, best = decision(model, context, sampling, *pair)
            differences.append(Difference(index, repeat, position, *pair, gap, between, best))
            break
    return Agreement(True, len(prompts) - len(differences), len(prompts), tuple(differences))


def first_difference(first: Sequence[int], second: Sequence[int]) -> int | None:
    """Index of the first token in which two answers differ; None where they are the same."""
    if tuple(first) == tuple(second):
        return None
    pairs = enumerate(zip(first, second, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(first), len(second)))


def decision(
    model: SpeculativeModel,
    context: Sequence[int],
    sampling: SamplingConfig,
    expected: int | None,
    found: int | None,
) -> tuple[float, float | None, float]:
    """By how much the token after a context is decided.

    Args:
        model: The model, which runs once over the context.
        context: Token ids, at least one.
        sampling: How the token was chosen; its position's noise is part of the scores.
        expected: A token, None for none.
        found: One to compare it with, None for none.

    Returns:
        Best score minus second best, the expected token's score minus the found one's (None where
        there is none), and the best score.
    """
    cache = model.make_cache()
    *before, root = context
    for _ in model.target.fill(before, cache):
        pass
    logits, _ = model.target.verify(DraftTree.root_only(mx.array([root])), cache)
    row = logits[0].astype(mx.float32)
    if sampling.temperature > 0:
        noise = noise_rows(sampling.seed or 0, len(context), 1, model.target.vocab_size)
        row = scores(sampling, logits, noise)[0].astype(mx.float32)
    values = cast("list[float]", row.tolist())
    best, second = sorted(values, reverse=True)[:2]
    known = expected is not None and found is not None
    between = values[expected] - values[found] if known else None  # type: ignore[index]
    return best - second, between, best


def _at(tokens: Sequence[int], position: int) -> int | None:
    return tokens[position] if position < len(tokens) else None
