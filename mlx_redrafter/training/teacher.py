"""One forward pass of the target over whole rows gives the teacher of every draft step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import mlx.core as mx
import numpy as np
from mlx_lm.models.cache import make_prompt_cache

from ..drafting.drafter import Drafter
from ..errors import RedrafterError
from ..system.device import on_gpu
from ..target.output_head import OutputHead
from .config import DistillationConfig
from .data import TokenRow
from .features import Batch, Features, drawn

LENGTH_STEP = 16  # rows are padded to a multiple, so that few shapes occur
SIZES_PER_OCTAVE = 8  # of padded lengths
SMALLEST_PROBABILITY = 1e-9  # its logarithm fits float16 with room
MAX_LOGITS = 2**26  # elements of one forward pass's logits
CPU_TOKENS = 256  # of one forward pass on a CPU: what ends a run is not heeded before it is over


class Teacher(Protocol):
    """What is asked of the target, see ``target.Target``."""

    model: Any
    hidden_size: int
    vocab_size: int

    @property
    def output_head(self) -> OutputHead | None:
        """Where the output rows are."""

    def embed(self, tokens: mx.array) -> mx.array:
        """Embeddings (..., H) of token ids (...)."""

    def teach(
        self, tokens: mx.array, cache: list[Any] | None = None, layers: Sequence[int] = ()
    ) -> tuple[mx.array, mx.array]:
        """(logits (B, T, V), final hidden states (B, T, H)) of a plain causal pass over (B, T).

        With mlx-lm's caches it goes on after the tokens that they hold.
        """


def draft_tokens(drafter: Drafter) -> np.ndarray:
    """Target tokens of the head's columns, (head_size,) int32."""
    return np.array(drafter.target_tokens(mx.arange(drafter.config.head_size)))


def column_map(tokens: np.ndarray, vocab_size: int) -> np.ndarray:
    """Head column of each target token, -1 for none, (vocab_size,) int32."""
    columns = np.full(vocab_size, -1, dtype=np.int32)
    columns[tokens] = np.arange(len(tokens), dtype=np.int32)
    return columns


def _needed(answer: np.ndarray) -> np.ndarray:
    """Positions that teach an answer token or from which its first guess is made."""
    needed = np.zeros(len(answer), dtype=bool)
    needed[:-1] = answer[1:]
    needed[:-2] |= answer[2:]
    return needed


def _batches(lengths: np.ndarray, batch_tokens: int, vocab_size: int) -> Iterator[np.ndarray]:
    """Row numbers of similar length, each group within the bounds of a pass."""
    order = np.argsort(lengths, kind="stable")
    budget = max(1, min(batch_tokens, _pass_tokens(vocab_size)))
    start = 0
    while start < len(order):
        end = start + 1
        while end < len(order) and (end - start + 1) * padded_length(lengths[order[end]]) <= budget:
            end += 1
        yield order[start:end]
        start = end


def _pass_tokens(vocab_size: int) -> int:
    """Tokens of one forward pass at most."""
    fitting = MAX_LOGITS // vocab_size
    return fitting if on_gpu() else min(fitting, CPU_TOKENS)


def padded_length(length: int) -> int:
    """A row's length with padding, one of few: at most an eighth longer, or 15 tokens."""
    octave = 1 << (int(length) - 1).bit_length()  # the power of two that it fits
    step = max(LENGTH_STEP, octave // (2 * SIZES_PER_OCTAVE))
    return -(-int(length) // step) * step


def restrict(
    logits: mx.array, tokens: mx.array | None, top_k: int
) -> tuple[mx.array, mx.array, mx.array, mx.array]:
    """Teacher of M positions: (columns (M, K), log_probs (M, K), rest (M,), inside (M,)).

    Args:
        logits: (M, V) float32, divided by the temperature.
        tokens: The head's target tokens, None for all.
        top_k: K.
    """
    # One softmax serves all of it: exponentials are what takes longest on a CPU.
    probs = mx.softmax(logits, axis=-1)
    inside = mx.ones(probs.shape[:1])
    if tokens is not None:
        probs = mx.take(probs, tokens, axis=-1)
        inside = probs.sum(-1)
    head_size = probs.shape[-1]
    columns = mx.argpartition(probs, kth=head_size - top_k, axis=-1)[:, head_size - top_k :]
    values = mx.take_along_axis(probs, columns, axis=-1)
    order = mx.argsort(-values, axis=-1)
    columns = mx.take_along_axis(columns, order, axis=-1)
    values = mx.take_along_axis(values, order, axis=-1) / mx.maximum(inside, 1e-30)[:, None]
    log_probs = mx.log(mx.maximum(values, SMALLEST_PROBABILITY))
    rest = mx.zeros_like(inside) if top_k == head_size else mx.maximum(1 - values.sum(-1), 0)
    return columns, log_probs, rest, inside


class _Layout:
    """Rows laid end to end, and which of their positions are kept where."""

    def __init__(self, rows: Sequence[TokenRow]):
        self.rows = rows
        self.lengths = np.array([len(row.tokens) for row in rows])
        self.starts = np.concatenate([[0], np.cumsum(self.lengths)])
        self.needed = np.concatenate([_needed(row.answer) for row in rows])
        self.slot = np.where(self.needed, np.cumsum(self.needed) - 1, -1).astype(np.int32)

    def group(self, numbers: np.ndarray) -> tuple[mx.array, np.ndarray, np.ndarray]:
        """(padded tokens (B, T), kept positions in B * T, their slots) of these rows."""
        width = padded_length(self.lengths[numbers].max())
        padded = np.zeros((len(numbers), width), dtype=np.int32)
        where, into = [], []
        for line, i in enumerate(numbers):
            padded[line, : self.lengths[i]] = self.rows[i].tokens
            places = np.flatnonzero(self.needed[self.starts[i] : self.starts[i + 1]])
            where.append(line * width + places)
            into.append(self.slot[self.starts[i] + places])
        return mx.array(padded), np.concatenate(where), np.concatenate(into)


def position_bytes(hidden_size: int, top_k: int, head_size: int, dtype: Any) -> int:
    """Bytes that one kept position takes."""
    arrays = _kept_arrays(1, hidden_size, min(top_k, head_size), head_size, dtype)
    return sum(int(array.nbytes) for array in arrays.values())


def kept_positions(rows: Sequence[TokenRow]) -> int:
    """Positions of which features are kept."""
    return sum(int(_needed(row.answer).sum()) for row in rows)


def _kept_arrays(
    count: int, hidden_size: int, top_k: int, head_size: int, dtype: Any
) -> dict[str, np.ndarray]:
    return {
        "hidden": np.empty((count, hidden_size), dtype=dtype),
        "columns": np.empty((count, top_k), dtype=np.uint16 if head_size <= 2**16 else np.int32),
        "log_probs": np.empty((count, top_k), dtype=np.float16),
        "rest": np.empty(count, dtype=np.float32),
        "best": np.empty(count, dtype=np.int32),
        "inside": np.empty(count, dtype=np.float32),
    }


def _extract(
    logits: mx.array,
    hidden: mx.array,
    where: mx.array,
    restricted: mx.array | None,
    top_k: int,
    temperature: float,
) -> dict[str, np.ndarray]:
    """The target's view of the positions ``where``; ``best`` is a token of the target."""
    scores = mx.take(logits.reshape(-1, logits.shape[-1]), where, axis=0).astype(mx.float32)
    states = mx.take(hidden.reshape(-1, hidden.shape[-1]), where, axis=0).astype(mx.float32)
    columns, log_probs, rest, inside = restrict(scores / temperature, restricted, top_k)
    found = {
        "hidden": states,
        "columns": columns,
        "log_probs": log_probs,
        "rest": rest,
        "best": mx.argmax(scores, axis=-1),
        "inside": inside,
    }
    mx.eval(found)
    return {name: np.array(value) for name, value in found.items()}


def _passes(
    target: Teacher, padded: mx.array, where: np.ndarray
) -> Iterator[tuple[mx.array, mx.array, np.ndarray, np.ndarray]]:
    """(logits, hidden, kept positions in them, which entries of ``where`` those are) of rows.

    Rows with more tokens than a pass may have go in pieces, with caches.
    """
    count, width = padded.shape
    piece = max(LENGTH_STEP, _pass_tokens(target.vocab_size) // count)
    if width <= piece:
        logits, hidden = target.teach(padded)
        yield logits, hidden, where, np.arange(len(where))
        return
    cache = make_prompt_cache(target.model)
    line, column = where // width, where % width
    for start in range(0, width, piece):
        logits, hidden = target.teach(padded[:, start : start + piece], cache)
        chosen = np.flatnonzero((column >= start) & (column < start + piece))
        if len(chosen):
            inner = line[chosen] * logits.shape[1] + column[chosen] - start
            yield logits, hidden, inner, chosen
        mx.eval([c.state for c in cache])


class FeatureExtractor:
    """The target's view of rows, as a drafter with a certain vocabulary is taught it.

    Args:
        target: Frozen; only called.
        drafter: Gives the draft vocabulary; only read.
        config: ``top_k``, ``temperature`` and ``batch_tokens`` are read.
        dtype: NumPy type in which hidden states are kept.
    """

    def __init__(self, target: Teacher, drafter: Drafter, config: DistillationConfig, dtype: Any):
        self.target, self.config, self.dtype = target, config, dtype
        self.vocabulary = draft_tokens(drafter)
        self.top_k = min(config.top_k, len(self.vocabulary))
        self.to_column = column_map(self.vocabulary, target.vocab_size)
        full = drafter.config.draft_vocab_size is None
        self._restricted = None if full else mx.array(self.vocabulary)

    @property
    def position_bytes(self) -> int:
        """Bytes that one kept position takes."""
        return position_bytes(self.target.hidden_size, self.top_k, len(self.vocabulary), self.dtype)

    def arrays(
        self, rows: Sequence[TokenRow], progress: Callable[[int], None] | None = None
    ) -> dict[str, np.ndarray]:
        """What is kept of the rows' positions, by the names of ``Features``.

        Args:
            rows: At least one.
            progress: Called with the rows done after each forward pass; may end the work.

        Raises:
            RedrafterError: If the hidden states do not fit ``dtype``.
        """
        layout = _Layout(rows)
        count, size = int(layout.needed.sum()), len(self.vocabulary)
        kept = _kept_arrays(count, self.target.hidden_size, self.top_k, size, self.dtype)
        done = 0
        for numbers in _batches(layout.lengths, self.config.batch_tokens, self.target.vocab_size):
            padded, where, into = layout.group(numbers)
            for logits, hidden, inner, chosen in _passes(self.target, padded, where):
                found = _extract(
                    logits, hidden, mx.array(inner), self._restricted, self.top_k,
                    self.config.temperature,
                )  # fmt: skip
                found["best"] = self.to_column[found["best"]]
                with np.errstate(over="ignore"):
                    for name, values in found.items():
                        kept[name][into[chosen]] = values
                if progress is not None:
                    progress(done)
            done += len(numbers)
            mx.clear_cache()  # rows differ in length, and buffers of all sizes would pile up
            if progress is not None:
                progress(done)
        if not np.isfinite(kept["hidden"]).all():
            raise RedrafterError(
                f"The target's hidden states do not fit {np.dtype(self.dtype).name}: "
                "compute them anew for each step (--features stream), which keeps float32."
            )
        return kept

    def features(self, rows: Sequence[TokenRow], kept: dict[str, Any]) -> Features:
        """Rows and what was kept of them, put together."""
        layout = _Layout(rows)
        tokens = np.concatenate([row.tokens for row in rows]).astype(np.int32)
        return Features(
            tokens=tokens,
            answer=np.concatenate([row.answer for row in rows]),
            row_end=np.repeat(layout.starts[1:], layout.lengths),
            labels=self.to_column[tokens],
            slot=layout.slot,
            head_size=len(self.vocabulary),
            **kept,
        )


def compute_features(
    target: Teacher,
    drafter: Drafter,
    rows: Sequence[TokenRow],
    config: DistillationConfig,
    *,
    dtype: Any = np.float16,
    progress: Callable[[int, int], None] | None = None,
) -> Features:
    """Run the target once over all rows and keep what training reads.

    Args:
        target: Frozen; only called.
        drafter: Gives the draft vocabulary; only read.
        rows: See ``data.tokenize``.
        config: ``top_k``, ``temperature`` and ``batch_tokens`` are read.
        dtype: NumPy type in which hidden states are kept.
        progress: Called with (rows done, rows in all) after each forward pass.

    Returns:
        About ``2 * hidden_size + 4 * top_k`` bytes a position with float16.

    Raises:
        RedrafterError: If the hidden states do not fit ``dtype``.
    """
    sight = FeatureExtractor(target, drafter, config, dtype)
    told = None if progress is None else lambda done: progress(done, len(rows))
    return sight.features(rows, sight.arrays(rows, told))


class StreamedBatches:
    """Batches for which the target runs again each time, where features would not fit in memory.

    Each is drawn from ``config.batch_size`` rows; rows are shuffled again each epoch.

    Args:
        target: Frozen; only called.
        drafter: Gives the draft vocabulary.
        rows: See ``data.tokenize``.
        config: The run.
    """

    def __init__(
        self,
        target: Teacher,
        drafter: Drafter,
        rows: Sequence[TokenRow],
        config: DistillationConfig,
    ):
        self.target, self.drafter, self.config = target, drafter, config
        self.rows = [row for row in rows if row.answer[2:].any()]
        if not self.rows:
            raise RedrafterError("The data has no answers to learn from: pass more of it.")

    def batch(self, index: int) -> Batch:
        """Batch ``index`` of the run, the same on every call; anchors repeat if they are few."""
        config = self.config
        chosen = drawn(len(self.rows), index * config.batch_size, config.batch_size, config.seed)
        rows = [self.rows[i] for i in chosen]
        features = compute_features(self.target, self.drafter, rows, config, dtype=np.float32)
        anchors = np.random.default_rng((config.seed, index)).permutation(features.anchors)
        anchors = np.resize(anchors, config.positions_per_step)
        return features.batch(anchors, config.unroll, self.drafter.config.lookback)
