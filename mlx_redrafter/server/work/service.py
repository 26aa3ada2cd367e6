"""The handlers' side of the engine: queues with limits, tickets for answers under way."""

from __future__ import annotations

import asyncio
import math
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from mlx_lm.tokenizer_utils import TokenizerWrapper

from ...errors import RedrafterError
from ...text.json_schemas import checked_schema
from ..protocol.answer import Event, Failed, Finished
from ..protocol.failures import ApiError, queue_full, too_long
from ..protocol.task import Conversation, Parsed, Task
from ..settings import ANSWER_TOKENS, CONTINUATION_TOKENS, ServerSettings
from .answering import Job
from .engine_thread import EngineThread
from .host import Host, Work
from .prompts import Encoded, encode
from .sequences import Decoding

REMEMBERED = 32
# Characters of a prompt that takes seconds to encode; no other shall wait for it.
LONG = 200_000


@dataclass(frozen=True)
class Encoder:
    """A tokenizer for prompts.

    Attributes:
        tokenizer: Used by one thread at a time.
        lock: Held meanwhile.
    """

    tokenizer: TokenizerWrapper
    lock: threading.Lock = field(default_factory=threading.Lock)


@dataclass(frozen=True)
class ServedModel:
    """What handlers know of a model.

    Attributes:
        name: Under which requests ask for it.
        host: Its place in the engine's thread.
        encoder: For its prompts.
        long_encoder: For prompts beyond ``LONG`` characters.
        vocab_size: Tokens it knows.
        compile: Prepares a JSON schema, told its place in the request, for its tokenizer; which
            takes a second the first time.
        context_limit: Tokens of prompt and answer at most; None for no limit.
        guesses: Whether a drafter guesses its answers.
        copies: Whether they may be copied from the text.
    """

    name: str
    host: Host
    encoder: Encoder
    long_encoder: Encoder
    vocab_size: int
    compile: Callable[[str, str], object]
    context_limit: int | None
    guesses: bool
    copies: bool


@dataclass
class _Load:
    """What a model has to do.

    Attributes:
        places: Answers that run, wait, or whose prompt is being encoded.
        seconds: That the latest requests took.
    """

    places: int = 0
    seconds: deque[float] = field(default_factory=lambda: deque(maxlen=REMEMBERED))

    @property
    def retry_after(self) -> int:
        """Seconds in which a place is likely to be free."""
        mean = sum(self.seconds) / len(self.seconds) if self.seconds else 1.0
        return max(1, min(60, math.ceil(mean)))


def is_long(parsed: Parsed) -> bool:
    """Whether a request takes seconds to encode: a prompt, or the tokens that fit a schema."""
    return any(_is_long(task) or task.schema is not None for task in parsed.tasks)


def _is_long(task: Task) -> bool:
    return len(str(task.prompt)) > LONG


def _schema(model: ServedModel, task: Task) -> str | None:
    """The schema that a task's answer has to follow, as JSON.

    Raises:
        ApiError: If it cannot be followed, or the answer has been begun already.
    """
    schema, prompt = task.schema, task.prompt
    if schema is None:
        return None
    if isinstance(prompt, Conversation) and prompt.continue_last:
        message = "An answer that is begun already cannot follow a schema: leave one of both out."
        raise ApiError(400, message, schema.field, "invalid_value")
    try:
        text = checked_schema(schema.content, schema.field)
        model.compile(text, schema.field)
    except RedrafterError as error:
        raise ApiError(400, str(error), schema.field, "invalid_value") from error
    called = isinstance(prompt, Conversation) and prompt.tool_choice == "required"
    return None if called else text


class Ticket:
    """A request's answers as they come; used in the event loop's thread.

    It holds their places until they have ended, whether anybody has read them by then or not.
    """

    def __init__(self, service: Service, model: ServedModel, jobs: list[Job]):
        self.model = model
        self.jobs = jobs
        self._service = service
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[list[Event]] = asyncio.Queue()
        self._left = len(jobs)
        self._closed = False
        self.work = Work(jobs, self._deliver)

    def _deliver(self, events: list[Event]) -> None:
        """Called in the engine's thread."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._take, events)

    def _take(self, events: list[Event]) -> None:
        self._events.put_nowait(events)
        self._left -= sum(isinstance(event, Finished) for event in events)
        if any(isinstance(event, Failed) for event in events):
            self.close()
        elif not self._left:
            self._give_back(finished=True)

    async def next(self) -> list[Event]:
        """The next events."""
        return await self._events.get()

    def close(self) -> None:
        """Stop what has not ended."""
        self._give_back(finished=False)

    def _give_back(self, *, finished: bool) -> None:
        if not self._closed:
            self._closed = True
            self._service.closed(self, finished=finished)


class Service:
    """Takes requests for the models.

    Args:
        thread: Computes; started.
        models: By name, the default first.
        settings: Limits.
    """

    def __init__(
        self, thread: EngineThread, models: dict[str, ServedModel], settings: ServerSettings
    ):
        self.models = models
        self.settings = settings
        self._thread = thread
        self._loads = {name: _Load() for name in models}

    @property
    def alive(self) -> bool:
        """Whether the engine works."""
        return self._thread.alive

    def model(self, name: str | None) -> ServedModel:
        """The model that a request names.

        Raises:
            ApiError: 404 if it is not served; nothing is loaded because a request names it.
        """
        if name in (None, "default", "default_model"):
            return next(iter(self.models.values()))
        if name not in self.models:
            known = ", ".join(self.models)
            message = f"The model {name!r} is not served here: ask for one of {known}."
            raise ApiError(404, message, "model", "model_not_found")
        return self.models[name]

    def jobs(self, model: ServedModel, parsed: Parsed) -> list[Job]:
        """What a request wants, encoded; slow for long prompts, so not for the event loop.

        Raises:
            ApiError: If a prompt cannot be encoded or is too long.
        """
        made: list[Job] = []
        for task in parsed.tasks:
            encoded, schema = self.encoded(model, task), _schema(model, task)
            for place in range(task.count):
                decoding = self._decoding(model, task, encoded, place, schema)
                job = Job(len(made), encoded, decoding, task.stops, task.trace)
                made.append(job)
        return made

    def tokens(self, model: ServedModel, task: Task) -> int:
        """Tokens of a task's prompt, whether that fits into the context or not.

        Raises:
            ApiError: If the task would be refused for anything else.
        """
        encoded = self.encoded(model, task, bounded=False)
        _schema(model, task)
        return len(encoded.ids)

    def encoded(self, model: ServedModel, task: Task, *, bounded: bool = True) -> Encoded:
        """The prompt of a task.

        Args:
            model: That is asked.
            task: Whose prompt.
            bounded: Whether it has to fit into the context.

        Raises:
            ApiError: If it cannot be encoded or is too long.
        """
        encoder = model.long_encoder if _is_long(task) else model.encoder
        with encoder.lock:
            encoded = encode(encoder.tokenizer, task, model.vocab_size, self.settings.template)
        limit = model.context_limit
        if bounded and limit is not None and len(encoded.ids) >= limit:
            raise too_long(len(encoded.ids), limit)
        return encoded

    def _decoding(
        self, model: ServedModel, task: Task, encoded: Encoded, place: int, schema: str | None
    ) -> Decoding:
        sampling = {**self.settings.sampling, **task.sampling}
        seed = sampling.get("seed")
        if seed is None:
            seed = secrets.randbits(32)
        sampling["seed"] = (seed + place) % 2**63
        if sampling.get("top_k", 0) >= model.vocab_size:
            sampling["top_k"] = 0
        for token, _ in sampling.get("logit_bias", ()):
            if token >= model.vocab_size:
                message = f"logit_bias names the token {token}, outside the vocabulary."
                raise ApiError(400, message, "logit_bias", "invalid_value")
        most = task.max_tokens or self._usual_tokens(task)
        if model.context_limit is not None:
            most = min(most, model.context_limit - len(encoded.ids))
        copies = self.settings.copies if task.copies is None else task.copies
        return Decoding(
            encoded.ids,
            most,
            sampling,
            task.draft,
            copies,
            task.logprobs,
            schema,
            calls=bool(encoded.tools),
        )

    def _usual_tokens(self, task: Task) -> int:
        """Tokens of an answer at most where the request names no number."""
        usual = ANSWER_TOKENS if isinstance(task.prompt, Conversation) else CONTINUATION_TOKENS
        return self.settings.max_tokens or usual

    @contextmanager
    def held(self, model: ServedModel, answers: int) -> Iterator[None]:
        """Hold places for answers inside the block, in which their prompts are encoded.

        Raises:
            ApiError: 429 if too many wait, 503 if the engine has ended.
        """
        load = self._loads[model.name]
        capacity = self.settings.max_concurrent + self.settings.max_queue
        if answers > capacity:
            message = f"{answers} answers are wanted, but {capacity} are the most here."
            raise ApiError(400, message, "n", "invalid_value")
        if load.places + answers > capacity:
            raise queue_full(load.retry_after)
        if not self.alive:
            raise ApiError(503, "The engine has ended: restart the server.")
        load.places += answers
        try:
            yield
        finally:
            load.places -= answers

    def submit(self, model: ServedModel, jobs: list[Job]) -> Ticket:
        """Queue a request for which places are :meth:`held`.

        Raises:
            ApiError: 503 if the engine has ended.
        """
        if not self.alive:
            raise ApiError(503, "The engine has ended: restart the server.")
        ticket = Ticket(self, model, jobs)
        self._loads[model.name].places += len(jobs)
        self._thread.submit(model.host, ticket.work)
        return ticket

    def closed(self, ticket: Ticket, *, finished: bool) -> None:
        """A ticket's places are free again."""
        load = self._loads[ticket.model.name]
        load.places -= len(ticket.jobs)
        if finished:
            load.seconds.append(time.monotonic() - ticket.work.since)
        else:
            self._thread.cancel(ticket.model.host, ticket.work)
