"""Measuring plain decoding on this machine, so that a speed-up is never assumed."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import closing

from ...cache.prompt_cache import PromptCache
from ...engine.config import DecodingConfig
from ...engine.decode import decode
from ...engine.model import SpeculativeModel
from ...sampling import SamplingConfig
from .answer import Baseline
from .session import Session

TOKENS = 48
SECONDS = 1.5
# Not timed: on a GPU the first tokens also compile kernels.
WARM_UP = 4
OPENING = "Hello, what can you tell me?"
# Measure again when the conversation has outgrown the last measurement this much.
GROWTH, SLACK = 2, 512


def measure_plain(
    model: SpeculativeModel,
    prompt: Sequence[int],
    sampling: SamplingConfig,
    cache: PromptCache | None = None,
) -> Baseline | None:
    """Decode plainly for a moment.

    Args:
        model: The model.
        prompt: Tokens to continue from.
        sampling: How tokens are chosen, since that costs time too.
        cache: Caches that hold (most of) the prompt, None for new ones.

    Returns:
        The speed; None where not even a few tokens came in time.
    """
    config = DecodingConfig(max_tokens=WARM_UP + TOKENS, sampling=sampling, draft=False)
    started = now = 0.0
    tokens = 0
    with closing(decode(model, prompt, config, cache=cache)) as stream:
        for count, _ in enumerate(stream, start=1):
            now = time.perf_counter()
            if count == WARM_UP:
                started = now
            elif count > WARM_UP:
                tokens = count - WARM_UP
                if now - started > SECONDS:
                    break
    return Baseline(tokens / (now - started), tokens, len(prompt)) if tokens else None


def sampling_of(session: Session) -> SamplingConfig:
    """The session's settings as the engine's."""
    return session.settings.sampling.seeded()


def measure_opening(session: Session) -> None:
    """Measure where no conversation is under way, with caches of its own."""
    prompt = session.encode([{"role": "user", "content": OPENING}])
    session.take_baseline(measure_plain(session.model, prompt, sampling_of(session)))


def outgrown(session: Session) -> bool:
    """Whether the conversation is so much longer by now that plain decoding is slower too."""
    if session.baseline is None:
        return False
    return len(session.cache) > GROWTH * session.baseline.context + SLACK


def measure_again(session: Session) -> None:
    """Measure at the end of the conversation; its caches are used and left as they were."""
    held = list(session.cache.tokens)
    sampling = sampling_of(session)
    session.take_baseline(measure_plain(session.model, held, sampling, session.cache))
    session.cache.rewind(min(len(held), len(session.cache)))
