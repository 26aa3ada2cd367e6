"""Decoding one text: the iterator over its tokens, which keeps its cache consistent to the end."""

from __future__ import annotations

from collections.abc import Callable, Generator
from collections.abc import Sequence as Tokens

from ..cache.prompt_cache import PromptCache
from ..ranges import function_of
from .beginning import check_shape, prefill
from .checks import checked_config
from .config import DecodingConfig
from .lockstep import Alone, Steering, check_same_text
from .loop import DecodingLoop
from .model import SpeculativeModel
from .sequence import Sequence
from .shape_planner import ShapePlanner
from .shared_planner import SharedPlanner, shared
from .statistics import AcceptanceStats
from .step import DecodedToken


def decode(
    model: SpeculativeModel,
    prompt: Tokens[int],
    config: DecodingConfig | None = None,
    *,
    cache: PromptCache | None = None,
    stats: AcceptanceStats | None = None,
    planner: ShapePlanner | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Generator[DecodedToken, None, None]:
    """Decode tokens after a prompt.

    However the iterator ends (end of sequence, max_tokens, an exception, or its consumer closing
    it), the cache then holds the prompt and every token that was handed out except the last.

    Args:
        model: Target and drafter.
        prompt: Token ids, at least one.
        config: What to do.
        cache: Caches of an earlier turn, to resume; only what differs is prefilled.
        stats: Counts to add to.
        planner: Chooses each step's beam shape, or plain decoding, instead of ``config.beam``.
        progress: Called with (prompt tokens done, prompt tokens to do) during prefill.

    Yields:
        Tokens, the end-of-sequence token included; the last one carries a finish reason.

    Raises:
        RedrafterError: If the prompt is empty or holds anything but ids of the vocabulary; and
            while tokens are read, if another text has used the cache since, or nothing can follow.
    """
    return begin(
        model, prompt, config, cache=cache, stats=stats, planner=planner, progress=progress
    )[1]


def begin(
    model: SpeculativeModel,
    prompt: Tokens[int],
    config: DecodingConfig | None = None,
    *,
    cache: PromptCache | None = None,
    stats: AcceptanceStats | None = None,
    planner: ShapePlanner | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Sequence, Generator[DecodedToken, None, None]]:
    """A sequence, and the iterator that decodes it; see :func:`decode`."""
    config = checked_config(model, config)
    function_of(progress, "progress", "a function of (tokens done, tokens to do)")
    if model.leader is None:
        check_same_text(model.ranks, prompt, config, plans=planner is not None, drafts=model.drafts)
    planned = shared(planner, model.planner_lock)
    copied = planned.copied if planned else None
    sequence = Sequence(model, prompt, config, cache=cache, stats=stats, copied=copied)
    check_shape(sequence, planned=planned is not None)
    told = progress or (lambda _done, _total: None)
    return sequence, steered(model, sequence, told, model.leader or Alone(), planned)


def steered(
    model: SpeculativeModel,
    sequence: Sequence,
    progress: Callable[[int, int], None],
    steering: Steering,
    planner: SharedPlanner | None = None,
) -> Generator[DecodedToken, None, None]:
    """Decode a sequence as far as whoever steers lets it; the cache is consistent in any case."""
    loop, handed_out = DecodingLoop(model, planner), 0
    try:
        steering.begin(sequence, plans=planner is not None)
        for done, total in prefill(model, sequence, alike=not steering.announces):
            progress(done, total)
        loop.begin(sequence)
        while sequence.finish_reason is None:
            sequence.check_cache()  # before other ranks are told that a step follows
            if not steering.goes_on():
                break
            for tokens in loop.step().values():
                for token in tokens:
                    handed_out += 1
                    yield token
        if sequence.failure is not None:
            raise sequence.failure
    finally:
        sequence.close(steering.ends(handed_out))
        loop.close()
