"""A given number of prompts decoded together, from the first to the last."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as Tokens
from dataclasses import replace
from typing import Any

from ..errors import RedrafterError
from ..ranges import several
from .batch import DEFAULT_BATCH, Engine
from .checks import checked_prompt
from .config import DecodingConfig
from .events import NewToken, SequenceFailed
from .model import SpeculativeModel, check_model
from .shape_planner import ShapePlanner
from .statistics import AcceptanceStats
from .step import DecodedToken


class BatchDecoder:
    """Decodes prompts together; iterate over it once.

    Prompts are read one by one, and join as soon as there is room. A text leaves with its last
    token, or when :meth:`stop` is called. One that fails leaves too; that is raised when the others
    have ended.

    Args:
        model: Target and drafter; the target's texts have to be verifiable as trees.
        prompts: Token ids, each at least one.
        config: What to do, for all or one for each.
        max_tokens: For each prompt, instead of the configuration's.
        batch_size: Texts under way at most.
        planner: Chooses each step's beam shape for all texts, instead of ``config.beam``; the one
            that it has for as many texts as are under way.

    Attributes:
        sequences: The texts.
        stats: Counts of each text. Seconds are those of whole steps, which the texts share.
        prompt_seconds: For each prompt the time to its first token, 0 before.

    Raises:
        RedrafterError: If an argument is out of its range, or the model's texts have to be decoded
            one by one.
    """

    def __init__(
        self,
        model: SpeculativeModel,
        prompts: Tokens[Tokens[int]],
        config: DecodingConfig | Tokens[DecodingConfig] | None = None,
        *,
        max_tokens: Tokens[int] | None = None,
        batch_size: int = DEFAULT_BATCH,
        planner: ShapePlanner | None = None,
    ):
        check_model(model)
        prompts = several(prompts, "prompts", "a list of lists of token ids")
        configs = _configs(config, max_tokens, len(prompts))
        _check(model, prompts, configs)
        model.target.check_batches()
        self.stats = [AcceptanceStats() for _ in prompts]
        self.prompt_seconds = [0.0 for _ in prompts]
        self._engine = Engine(model, batch_size=batch_size, planner=planner, prompts_first=True)
        for prompt, own, stats in zip(prompts, configs, self.stats, strict=True):
            self._engine.add(prompt, own, stats=stats)
        self.sequences = [self._engine.sequence(place) for place in range(len(prompts))]
        self._stopped: set[int] = set()
        self._failures: list[Exception] = []

    def stop(self, index: int) -> None:
        """Hand out no more tokens of a text."""
        self._stopped.add(index)
        self._engine.stop(index)

    def __iter__(self) -> Iterator[tuple[int, DecodedToken]]:
        """Yield (place of the prompt, token); a text's last token carries a finish reason.

        Raises:
            RedrafterError: At the end, if a text failed: the first of them.
        """
        try:
            while self._engine.busy:
                yield from self._step()
            if self._failures:
                raise self._failures[0]
        finally:
            for index in range(len(self.stats)):
                self._engine.stop(index)

    def _step(self) -> Iterator[tuple[int, DecodedToken]]:
        for event in self._engine.step():
            if event.sequence in self._stopped:
                continue
            if isinstance(event, SequenceFailed):
                self._failures.append(event.error)
            if isinstance(event, NewToken):
                self.prompt_seconds[event.sequence] = event.prompt_seconds
                yield event.sequence, event.decoded


def _configs(
    config: DecodingConfig | Tokens[DecodingConfig] | None,
    max_tokens: Tokens[int] | None,
    count: int,
) -> list[DecodingConfig]:
    """A configuration for each prompt."""
    if config is None or isinstance(config, DecodingConfig):
        configs = [config or DecodingConfig()] * count
    else:
        wanted = "a DecodingConfig, or a list with one for each prompt"
        configs = several(config, "config", wanted)
        if not all(isinstance(one, DecodingConfig) for one in configs):
            raise RedrafterError(f"config has to be {wanted}.")
    own: Any = max_tokens
    own = own.tolist() if hasattr(own, "tolist") else own
    if own is not None:
        wanted = "a list of numbers, one for each prompt; config has one for all"
        own = several(None if isinstance(own, bytes) else own, "max_tokens", wanted)
    for name, given in (("config", configs), ("max_tokens", own)):
        if given is not None and len(given) != count:
            raise RedrafterError(
                f"{name} has {len(given)} entries for {count} prompts: give one for each."
            )
    limits = [one.max_tokens for one in configs] if own is None else own
    return [replace(one, max_tokens=limit) for one, limit in zip(configs, limits, strict=True)]


def _check(
    model: SpeculativeModel, prompts: Tokens[Tokens[int]], configs: Tokens[DecodingConfig]
) -> None:
    for place, prompt in enumerate(prompts):
        checked_prompt(prompt, model.target.vocab_size, f"prompts[{place}]")
    options = [config.cache_options for config in configs]
    if any(one.kv_bits is not None or one.max_kv_size is not None for one in options):
        raise RedrafterError(
            "Prompts that are decoded together keep all keys and values as they are: leave kv_bits "
            "and max_kv_size out, or decode the prompts one by one."
        )
