"""Several processes that decode the same texts: rank 0 says what, and when it has had enough.

A forward of a shared target needs every rank, so all take the same steps. In a script each rank
runs the same calls, and nothing has to be said. Where a person sits at rank 0 (the chat), the
others follow: they hear of each text before it begins, and before each step whether there is one.
"""

from __future__ import annotations

import hashlib
import json
import weakref
from collections.abc import Sequence as Tokens
from dataclasses import asdict, replace
from typing import Any, Protocol

from ..cache.prompt_cache import PromptCache
from ..cache.quantized import CacheOptions
from ..drafting.shape import BeamShape
from ..errors import RedrafterError, SharedError
from ..ranges import prompt_ids
from ..sampling import SamplingConfig
from ..system.ranks import Ranks
from .config import DecodingConfig

_GOES_ON, _ENDS = 1.0, 0.0
# Where in a text a rank is, which begins what it says there; equally many numbers follow, so that
# ranks at different places still understand each other.
_STEERED, _CALLED, _READ, _STEPPED = 0.0, 1.0, 2.0, 3.0
_SAME_CALLS = "make the same calls on every rank"


class Text(Protocol):
    """What is said of a text, see ``engine.sequence.Sequence``."""

    prompt: list[int]
    config: DecodingConfig
    cache: PromptCache


class Steering(Protocol):
    """Who says whether a text goes on.

    Attributes:
        announces: Whether rank 0 says what is decoded; else every rank's own script does.
    """

    announces: bool

    def begin(self, sequence: Text, *, plans: bool) -> None:
        """The text begins: its prompt is about to be read.

        Args:
            sequence: The text.
            plans: Whether the model's planner chooses its shapes.
        """

    def goes_on(self) -> bool:
        """Whether there is to be another step."""

    def ends(self, handed_out: int) -> int:
        """The text is over; given and returned is how many tokens were handed out."""


class Alone:
    """The steering of one process, or of ranks that run the same script: nothing is said."""

    announces = False

    def begin(self, sequence: Text, *, plans: bool) -> None:
        """Nothing to say."""

    def goes_on(self) -> bool:
        """Always."""
        return True

    def ends(self, handed_out: int) -> int:
        return handed_out


class Leader:
    """Rank 0's part: tells the others what it decodes.

    Args:
        ranks: All processes.
    """

    announces = True

    def __init__(self, ranks: Ranks):
        self._ranks = ranks
        self._numbers: weakref.WeakKeyDictionary[PromptCache, int] = weakref.WeakKeyDictionary()
        self._dropped: list[int] = []
        self._next = 0
        self._begun = self._resting = False

    def rest(self) -> None:
        """Nothing is decoded for a while: the others sleep until something is."""
        if self._ranks.can_rest and not self._resting:
            # The exchange that says so is one that rank 0 has made by then.
            message = {"rest": self._ranks.progress + 1}
            self._ranks.share(json.dumps(message).encode())
            self._resting = True

    def _rouse(self) -> None:
        if self._resting:
            self._resting = False
            self._ranks.rouse()

    def begin(self, sequence: Text, *, plans: bool) -> None:
        """Announce a text; every rank decodes it from here on.

        Raises:
            RedrafterError: If its configuration holds functions, which cannot be sent.
        """
        config, cache = sequence.config, sequence.cache
        if config.sampler or config.logits_processors or config.constraint:
            raise RedrafterError(
                "sampler, logits_processors and json_schema cannot be sent to other processes: run "
                "the same script on every rank, or leave them out."
            )
        if cache not in self._numbers:
            self._next += 1
            self._numbers[cache] = self._next
            weakref.finalize(cache, self._dropped.append, self._next)
        dropped, self._dropped[:] = list(self._dropped), []
        message = {
            "prompt": sequence.prompt,
            "config": _encode(config),
            "cache": self._numbers[cache],
            "dropped": dropped,
            "plans": plans,
        }
        self._rouse()
        self._ranks.share(json.dumps(message).encode())
        self._begun = True
        same_beginning(self._ranks, cache)

    def goes_on(self) -> bool:
        """Say that there is another step."""
        self._ranks.gather([_STEERED, _GOES_ON, 0.0])
        return True

    def ends(self, handed_out: int) -> int:
        """Say that the text is over, by itself or because nobody reads it any more."""
        if self._begun:
            self._begun = False
            self._ranks.gather([_STEERED, _ENDS, float(handed_out)])
            self.rest()
        return handed_out

    def leave(self) -> None:
        """Let the others go."""
        self._rouse()
        self._ranks.share(b"null")


class Follower:
    """The part of the other ranks: does what rank 0 announces.

    Args:
        ranks: All processes.
    """

    announces = True

    def __init__(self, ranks: Ranks):
        self._ranks = ranks
        self._handed_out: int | None = None

    def hear(self) -> dict[str, Any] | None:
        """The next text that rank 0 announces; None when it leaves."""
        message: dict[str, Any] | None = json.loads(self._ranks.share(b"", patient=True))
        while message is not None and "rest" in message:
            self._ranks.rest(message["rest"])
            message = json.loads(self._ranks.share(b"", patient=True))
        if message is not None:
            message["config"] = _decode(message["config"])
        return message

    def begin(self, sequence: Text, *, plans: bool) -> None:  # noqa: ARG002
        """Begin as rank 0 does."""
        self._handed_out = None
        same_beginning(self._ranks, sequence.cache)

    def goes_on(self) -> bool:
        """Whether rank 0 takes another step."""
        rows = self._ranks.gather([_STEERED, _GOES_ON, 0.0], patient=True)
        _, goes_on, handed_out = rows[0]
        if goes_on == _ENDS:
            self._handed_out = int(handed_out)
        return goes_on == _GOES_ON

    def ends(self, handed_out: int) -> int:
        """How many tokens rank 0 handed out."""
        if self._handed_out is None:
            self.goes_on()
        return handed_out if self._handed_out is None else self._handed_out


def check_same_text(
    ranks: Ranks | None, prompt: Tokens[int], config: DecodingConfig, **more: Any
) -> None:
    """Refuse ranks of which one was given another text to decode than rank 0.

    Args:
        ranks: All processes; None for one alone.
        prompt: Token ids.
        config: How to decode; functions in it are counted, but cannot be compared.
        **more: What else decides which steps are taken, as JSON has it.

    Raises:
        RedrafterError: On every rank.
    """
    if ranks is None:
        return
    functions = config.sampler is None, config.constraint is None, len(config.logits_processors)
    said = prompt_ids(prompt, "The prompt"), [_encode(config), functions, more]
    rows = _compared(ranks, _CALLED, *(_digest(json.dumps(part)) for part in said))
    for place, what in enumerate(("another prompt", "other options")):
        if (rank := _differing(rows, place)) is not None:
            raise SharedError(
                f"Rank {rank} was given {what} than rank 0: {_SAME_CALLS} (model.ranks.share sends "
                "what only rank 0 knows)."
            )


def check_same_cache(ranks: Ranks | None, prompt: Tokens[int], held: int) -> None:
    """Refuse ranks of which one's cache holds more or less of a prompt than rank 0's.

    Args:
        ranks: All processes, which run the same script; None for one alone.
        prompt: Token ids, about to be read.
        held: So many of them the cache holds, and can be gone on from.

    Raises:
        RedrafterError: On every rank.
    """
    if ranks is None:
        return
    rows = _compared(ranks, _READ, float(_checksum(prompt)), float(held))
    if (rank := _differing(rows, 0)) is not None:
        raise SharedError(f"Rank {rank} reads another prompt than rank 0: {_SAME_CALLS}.")
    if (rank := _differing(rows, 1)) is not None:
        raise SharedError(
            f"Rank {rank}'s cache holds another text than rank 0's: give every rank the cache that "
            "the same calls have filled, or none."
        )


def _compared(ranks: Ranks, place: float, first: float, second: float) -> list[list[float]]:
    """Two numbers of every rank's, all of which have to be at the same place of a text.

    Raises:
        RedrafterError: On every rank, if one is at another.
    """
    rows = ranks.gather([place, first, second])
    if (rank := _differing(rows, 0)) is not None:
        raise SharedError(
            f"Rank {rank} has made another call than rank 0, or has read further in a text or less "
            f"far: {_SAME_CALLS}, and read as many tokens."
        )
    return [row[1:] for row in rows]


def _differing(rows: list[list[float]], place: int) -> int | None:
    """The first rank that says something else than rank 0 there."""
    others = (rank for rank, row in enumerate(rows) if row[place] != rows[0][place])
    return next(others, None)


def _digest(text: str) -> float:
    """A digest that float64 keeps."""
    return float(int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big"))


def same_beginning(ranks: Ranks, cache: PromptCache) -> None:
    """Empty a cache unless it holds the same tokens on every rank."""
    rows = ranks.gather([float(_checksum(cache.tokens))])
    if any(row != rows[0] for row in rows):
        cache.rewind(0)


def agreed_seconds(ranks: Ranks | None, seconds: float, tokens: Tokens[int]) -> float:
    """Rank 0's measurement of a step that all have taken.

    Args:
        ranks: All processes; None for one alone.
        seconds: This rank's.
        tokens: What the step added to the text, which has to be the same everywhere.

    Raises:
        RedrafterError: If ranks made different tokens, which different calls, functions, models or
            releases do.
    """
    if ranks is None:
        return seconds
    rows = _compared(ranks, _STEPPED, float(_checksum(tokens)), seconds)
    if (rank := _differing(rows, 0)) is not None:
        raise SharedError(
            f"Rank {rank} chose other tokens than rank 0: {_SAME_CALLS}, with functions that "
            "choose alike, and give all machines the same model files and the same releases of "
            "mlx and mlx-lm."
        )
    return rows[0][1]


def shared_seed(ranks: Ranks | None, sampling: SamplingConfig) -> SamplingConfig:
    """The same options with a seed; where none is named, rank 0 draws it for all."""
    seeded = sampling.seeded()
    if ranks is None or sampling.seed is not None:
        return seeded
    assert seeded.seed is not None
    return replace(seeded, seed=ranks.share_int(seeded.seed))


def _checksum(tokens: Tokens[int]) -> int:
    check = len(tokens)
    for token in tokens:
        check = (check * 1_000_003 + token + 1) % (1 << 48)
    return check


def _encode(config: DecodingConfig) -> dict[str, Any]:
    return {
        "max_tokens": config.max_tokens,
        "sampling": asdict(config.sampling),
        "draft": config.draft,
        "copy": config.copy,
        "remember": config.remember,
        "beam": asdict(config.beam),
        "eos_token_ids": sorted(config.eos_token_ids),
        "prefill_step_size": config.prefill_step_size,
        "cache_options": asdict(config.cache_options),
    }


def _decode(values: dict[str, Any]) -> DecodingConfig:
    return DecodingConfig(
        **{
            **values,
            "sampling": SamplingConfig(**values["sampling"]),
            "beam": BeamShape(**values["beam"]),
            "eos_token_ids": frozenset(values["eos_token_ids"]),
            "cache_options": CacheOptions(**values["cache_options"]),
        }
    )
