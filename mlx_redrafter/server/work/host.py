"""One model in the engine's thread: who waits, who runs, and what becomes of their tokens."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from mlx_lm.tokenizer_utils import TokenizerWrapper

from ...errors import RedrafterError
from ..metrics import Metrics
from ..protocol.answer import Event, Failed, Finished, Text, Usage
from ..protocol.failures import ApiError, internal
from .answering import Answering, Job
from .sequences import NewToken, PromptRead, SequenceEvent, SequenceFailed, Sequences

log = logging.getLogger("mlx_redrafter.server")
# Tokens that prompts share, beyond those that are known, before one waits for what the other's
# leaves.
SAME_BEGINNING = 64


@dataclass(eq=False)
class Work:
    """The answers of one request.

    Attributes:
        jobs: What is wanted; those of one prompt share their ``encoded``.
        deliver: Takes events of the answers; called in the engine's thread.
        since: When it came, by ``time.monotonic``.
    """

    jobs: list[Job]
    deliver: Callable[[list[Event]], None]
    since: float = field(default_factory=time.monotonic)


@dataclass
class _Active:
    """A sequence under way."""

    work: Work
    job: Job
    answering: Answering
    followers: list[Job]
    last: float | None = None


@dataclass(eq=False)
class _Waiting:
    """An answer whose turn has not come.

    Attributes:
        work: Of its request.
        job: What is wanted.
        followers: Further answers to its prompt, which take their turn once that is read.
        behind: Whose prompt is being read, and is much of its own.
    """

    work: Work
    job: Job
    followers: list[Job]
    behind: _Active | None = None

    @property
    def answers(self) -> int:
        """Its own and its followers'."""
        return 1 + len(self.followers)


class Host:
    """A model, its waiting and its running sequences; used in the engine's thread only.

    Args:
        name: Of the model.
        tokenizer: Of it.
        make: Makes the engine; called again after a step that failed for all.
        max_concurrent: Sequences that run together.
        metrics: Counted in.
    """

    def __init__(
        self,
        name: str,
        tokenizer: TokenizerWrapper,
        make: Callable[[], Sequences],
        max_concurrent: int,
        metrics: Metrics,
    ):
        self.name = name
        self.tokenizer = tokenizer
        self._make = make
        self._sequences = make()
        self._max_concurrent = max_concurrent
        self._metrics = metrics
        self._waiting: deque[_Waiting] = deque()
        self._active: dict[int, _Active] = {}
        self._others = 0

    @property
    def running(self) -> int:
        """Answers under way."""
        return len(self._active)

    @property
    def busy(self) -> bool:
        """Whether there is anything to do."""
        return bool(self._waiting or self._active)

    def submit(self, work: Work) -> None:
        """Let a request's answers wait for their turn.

        Of several answers to one prompt the first reads it; the others follow, and find it read.
        """
        leaders: dict[int, list[Job]] = {}
        for job in work.jobs:
            leaders.setdefault(id(job.encoded), []).append(job)
        for first, *rest in leaders.values():
            self._waiting.append(_Waiting(work, first, rest))
        self._count()

    def cancel(self, work: Work) -> None:
        """Forget a request."""
        ended = sum(entry.answers for entry in self._waiting if entry.work is work)
        self._waiting = deque(entry for entry in self._waiting if entry.work is not work)
        for number in [n for n, active in self._active.items() if active.work is work]:
            ended += 1 + len(self._active[number].followers)
            self._leave(number)
        self._metrics.answers.labels(self.name, "cancelled").inc(ended)
        self._count()

    def fail_all(self, error: ApiError) -> None:
        """End everything with an error."""
        entries = [(active.work, active.job) for active in self._active.values()]
        entries += [(entry.work, entry.job) for entry in self._waiting]
        self._waiting.clear()
        for number in list(self._active):
            self._leave(number)
        for work in {id(work): work for work, _ in entries}.values():
            work.deliver([Failed(work.jobs[0].index, error)])
        self._count()

    def step(self, elsewhere: int = 0) -> None:
        """Take one step, and hand out what it made.

        Args:
            elsewhere: Answers under way of other models, which take their steps in turn with these.
        """
        self._admit()
        self._others = self.running + elsewhere - 1  # of each that takes part in the step
        made: dict[int, tuple[Work, list[Event]]] = {}
        try:
            for event in self._sequences.step():
                self._handle(event, made)
        except Exception:
            log.exception("a step of %s failed; its %d answers end", self.name, len(self._active))
            for active in self._active.values():
                self._fail(active.work, active.job, internal(), made)
                self._spend(active.answering.usage, {})
            self._active.clear()
            self._sequences = self._make()
        for work, events in made.values():
            work.deliver(list(_merged(events)))
        self._count()

    def _admit(self) -> None:
        for entry in list(self._waiting):
            work, job, followers = entry.work, entry.job, entry.followers
            if len(self._active) >= self._max_concurrent:
                return
            if self._is_being_read(entry):
                continue
            self._waiting.remove(entry)
            try:
                number = self._sequences.add(job.decoding)
                with self._stopped_on_error(number):
                    self._active[number] = self._begin(number, work, job, followers)
            except RedrafterError as error:
                work.deliver([Failed(job.index, ApiError(400, str(error)))])
            except Exception:
                log.exception("a request could not begin")
                work.deliver([Failed(job.index, internal())])

    @contextmanager
    def _stopped_on_error(self, number: int) -> Iterator[None]:
        """Stop a sequence that nobody would hear of, as it would decode to its end in a slot."""
        try:
            yield
        except Exception:
            self._sequences.stop(number)
            raise

    def _is_being_read(self, entry: _Waiting) -> bool:
        """Whether much of a prompt is being read for another: then it is soon known."""
        reading = [active for active in self._active.values() if not active.answering.began]
        if not any(active is entry.behind for active in reading):
            entry.behind = self._ahead(entry.job.decoding.prompt, reading)
        return entry.behind is not None

    def _ahead(self, prompt: list[int], reading: list[_Active]) -> _Active | None:
        """The one of those that are read whose prompt makes much known of another's."""

        def sharing(tokens: int, among: list[_Active]) -> list[_Active]:
            beginning = prompt[:tokens]
            whole = len(beginning) == tokens
            return [one for one in among if whole and one.job.decoding.prompt[:tokens] == beginning]

        alike = sharing(SAME_BEGINNING, reading)
        if alike:
            alike = sharing(self._sequences.known(prompt) + SAME_BEGINNING, alike)
        return alike[0] if alike else None

    def _begin(self, number: int, work: Work, job: Job, followers: list[Job]) -> _Active:
        sequences = self._sequences

        def statistics() -> dict[str, Any]:
            return sequences.statistics(number)

        speed = sequences.plain_tokens_per_second
        answering = Answering(job, self.tokenizer, statistics, speed, lambda: self._others)
        return _Active(work, job, answering, followers)

    def _handle(self, event: SequenceEvent, made: dict[int, tuple[Work, list[Event]]]) -> None:
        active = self._active.get(event.sequence)
        if active is None:
            return  # it left in this very step
        if isinstance(event, SequenceFailed):
            self._fail(active.work, active.job, _told(event.error), made)
            self._leave(event.sequence)
            return
        try:
            for answer in self._events(active, event):
                made.setdefault(id(active.work), (active.work, []))[1].append(answer)
        except Exception:
            log.exception("an answer failed")
            self._fail(active.work, active.job, internal(), made)
            self._leave(event.sequence)
            return
        if active.answering.done:
            self._leave(event.sequence)

    def _events(self, active: _Active, event: PromptRead | NewToken) -> Iterator[Event]:
        if isinstance(event, PromptRead):
            yield from active.answering.prompt(event)
            if event.done >= event.total:
                self._release(active)
            return
        self._time(active)
        for made in active.answering.token(event):
            if isinstance(made, Finished):
                self._note(made)
            yield made

    def _release(self, active: _Active) -> None:
        """Let the other answers to a prompt that has been read take their turn, next."""
        entries = [_Waiting(active.work, job, []) for job in active.followers]
        self._waiting.extendleft(reversed(entries))
        active.followers = []

    def _leave(self, number: int) -> None:
        active = self._active.pop(number)
        if active.answering.done:
            self._release(active)
        try:
            if not active.answering.done:
                self._spend(active.answering.usage, self._sequences.statistics(number))
            self._sequences.stop(number)
        except Exception:
            log.exception("a sequence could not be stopped")

    def _fail(
        self, work: Work, job: Job, error: ApiError, made: dict[int, tuple[Work, list[Event]]]
    ) -> None:
        made.setdefault(id(work), (work, []))[1].append(Failed(job.index, error))
        self._metrics.answers.labels(self.name, "failed").inc()

    def _time(self, active: _Active) -> None:
        now = time.monotonic()
        if active.last is None:
            self._metrics.first_token.labels(self.name).observe(now - active.work.since)
            self._release(active)
        else:
            self._metrics.between.labels(self.name).observe(now - active.last)
        active.last = now

    def _note(self, end: Finished) -> None:
        self._metrics.answers.labels(self.name, end.reason).inc()
        self._spend(end.usage, end.report)

    def _spend(self, usage: Usage, report: Mapping[str, Any]) -> None:
        """Count the tokens of an answer, whether it came to its end or not."""
        metrics = self._metrics
        metrics.prompt_tokens.labels(self.name).inc(usage.prompt)
        metrics.cached_tokens.labels(self.name).inc(usage.cached)
        metrics.tokens.labels(self.name).inc(usage.completion)
        for name in ("drafted", "accepted", "steps"):
            getattr(metrics, name).labels(self.name).inc(report.get(name, 0))

    def _count(self) -> None:
        waiting = sum(entry.answers for entry in self._waiting)
        self._metrics.running.labels(self.name).set(len(self._active))
        self._metrics.waiting.labels(self.name).set(waiting)
        self._metrics.cache_bytes.labels(self.name).set(self._sequences.cache_bytes)


def _told(error: Exception) -> ApiError:
    """What a client hears of an answer that failed; faults of ours stand in the log."""
    if isinstance(error, RedrafterError):
        log.info("an answer failed: %s", error)
        return ApiError(400, str(error))
    log.error("an answer failed", exc_info=error)
    return internal()


def _merged(events: Iterable[Event]) -> Iterator[Event]:
    """Neighbouring pieces of one answer's text as one: a step's accepted tokens come together."""
    held: Text | None = None
    for event in events:
        if isinstance(event, Text):
            if held and (held.index, held.reasoning) == (event.index, event.reasoning):
                held = Text(
                    held.index,
                    held.text + event.text,
                    held.reasoning,
                    held.pieces + event.pieces,
                    held.logprobs + event.logprobs,
                )
                continue
            if held:
                yield held
            held = event
            continue
        if held:
            yield held
            held = None
        yield event
    if held:
        yield held
