"""Several prompts decoded together: one forward a step for all, each accepting what it accepts.

A text goes through the same steps as alone (``decoding.TextLoop``); what is shared is the draft's
beam search, the target's forward and the one evaluation. The text of each prompt is therefore the
one that it has alone, with the noise of its own positions.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import mlx.core as mx

from ..drafting.beam_search import BeamSearch
from ..drafting.shape import BeamShape
from ..errors import RedrafterError
from ..tree import DraftTree
from .decode import CLEAR_CACHE_EVERY, DecodingConfig, TextLoop
from .model import SpeculativeModel
from .shape_planner import ShapePlanner
from .statistics import AcceptanceStats
from .step import DecodedToken, PendingStep, StepRecord

DEFAULT_BATCH = 8


@dataclass
class _Text:
    """One text under way.

    Attributes:
        index: Place of its prompt among all.
        loop: Its own steps.
        root: Its last token, int32 (1,).
        hidden: The hidden state from which that was chosen, (hidden_size,).
        emitted: Tokens handed out.
    """

    index: int
    loop: TextLoop
    root: mx.array
    hidden: mx.array
    emitted: int = 1


class BatchDecoder:
    """Decodes prompts together; iterate over it once.

    Prompts are prefilled one by one, and join as soon as there is room. A text leaves with its last
    token, or when :meth:`stop` is called.

    Args:
        model: Target and drafter; the target's texts have to be verifiable as trees.
        prompts: Token ids, each at least one.
        config: What to do.
        max_tokens: For each prompt, instead of the configuration's.
        batch_size: Texts under way at most.
        planner: Chooses each step's beam shape for all texts, instead of ``config.beam``; the one
            that it has for as many texts as are under way.

    Attributes:
        stats: Counts of each text. Seconds are those of whole steps, which the texts share.
        prompt_seconds: For each prompt the time to its first token, 0 before.

    Raises:
        RedrafterError: If an argument is out of its range, or the model's texts have to be decoded
            one by one.
    """

    def __init__(
        self,
        model: SpeculativeModel,
        prompts: Sequence[Sequence[int]],
        config: DecodingConfig | None = None,
        *,
        max_tokens: Sequence[int] | None = None,
        batch_size: int = DEFAULT_BATCH,
        planner: ShapePlanner | None = None,
    ):
        config = config or DecodingConfig()
        _check(model, prompts, config, max_tokens, batch_size)
        limits = max_tokens or [config.max_tokens] * len(prompts)
        self.stats = [AcceptanceStats() for _ in prompts]
        self.prompt_seconds = [0.0 for _ in prompts]
        self._model = model
        self._configs = [replace(config, max_tokens=limit) for limit in limits]
        self._batch = model.target.make_batch_cache()
        self._prompts = [list(prompt) for prompt in prompts]
        self._size = batch_size
        self._planner = planner if config.draft and model.drafter is not None else None
        self._stopped: set[int] = set()

    def stop(self, index: int) -> None:
        """Hand out no more tokens of a text."""
        self._stopped.add(index)

    def __iter__(self) -> Iterator[tuple[int, DecodedToken]]:
        """Yield (place of the prompt, token); a text's last token carries a finish reason."""
        waiting = deque(range(len(self._prompts)))
        texts: list[_Text] = []
        steps = 0
        while waiting or texts:
            places = [place for place, text in enumerate(texts) if self._goes_on(text)]
            texts = [texts[place] for place in places]
            joining: list[_Text] = []
            while waiting and len(texts) + len(joining) < self._size:
                if waiting[0] in self._stopped:
                    waiting.popleft()
                    continue
                text, first = self._begin(waiting.popleft())
                yield text.index, first
                if first.finish_reason is None and self._goes_on(text):
                    joining.append(text)
            self._compose(places, texts, joining)
            texts = texts + joining
            if texts:
                steps += 1
                yield from self._step(texts)
            if steps % CLEAR_CACHE_EVERY == 0:
                mx.clear_cache()

    def _goes_on(self, text: _Text) -> bool:
        return text.index not in self._stopped

    def _compose(self, places: list[int], texts: list[_Text], joining: list[_Text]) -> None:
        """Bring the caches to the texts at ``places`` and those that join them."""
        if not joining and len(places) == len(self._batch.rows):
            return
        self._batch.compose(places, [text.loop.cache for text in joining])
        for text, row in zip([*texts, *joining], self._batch.rows, strict=True):
            text.loop.cache = row

    def _begin(self, index: int) -> tuple[_Text, DecodedToken]:
        """Prefill a prompt and take its first token, alone."""
        started = time.perf_counter()
        model, config = self._model, self._configs[index]
        loop = TextLoop(model, config, model.make_cache(), self.stats[index], self._planner)
        loop.prefill(self._prompts[index], lambda _done, _total: None)
        pending = loop.launch(mx.array(self._prompts[index][-1:]), None, None, goes_on=False)
        record = loop.read(pending)
        tokens, finish = loop.cut(record, 0)
        loop.commit(record, len(tokens))
        self.prompt_seconds[index] = time.perf_counter() - started
        text = _Text(index, loop, pending.choices.tokens, pending.hidden[0])
        return text, DecodedToken(tokens[0], False, finish, None)

    def _step(self, texts: list[_Text]) -> Iterator[tuple[int, DecodedToken]]:
        """One step of all texts."""
        planner = self._planner and self._planner.for_batch(len(texts))
        for text in texts:
            text.loop.planner = planner
        longest = max(texts, key=lambda text: len(text.loop.cache)).loop
        context, shape = len(longest.cache), longest.next_shape()
        pendings = self._launch(texts, shape)
        records = [text.loop.read(pending) for text, pending in zip(texts, pendings, strict=True)]
        made, seconds = [], 0.0
        for text, pending, record in zip(texts, pendings, records, strict=True):
            tokens, finish = text.loop.cut(record, text.emitted)
            text.loop.commit(record, len(tokens))
            # Between steps there may be other prompts' prefills.
            seconds = text.loop.count(pending, record, len(tokens), pending.started)
            end = record.path[-1]
            text.root, text.hidden = pending.choices.tokens[end : end + 1], pending.hidden[end]
            text.emitted += len(tokens)
            made.append((tokens, finish))
        self._batch.commit()
        if planner is not None:
            planner.observe(shape, records, seconds, context)
        for text, record, (tokens, finish) in zip(texts, records, made, strict=True):
            yield from self._hand_out(text, record, tokens, finish)

    def _hand_out(
        self, text: _Text, record: StepRecord, tokens: list[int], finish: str | None
    ) -> Iterator[tuple[int, DecodedToken]]:
        for place, token in enumerate(tokens, start=1):
            if not self._goes_on(text):
                return
            reason = finish if place == len(tokens) else None
            yield text.index, DecodedToken(token, place <= record.accepted, reason, record)
        if finish is not None:
            self.stop(text.index)

    def _launch(self, texts: list[_Text], shape: BeamShape | None) -> list[PendingStep]:
        """Start a step: draft for all, verify together, choose for each."""
        started = time.perf_counter()
        source, draft_seconds = texts[0].loop.source(shape)
        noises = [text.loop.noise(source) for text in texts]
        if source is None:
            trees = [DraftTree.root_only(text.root) for text in texts]
        else:
            states = [
                text.loop.state(text.root, text.hidden, noise)
                for text, noise in zip(texts, noises, strict=True)
            ]
            if isinstance(source, BeamSearch):
                trees = source.together(states)
            else:
                trees = [source(state) for state in states]
        logits, hidden = self._model.target.verify_batch(trees, self._batch)
        pendings = []
        for row, (text, tree) in enumerate(zip(texts, trees, strict=True)):
            choices = text.loop.choose(logits[row], tree, noises[row])
            pendings.append(PendingStep(tree, choices, hidden[row], shape, started, draft_seconds))
        mx.async_eval([pending.read_back for pending in pendings])
        return pendings


def _check(
    model: SpeculativeModel,
    prompts: Sequence[Sequence[int]],
    config: DecodingConfig,
    max_tokens: Sequence[int] | None,
    batch_size: int,
) -> None:
    size = model.target.vocab_size
    for place, prompt in enumerate(prompts):
        if not prompt:
            raise RedrafterError(f"Prompt {place} is empty: give at least one token.")
        if not all(0 <= token < size for token in prompt):
            raise RedrafterError(f"Prompt {place} holds ids outside the vocabulary of {size}.")
    if max_tokens is not None and len(max_tokens) != len(prompts):
        raise RedrafterError(
            f"max_tokens has {len(max_tokens)} entries for {len(prompts)} prompts: "
            "give one for each, or one number for all."
        )
    if batch_size < 1:
        raise RedrafterError(f"batch_size is {batch_size}, but has to be 1 or more.")
    options = config.cache_options
    if options.kv_bits is not None or options.max_kv_size is not None:
        raise RedrafterError(
            "Prompts that are decoded together keep all keys and values as they are: leave kv_bits "
            "and max_kv_size out, or decode the prompts one by one."
        )
