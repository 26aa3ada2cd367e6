"""What is done to logits before a token is chosen, as mlx-lm does it, for all nodes of a tree."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import mlx.core as mx

from .errors import RedrafterError
from .system.device import on_gpu
from .tree import BoolArray, DraftTree, HostTree

# "repetition", "presence" or "frequency", its size, and how many tokens it looks at
Penalty = tuple[str, float, int]
# (tokens (k,), logits (1, vocab_size)) -> logits, as mlx-lm's
LogitsProcessor = Callable[[mx.array, mx.array], mx.array]
# ``largest``: entries of a block, and rows that are sorted as they are, in a single launch.
BLOCK = 128
SHORT_ROW = 2048
# Columns that a maximum is taken down at once on a CPU.
COLUMNS = 64


class Constraint(Protocol):
    """Says which tokens may come next in one text, such as those that a grammar allows.

    Unlike a logits processor it is asked about branches that may never become text, so that the
    choices after a whole tree take one evaluation; and while the target computes its logits.
    """

    def allowed(self, text: Sequence[int], tree: HostTree, vocab_size: int) -> BoolArray:
        """Which tokens may follow each node of a tree.

        Args:
            text: Prompt and text before the tree's root. From call to call it grows by accepted
                nodes of the trees, if at all: a step may be taken again.
            tree: The root, which is part of the text, and what may follow.
            vocab_size: Number of logits.

        Returns:
            bool (n, vocab_size); a text that gets to a node whose row has no token fails there. Of
            a node that is not allowed itself, any.
        """
        ...

    def failure(self, text: Sequence[int]) -> RedrafterError | None:
        """Why nothing may follow a text, which it has been asked about; None where something may.

        Args:
            text: Prompt and text, to its last token.
        """
        ...


def reported_logprobs(
    logits: mx.array, tokens: mx.array, count: int | bool
) -> tuple[mx.array, mx.array | None, mx.array | None, mx.array | None]:
    """Log-probabilities of the chosen tokens, of the ``count`` likeliest, and of all.

    Args:
        logits: (n, vocab_size).
        tokens: Chosen, int (n,).
        count: True for all instead of the likeliest.

    Returns:
        float32 (n,); tokens (n, count) and theirs, None where there are none; (n, vocab_size),
        None where not all are wanted.
    """
    logits = logits.astype(mx.float32)
    logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    chosen = mx.take_along_axis(logprobs, tokens[:, None], axis=-1)[:, 0]
    if count is True:
        return chosen, None, None, logprobs
    count = min(count, logits.shape[-1])
    if not count:
        return chosen, None, None, None
    top = largest(logprobs, count)
    return chosen, top, mx.take_along_axis(logprobs, top, axis=-1), None


def largest(rows: mx.array, count: int) -> mx.array:
    """Indices of the ``count`` largest of each row, the largest first, int (batch, count).

    mlx's Metal kernels sort whole rows for that, block by block, and its CPU backend partitions
    them. The largest k of a row are in those k blocks of it whose own largest entries are largest:
    one reduction finds these, and little is left to sort.

    Args:
        rows: (batch, m).
        count: At most m. Of entries that are equal any may be taken.
    """
    if count == 1:
        return mx.argmax(rows, axis=-1, keepdims=True)
    batch, length = rows.shape
    if length <= max(SHORT_ROW, count * BLOCK):
        return mx.argsort(-rows, axis=-1)[:, :count]
    missing = -length % BLOCK
    if missing:
        rows = mx.pad(rows, [(0, 0), (0, missing)], constant_values=-mx.inf)
    blocks = rows.reshape(batch, -1, BLOCK)
    chosen = largest(mx.max(blocks, axis=-1), count)
    found = mx.take_along_axis(blocks, chosen[..., None], axis=1).reshape(batch, -1)
    best = largest(found, count)
    index = mx.take_along_axis(chosen, best // BLOCK, axis=1) * BLOCK + best % BLOCK
    # Where all else is -inf as well, what was filled up may be among the largest.
    return mx.minimum(index, length - 1) if missing else index


def biased(logits: mx.array, bias: Sequence[tuple[int, float]]) -> mx.array:
    """Logits (n, vocab_size) with numbers added, as mlx-lm's ``logit_bias`` does."""
    places = mx.array([token for token, _ in bias])
    values = mx.array([value for _, value in bias]).astype(logits.dtype)
    return logits.at[:, places].add(values)


def processed(
    logits: mx.array, tokens: mx.array, processors: Sequence[LogitsProcessor]
) -> mx.array:
    """Logits (1, vocab_size) after functions of the caller's, told the text's ``tokens`` (k,).

    Raises:
        RedrafterError: If one returns something else than logits.
    """
    for processor in processors:
        given: object = processor(tokens, logits)
        if not isinstance(given, mx.array) or given.shape != logits.shape:
            shape = f", of shape {given.shape}" if isinstance(given, mx.array) else ""
            raise RedrafterError(
                "logits_processors have to return logits as an mlx array of the shape "
                f"{logits.shape} that they are given, and one returned a "
                f"{type(given).__name__}{shape}."
            )
        logits = given
    return logits


def keep_allowed(logits: mx.array, allowed: mx.array | None) -> mx.array:
    """Logits (n, vocab_size), -inf where ``allowed``, bool of that shape, is false; None: all."""
    if allowed is None:
        return logits
    return mx.where(allowed, logits, mx.array(-mx.inf, logits.dtype))


def exclude_top(
    logprobs: mx.array,
    coin: mx.array,
    *,
    probability: float,
    threshold: float,
    special_tokens: Sequence[int] = (),
) -> mx.array:
    """XTC as mlx-lm has it, with a coin for each row.

    Args:
        logprobs: (..., vocab_size).
        coin: From 0 to 1, (..., 1): a row where it is at most ``probability`` loses its likeliest
            tokens.
        probability: Chance of that.
        threshold: All tokens above this probability are lost but the least likely of them.
        special_tokens: Ids that are never lost.
    """
    probs = mx.softmax(logprobs.astype(mx.float32), axis=-1)
    likely = mx.where(probs > threshold, probs, mx.inf)
    excluded = probs > likely.min(axis=-1, keepdims=True)
    if special_tokens:
        excluded[..., mx.array(list(special_tokens))] = False
    return mx.where(excluded & (coin <= probability), -mx.inf, logprobs)


def penalise(
    logits: mx.array, tree: DraftTree, recent: Sequence[int], penalties: Sequence[Penalty]
) -> mx.array:
    """mlx-lm's penalties, each node's for its own history: prompt, accepted text and ancestors.

    Args:
        logits: (n, vocab_size).
        tree: The n nodes.
        recent: Tokens before the root.
        penalties: Which ones, in their order.

    Returns:
        Penalised logits, (n, vocab_size).
    """
    # No window is longer than what there is.
    size = min(max(size for _, _, size in penalties), len(recent) + 1 + tree.max_depth)
    recent = list(recent[-(size - 1) :]) if size > 1 else []
    # Pad in front so that the root stands in column size - 1.
    padding = size - 1 - len(recent)
    before = mx.array([0] * padding + recent, dtype=mx.int32)
    before = mx.broadcast_to(before[None], (len(tree), size - 1))
    line = mx.concatenate([before, tree.path_tokens()], axis=1)
    columns = tree.depths[:, None] + mx.arange(size)[None, :]
    history = mx.take_along_axis(line, columns, axis=1)
    real = columns >= padding
    # Padding repeats the node's own token, which is in the history anyway.
    history = mx.where(real, history, tree.tokens[:, None])
    for kind, penalty, context in penalties:
        logits = _penalise(logits, history[:, -context:], real[:, -context:], kind, penalty)
    return logits


def _penalise(
    logits: mx.array, history: mx.array, real: mx.array, kind: str, penalty: float
) -> mx.array:
    if kind == "frequency":
        rows = mx.arange(logits.shape[0])[:, None]
        # Not a product: a penalty may be infinite in this precision, and that times 0 is no number.
        amounts = mx.where(real, penalty, 0.0).astype(logits.dtype)
        return logits.at[rows, history].subtract(amounts)
    picked = mx.take_along_axis(logits, history, axis=1)
    if kind == "repetition":
        picked = mx.where(picked < 0, picked * penalty, picked / penalty)
    else:
        picked = picked - penalty
    return mx.put_along_axis(logits, history, picked, axis=1)


def below_best(logits: mx.array, tokens: mx.array) -> mx.array:
    """Whether each row's choice is less likely than another token, bool (n,).

    A maximum costs a third of the index of it.
    """
    chosen = mx.take_along_axis(logits, tokens[:, None], axis=-1)[:, 0]
    rest = logits
    if not on_gpu() and logits.shape[-1] % COLUMNS == 0:
        # On a CPU mlx takes maxima down columns many at a time, those along a row one by one.
        rest = mx.max(logits.reshape(len(tokens), -1, COLUMNS), axis=1)
    return chosen < mx.max(rest, axis=-1)
