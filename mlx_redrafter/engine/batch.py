"""Several texts decoded together: one forward a step for all, each accepting what it accepts.

A text goes through the same steps as alone (``decode.DecodingLoop``); what is shared is the draft's
beam search, the target's forward and the one evaluation. The text of each prompt is therefore the
one that it has alone, with the noise of its own positions.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Tokens
from dataclasses import dataclass, field

from ..cache.batch import can_join
from ..cache.prompt_cache import PromptCache
from ..drafting.copy_memory import CopyMemory
from ..errors import RedrafterError
from ..ranges import check_flags, function_of, is_count, shown
from .beginning import check_shape, prefill
from .checks import checked_config
from .config import DecodingConfig
from .events import Event, NewToken, PromptRead, SequenceFailed
from .lockstep import check_same_text
from .loop import DecodingLoop
from .model import SpeculativeModel, check_model
from .sequence import Sequence
from .shape_planner import ShapePlanner
from .shared_planner import shared
from .statistics import AcceptanceStats
from .step import DecodedToken

DEFAULT_BATCH = 8


@dataclass(eq=False)
class _Member:
    """A sequence of an engine.

    Attributes:
        number: What the engine calls it.
        sequence: The sequence.
        reading: Reads its prompt, piece by piece; None before it begins.
        cached: Prompt tokens that its cache held.
        seconds: Time spent on its prompt, up to its first token.
        handed_out: Tokens handed out.
    """

    number: int
    sequence: Sequence
    reading: Iterator[tuple[int, int]] | None = None
    cached: int = -1
    seconds: float = 0.0
    handed_out: int = 0


@dataclass(eq=False)
class _Group:
    """Sequences that share a loop, and those that wait for a step to be over to join it."""

    loop: DecodingLoop
    joining: list[Sequence] = field(default_factory=list)

    @property
    def sequences(self) -> list[Sequence]:
        return [*self.loop.sequences, *self.joining]


class Engine:
    """Decodes texts together; they may be added and stopped between any two steps.

    All that a text has of its own (sampling, seed, limits, back-off, statistics) is in its
    :class:`Sequence`. A single text under way is stepped as :func:`decode` does. Texts that cannot
    share a forward, because of the model or of the kind of their caches, take turns. An engine is
    for one thread at a time; different engines of one model may run in different ones.

    Args:
        model: Target and drafter.
        batch_size: Sequences under way at most; further ones wait.
        planner: Chooses each step's beam shape for all, instead of each configuration's ``beam``;
            the one that it has for as many sequences as are under way.
        prompts_first: Whether waiting prompts are read whole before the next step. Else a piece of
            one of them is read with each step, in turns, so that the texts under way go on.
        keep: Given what a text has left in the target when it leaves, in caches of its own: its
            prompt, and its tokens except the last.
    """

    def __init__(
        self,
        model: SpeculativeModel,
        *,
        batch_size: int = DEFAULT_BATCH,
        planner: ShapePlanner | None = None,
        prompts_first: bool = False,
        keep: Callable[[PromptCache], None] | None = None,
    ):
        check_model(model)
        check_batch_size(batch_size)
        check_flags(prompts_first=prompts_first)
        self._model = model
        self._size = batch_size
        self._planner = shared(planner, model.planner_lock)
        self._copied = self._planner.copied if self._planner else CopyMemory()
        self._prompts_first = prompts_first
        self._keep = function_of(keep, "keep", "a function of a cache")
        self._numbers = 0
        self._members: dict[int, _Member] = {}
        self._of: dict[Sequence, _Member] = {}
        self._waiting: deque[_Member] = deque()
        self._reading: list[_Member] = []
        self._groups: list[_Group] = []
        self._ended = False  # whether a text has, since one began

    def add(
        self,
        prompt: Tokens[int],
        config: DecodingConfig | None = None,
        *,
        cache: PromptCache | None = None,
        stats: AcceptanceStats | None = None,
    ) -> int:
        """Let a text join as soon as there is room; nothing is computed yet.

        Args:
            prompt: Token ids, at least one.
            config: How to decode it.
            cache: Of an earlier turn, to resume. Where texts are decoded together it holds no more
                than the prompt afterwards.
            stats: Counts to add to.

        Returns:
            Its number.

        Raises:
            RedrafterError: If it cannot be decoded.
        """
        config = checked_config(self._model, config)
        plans = self._planner is not None
        check_same_text(
            self._model.ranks,
            prompt,
            config,
            plans=plans,
            drafts=self._model.drafts,
            batch_size=self._size,
            prompts_first=self._prompts_first,
        )
        sequence = Sequence(
            self._model, prompt, config, cache=cache, stats=stats, copied=self._copied
        )
        check_shape(sequence, planned=plans)
        member = _Member(self._numbers, sequence)
        self._numbers += 1
        self._members[member.number] = self._of[sequence] = member
        self._waiting.append(member)
        return member.number

    @property
    def busy(self) -> bool:
        """Whether there is anything to do."""
        return bool(self._members)

    def step(self) -> list[Event]:
        """Read a piece of a prompt, if one waits, and take one step of all that have begun.

        What a function of the caller's raises in it, or the device, ends all texts, and is raised:
        tokens of the others were made that nobody would hear of.
        """
        try:
            return self._take_step()
        except BaseException:
            self._give_up()
            raise

    def _take_step(self) -> list[Event]:
        events: list[Event] = []
        self._read_prompts(events)
        if any(isinstance(event, NewToken) for event in events):
            return events  # nobody waits for the others' step to see a first token
        for group in list(self._groups):
            self._step(group, events)
        return events

    def stop(self, sequence: int) -> None:
        """Let a text leave before its end; one that has ended is left alone."""
        member = self._members.get(sequence)
        if member is not None:
            self._leave(member)

    def sequence(self, sequence: int) -> Sequence:
        """A text that has not left: its configuration with its seed, and its counts.

        Raises:
            RedrafterError: If there is none of that number, or it has left.
        """
        if sequence not in self._members:
            raise RedrafterError(f"This engine has no text {shown(sequence)}, or has it no longer.")
        return self._members[sequence].sequence

    def _give_up(self) -> None:
        """Let all texts leave; nothing is kept of them."""
        keep, self._keep = self._keep, None
        groups, self._groups = self._groups, []
        for group in groups:
            group.loop.discard()
        for member in list(self._members.values()):
            self._leave(member)
        self._keep = keep

    # Prompts

    def _read_prompts(self, events: list[Event]) -> None:
        while self._begin_waiting() or self._reading:
            member = self._reading[0]
            try:
                self._read_piece(member, events)
            except RedrafterError as error:
                events.append(SequenceFailed(member.number, error))
                self._leave(member)
            if not self._prompts_first:
                if member in self._reading:  # a short prompt does not wait for a long one's end
                    self._reading.remove(member)
                    self._reading.append(member)
                return

    def _begin_waiting(self) -> bool:
        """Let one more text begin where there is room."""
        under_way = len(self._reading) + sum(len(group.sequences) for group in self._groups)
        if not self._waiting or under_way >= self._size:
            return False
        member = self._waiting.popleft()
        member.reading = prefill(self._model, member.sequence, alike=True)
        self._reading.append(member)
        return True

    def _read_piece(self, member: _Member, events: list[Event]) -> None:
        assert member.reading is not None
        started = time.perf_counter()
        done, total = next(member.reading)
        self._spent(member, time.perf_counter() - started)
        member.cached = done if member.cached < 0 else member.cached
        events.append(PromptRead(member.number, done, total, member.cached))
        if done == total:
            self._reading.remove(member)
            self._take_first_token(member, events)

    def _take_first_token(self, member: _Member, events: list[Event]) -> None:
        """The step of a prompt's last token is the sequence's own; then it joins others."""
        loop, started = DecodingLoop(self._model, self._planner), time.perf_counter()
        loop.begin(member.sequence, among=bool(self._groups) and not self._ended)
        self._ended = False
        made = loop.step(goes_on=False)
        self._spent(member, time.perf_counter() - started)
        self._hand_out(made, events)
        if member.sequence.finish_reason is None:
            self._place(member.sequence, loop)

    def _spent(self, member: _Member, seconds: float) -> None:
        """Count a prompt's time as its own, and not as the steps' that are under way."""
        member.seconds += seconds
        for group in self._groups:
            group.loop.spent_elsewhere(seconds)

    def _place(self, sequence: Sequence, loop: DecodingLoop) -> None:
        """Let a sequence join those that it can share a forward with."""
        if self._shares(sequence):
            for group in self._groups:
                if all(self._shares(other) for other in group.sequences):
                    group.joining.append(sequence)
                    return
        self._groups.append(_Group(loop))

    def _shares(self, sequence: Sequence) -> bool:
        options = sequence.config.cache_options
        plain = options.kv_bits is None and options.max_kv_size is None
        # A cache of an earlier turn keeps what that turn's options made of it.
        return plain and self._model.target.batches and can_join(sequence.cache)

    # Steps

    def _step(self, group: _Group, events: list[Event]) -> None:
        loop = group.loop
        for sequence in filter(self._of.__contains__, group.sequences):
            self._check_cache(sequence, events)
        if group not in self._groups:
            return
        leaving = [s for s in loop.sequences if s not in self._of]
        if len(leaving) == len(loop.sequences):
            loop.discard()
        changes = bool(leaving or group.joining)
        if changes and loop.idle:
            loop.compose(leaving, group.joining)
            group.joining = []
            changes = False
        goes_on = not (changes or self._reading)
        self._hand_out(loop.step(goes_on=goes_on), events)

    def _check_cache(self, sequence: Sequence, events: list[Event]) -> None:
        try:
            sequence.check_cache()
        except RedrafterError as error:
            member = self._of[sequence]
            events.append(SequenceFailed(member.number, error))
            self._leave(member)

    def _hand_out(self, made: dict[Sequence, list[DecodedToken]], events: list[Event]) -> None:
        for sequence, tokens in made.items():
            member = self._of.get(sequence)
            if member is None:
                continue  # it was stopped while its step was under way
            member.handed_out += len(tokens)
            events += [NewToken(member.number, token, member.seconds) for token in tokens]
            if sequence.failure is not None:
                events.append(SequenceFailed(member.number, sequence.failure))
            if sequence.finish_reason is not None:
                self._leave(member)

    def _leave(self, member: _Member) -> None:
        del self._members[member.number], self._of[member.sequence]
        self._ended |= member.handed_out > 0
        if member in self._waiting:
            self._waiting.remove(member)
        if member in self._reading:
            self._reading.remove(member)
        for group in self._groups:
            if member.sequence in group.joining:
                group.joining.remove(member.sequence)
        try:
            left = self._left_by(member) if self._keep is not None and member.handed_out else None
            member.sequence.close(member.handed_out)
            if self._keep is not None and left is not None:
                left.rewind(len(member.sequence.prompt) + member.handed_out - 1)
                self._keep(left)
        finally:
            self._drop_groups()

    def _drop_groups(self) -> None:
        """Free what is held for texts that have all left: the next step may be long in coming."""
        for group in list(self._groups):
            if self._of.keys().isdisjoint(group.sequences):
                self._groups.remove(group)
                group.loop.close()

    def _left_by(self, member: _Member) -> PromptCache | None:
        """What a text has left in the target; its own caches, or a copy of its part of a batch.

        None where another text uses its caches by now.
        """
        sequence = member.sequence
        if sequence.cache.user is not sequence:
            return None
        for group in self._groups:
            batch, sequences = group.loop.batch, group.loop.sequences
            if batch is not None and sequence in sequences:
                taken = self._model.make_cache()
                batch.extract(sequences.index(sequence), taken)
                return taken
        return sequence.cache


def check_batch_size(batch_size: int) -> None:
    """Refuse a batch of nobody.

    Raises:
        RedrafterError: If it is one.
    """
    if not is_count(batch_size) or batch_size < 1:
        raise RedrafterError(
            f"batch_size is {shown(batch_size)}, but has to be a whole number from 1."
        )
