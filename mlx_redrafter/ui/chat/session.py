"""A conversation with a model: messages, settings, caches and counts. It prints nothing."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast

from ...engine.statistics import AcceptanceStats
from ...errors import RedrafterError
from ...text.prompts import encode_prompt
from .settings import ChatSettings

if TYPE_CHECKING:
    from ...cache.prompt_cache import PromptCache
    from ...engine.model import SpeculativeModel
    from ...engine.step import StepRecord
    from ...planning.planner import Planner
    from ...text.responses import GenerationResponse

Message = dict[str, str]
# What ``stream_generate`` looks like from here.
StreamFunction = Callable[..., "Iterator[GenerationResponse]"]
# A plain answer shorter than this says too little about the speed.
ENOUGH_TOKENS = 16


@dataclass(frozen=True)
class ModelFacts:
    """What the screen says about the model.

    Attributes:
        name: The target's name.
        drafter: The drafter in a few words, None if there is none.
        device: Where it runs.
        precision: How its weights are stored.
        beam: Default beam width and length.
        context_limit: Longest conversation in tokens, None if not known.
    """

    name: str
    drafter: str | None
    device: str
    precision: str
    beam: tuple[int, int]
    context_limit: int | None = None


@dataclass(frozen=True)
class Baseline:
    """The speed of plain decoding, as it was measured.

    Attributes:
        tps: Tokens per second.
        tokens: Tokens it was measured over.
        context: Tokens in the context at the time.
    """

    tps: float
    tokens: int
    context: int


@dataclass(frozen=True)
class Answer:
    """One answer as it came out.

    Attributes:
        question: What was asked.
        text: What was said, as far as it went.
        drafted: Whether the drafter was used.
        interrupted: Whether it was stopped before its end.
        prompt_tokens: Length of the whole prompt.
        final: The last response, None if not even the first token came.
        step: The last step that drafted, None if none did.
        stats: Counts of this answer.
        at_limit: Whether the model's context was full.
    """

    question: str
    text: str
    drafted: bool
    interrupted: bool
    prompt_tokens: int
    final: GenerationResponse | None
    step: StepRecord | None
    stats: AcceptanceStats
    at_limit: bool = False

    @property
    def tokens(self) -> int:
        """Tokens generated."""
        return self.final.generation_tokens if self.final else 0

    @property
    def tps(self) -> float:
        """Tokens per second of its steps.

        ``generation_tps`` counts the prompt's own token too, as mlx-lm does; over few tokens that
        flatters.
        """
        return self.stats.tokens_per_second

    def to_dict(self) -> dict[str, Any]:
        """Counts, speeds and the text, ready for JSON."""
        final = self.final
        return {
            **self.stats.to_dict(),
            "text": self.text,
            "finish_reason": final.finish_reason if final else None,
            "prompt_tokens": self.prompt_tokens,
            "prompt_tps": final.prompt_tps if final else 0.0,
            "generation_tokens": self.tokens,
            "generation_tps": final.generation_tps if final else 0.0,
            "peak_memory": final.peak_memory if final else 0.0,
        }


@dataclass(frozen=True)
class Comparison:
    """The same question answered twice."""

    plain: Answer
    drafted: Answer

    @property
    def identical(self) -> bool:
        """Whether both answers are the same text."""
        return self.plain.text == self.drafted.text

    @property
    def parting(self) -> int:
        """Number of characters before the texts part."""
        pairs = zip(self.plain.text, self.drafted.text, strict=False)
        same = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
        return same if same is not None else min(len(self.plain.text), len(self.drafted.text))


@dataclass
class Totals:
    """Counts over a session.

    Attributes:
        answers: Answers given.
        plain_answers: Those of them made without the drafter.
        tokens: Tokens generated.
        seconds: Time they took, prompts not counted.
        drafting: Counts of the answers that drafted.
    """

    answers: int = 0
    plain_answers: int = 0
    tokens: int = 0
    seconds: float = 0.0
    drafting: AcceptanceStats = field(default_factory=AcceptanceStats)

    def add(self, answer: Answer) -> None:
        """Count an answer."""
        self.answers += 1
        self.tokens += answer.tokens
        self.seconds += answer.tokens / answer.tps if answer.tps else 0.0
        if answer.drafted:
            self.drafting.merge(answer.stats)
        else:
            self.plain_answers += 1


class Session:
    """A conversation that goes on from turn to turn.

    Args:
        model: Target and drafter.
        tokenizer: The target's tokenizer.
        facts: What is known about the model.
        settings: How answers are made, to begin with.
        stream: ``generation.stream_generate``, or something that behaves like it.

    Attributes:
        model, tokenizer, facts: As given.
        settings: How answers are made; replaced as a whole.
        messages: The conversation so far, without the system message.
        totals: Counts of this session.
        baseline: Plain decoding as measured, None until it was.
        last: The latest answer.
        planner: Chooses beam shapes where the settings name none; None drafts one default shape.
        prompt_tokens: Length of the prompt that is being, or was last, answered.
    """

    def __init__(
        self,
        model: SpeculativeModel,
        tokenizer: Any,
        facts: ModelFacts,
        settings: ChatSettings,
        stream: StreamFunction,
    ):
        self.model = model
        self.tokenizer = tokenizer
        self.facts = facts
        self.settings = settings
        self.messages: list[Message] = []
        self.totals = Totals()
        self.baseline: Baseline | None = None
        self.last: Answer | None = None
        self.planner: Planner | None = None
        self.prompt_tokens = 0
        self._stream = stream
        self._cache: PromptCache = model.make_cache()

    @property
    def drafts(self) -> bool:
        """Whether the next answer will be drafted."""
        return self.settings.draft and self.model.drafter is not None

    @property
    def beam(self) -> tuple[int, int]:
        """Beam width and length of the next answer."""
        width, length = self.facts.beam
        return self.settings.beam_width or width, self.settings.beam_length or length

    @property
    def plans(self) -> bool:
        """Whether the planner chooses the shapes of the next answer's drafts."""
        settings = self.settings
        given = (settings.beam_width, settings.beam_length, settings.node_budget)
        return self.drafts and self.planner is not None and given == (None, None, None)

    @property
    def cache(self) -> PromptCache:
        """Caches of the conversation."""
        return self._cache

    def ask(self, question: str) -> Generator[GenerationResponse, None, None]:
        """Answer a question, one response a token.

        The question and as much of the answer as was taken from the iterator join the conversation
        when it ends or is closed. Where not a single token came, the question is taken back.

        Raises:
            RedrafterError: If the conversation no longer fits the model's context.
        """
        before = len(self.messages)
        self.messages.append({"role": "user", "content": question})
        answer: Answer | None = None
        try:
            with closing(self._answer(question, self.messages, self.settings.draft)) as parts:
                for answer, response in parts:  # noqa: B007 - the last one concludes
                    yield response
        finally:
            self._conclude(before, answer)

    def _conclude(self, before: int, answer: Answer | None) -> None:
        """Take an answer into the conversation, or its question out of it."""
        if answer is None:
            del self.messages[before:]
            return
        answer = replace(answer, stats=answer.stats.snapshot())
        self.messages.append({"role": "assistant", "content": answer.text})
        self.last = answer
        self.totals.add(answer)
        if not answer.drafted:
            self.note_plain(answer)

    def compare(self) -> Comparison:
        """Answer the last question again, plain and then drafted; the conversation stays.

        Raises:
            RedrafterError: If there is no question yet or no drafter.
        """
        if self.model.drafter is None:
            raise RedrafterError("There is no drafter to compare with: start with --drafter.")
        asked = [i for i, message in enumerate(self.messages) if message["role"] == "user"]
        if not asked:
            raise RedrafterError("There is no question yet: ask one, then /compare.")
        upto = self.messages[: asked[-1] + 1]
        plain, drafted = (self._rerun(upto, draft) for draft in (False, True))
        self.note_plain(plain)
        return Comparison(plain, drafted)

    def _rerun(self, messages: Sequence[Message], draft: bool) -> Answer:
        answer: Answer | None = None
        with closing(self._answer(messages[-1]["content"], messages, draft)) as parts:
            for answer, _ in parts:  # noqa: B007 - the last one is the whole answer
                pass
        assert answer is not None, "a generator without an error yields at least one token"
        return replace(answer, stats=answer.stats.snapshot())

    def _answer(
        self, question: str, messages: Sequence[Message], draft: bool
    ) -> Generator[tuple[Answer, GenerationResponse], None, None]:
        """Generate, pairing each response with the answer as it stands."""
        prompt = self.encode(messages)
        limit = self._room(len(prompt))
        self.prompt_tokens = len(prompt)
        drafted = draft and self.model.drafter is not None
        responses = self._stream(
            self.model,
            self.tokenizer,
            prompt,
            cache=self._cache,
            **self._stream_settings(draft, limit),
        )
        answer = Answer(question, "", drafted, True, len(prompt), None, None, AcceptanceStats())
        # Only closing it leaves the caches at exactly the tokens that were taken.
        with closing(cast("Generator[GenerationResponse, None, None]", responses)):
            for response in responses:
                step = response.step if response.step and response.step.drafted else answer.step
                finish = response.finish_reason
                cut = finish == "length" and limit < self.settings.max_tokens
                answer = replace(
                    answer,
                    text=answer.text + response.text,
                    interrupted=finish is None,
                    final=response,
                    step=step,
                    stats=response.stats,
                    at_limit=cut,
                )
                yield answer, response

    def _stream_settings(self, draft: bool, max_tokens: int) -> dict[str, Any]:
        settings = self.settings
        return {
            "max_tokens": max_tokens,
            "temperature": settings.temperature,
            "top_p": settings.top_p,
            "top_k": settings.top_k,
            "min_p": settings.min_p,
            "seed": settings.seed,
            "draft": draft,
            "beam_width": settings.beam_width,
            "beam_length": settings.beam_length,
            "node_budget": settings.node_budget,
            "planner": self.planner if draft else None,
        }

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """Tokens of a conversation, up to where the model's answer begins.

        Raises:
            RedrafterError: If the model's chat template refuses the conversation.
        """
        system = self.settings.system
        above = [{"role": "system", "content": system}] if system else []
        everything = [*above, *messages]
        if not getattr(self.tokenizer, "has_chat_template", True):
            return encode_prompt(self.tokenizer, "\n\n".join(m["content"] for m in everything))
        return encode_prompt(self.tokenizer, everything)

    def _room(self, prompt_tokens: int) -> int:
        """Longest answer that still fits the context.

        Raises:
            RedrafterError: If none does.
        """
        limit = self.facts.context_limit
        if limit is None:
            return self.settings.max_tokens
        if prompt_tokens >= limit:
            raise RedrafterError(
                f"The conversation is {prompt_tokens:,} tokens long, but this model reads "
                f"{limit:,} at most: start anew with /reset, or ask something shorter."
            )
        return min(self.settings.max_tokens, limit - prompt_tokens)

    def note_plain(self, answer: Answer) -> None:
        """Take a plain answer as the latest measurement of plain decoding."""
        if answer.tokens >= ENOUGH_TOKENS and answer.tps:
            self.baseline = Baseline(answer.tps, answer.tokens, answer.prompt_tokens)

    def speedup(self, tps: float) -> float | None:
        """How many times as fast as plain decoding; None before both were measured."""
        if self.baseline is None or not tps:
            return None
        return tps / self.baseline.tps

    def reset(self) -> None:
        """Forget the conversation; settings and counts stay."""
        self.replace_messages([])

    def replace_messages(self, messages: Sequence[Message]) -> None:
        """Go on from another conversation."""
        self.messages = [dict(message) for message in messages]
        self.last = None
        self.prompt_tokens = 0
        self._cache.reset()
