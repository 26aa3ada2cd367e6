"""A conversation with a model: messages, settings, caches and counts. It prints nothing."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from ...engine.statistics import AcceptanceStats
from ...errors import RedrafterError
from ...text.passages import Passages
from ...text.prompts import encode_prompt
from .answer import Answer, Baseline, Comparison, ModelFacts, Totals
from .resuming import CutMark, cut_answer, going_on, refusal, reopened
from .settings import ChatSettings

if TYPE_CHECKING:
    from ...cache.prompt_cache import PromptCache
    from ...engine.model import SpeculativeModel
    from ...planning.headless_planner import HeadlessPlanner
    from ...planning.planner import Planner
    from ...text.responses import GenerationResponse

Message = dict[str, str]


def _said(text: str) -> Message:
    return {"role": "assistant", "content": text}


# What ``stream_generate`` looks like from here.
StreamFunction = Callable[..., "Iterator[GenerationResponse]"]
# A plain answer shorter than this says too little about the speed.
ENOUGH_TOKENS = 16


class Session:
    """A conversation that continues from turn to turn.

    Args:
        model: Target and drafter.
        tokenizer: The target's tokenizer.
        facts: What is known about the model.
        settings: How answers are made, to begin with.
        stream: ``generation.stream_generate``, or something that behaves like it.
        goes_on: Whether questions and commands can follow an answer.
        recalibrate: Whether the machine is measured again for the planner.

    Attributes:
        model, tokenizer, facts, goes_on, recalibrate: As given.
        settings: How answers are made; replaced as a whole.
        messages: The conversation so far, without the system message.
        totals: Counts of this session.
        baseline: Plain decoding as measured, None until it was.
        last: The latest answer.
        planner: Says what is drafted or copied where the settings do not; None before that.
        prompt: Token ids of the prompt that is being, or was last, answered.
    """

    def __init__(
        self,
        model: SpeculativeModel,
        tokenizer: Any,
        facts: ModelFacts,
        settings: ChatSettings,
        stream: StreamFunction,
        *,
        goes_on: bool = True,
        recalibrate: bool = False,
    ):
        self.model, self.tokenizer, self.facts = model, tokenizer, facts
        self.settings = settings
        self.messages: list[Message] = []
        self.totals = Totals()
        self.baseline: Baseline | None = None
        self.last: Answer | None = None
        self.planner: Planner | HeadlessPlanner | None = None
        self.goes_on, self.recalibrate = goes_on, recalibrate
        self.prompt: list[int] = []
        self._begun = ""
        self._stream = stream
        self._cache: PromptCache = model.make_cache()

    @property
    def drafts(self) -> bool:
        """Whether the next answer will be drafted, by the drafter or by copies of the text."""
        return self.settings.draft and self.drafts_if_on

    @property
    def drafts_if_on(self) -> bool:
        """Whether an answer would be drafted that is not to be plain."""
        copies = self.settings.copy and self.facts.copies
        return self.model.drafter is not None or copies

    @property
    def guesses(self) -> bool:
        """Whether the drafter guesses the next answer."""
        return self.settings.draft and self.model.drafter is not None

    @property
    def copies(self) -> bool:
        """Whether the next answer may be copied from the text."""
        return self.settings.draft and self.settings.copy and self.facts.copies

    @property
    def beam(self) -> tuple[int, int]:
        """Beam width and length of the next answer."""
        width, length = self.facts.beam
        return self.settings.beam_width or width, self.settings.beam_length or length

    @property
    def plans_beams(self) -> bool:
        """Whether beams are planned, or will be as soon as something is drafted."""
        later = self.model.head is not None and self.model.leader is None  # see ``planning.plan``
        now = self.planner is not None and self.model.drafter is not None
        return (now or later) and not self.settings.names_beam

    @property
    def beam_planner(self) -> Planner | None:
        """The planner of the next answer's beams; None where nobody plans them, or not yet."""
        planner = cast("Planner | None", self.planner)  # as it is of a model with a drafter
        return planner if self.guesses and self.plans_beams else None

    def plan_with(self, planner: Planner | HeadlessPlanner | None) -> None:
        """Let a planner say from now on what is drafted."""
        self.planner = planner

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
        before = list(self.messages)
        self.messages.append({"role": "user", "content": question})
        yield from self._take(before, self._answer(self.messages, self.settings.draft))

    def retry(self) -> Generator[GenerationResponse, None, None]:
        """Answer the last question again, in place of its answer and with another seed.

        Raises:
            RedrafterError: If there is no question yet.
        """
        asked = [i for i, message in enumerate(self.messages) if message["role"] == "user"]
        if not asked:
            raise RedrafterError("There is no question yet: ask one, then /retry.")
        return self._again(asked[-1])

    def _again(self, question: int) -> Generator[GenerationResponse, None, None]:
        """Answer the question at a place among the messages; nothing changes before it is read."""
        before = list(self.messages)
        del self.messages[question + 1 :]
        seed = self.settings.sampling.seed
        if seed is not None and self.last is not None and self.last.named_seed == seed:
            seed = (self.last.seed + 1) % 2**63  # the named one would give the same words again
        yield from self._take(before, self._answer(self.messages, self.settings.draft, seed=seed))

    def resume(self) -> Generator[GenerationResponse, None, None]:
        """Go on with an answer that was stopped or cut, as if it had not been.

        Raises:
            RedrafterError: If the last answer was not cut.
        """
        last = self.last
        if last is None or not last.cut or self.messages[-1:] != [_said(last.text)]:
            answered = any(message["role"] == "assistant" for message in self.messages)
            raise refusal(last, answered=answered)
        answer = self._answer(self.messages[:-1], self.settings.draft, begun=last)
        return self._take(list(self.messages), answer)

    def _take(
        self,
        before: list[Message],
        parts: Generator[tuple[Answer, GenerationResponse], None, None],
    ) -> Generator[GenerationResponse, None, None]:
        """Pass responses on; at the end the answer joins the conversation, or nothing changes."""
        answer: Answer | None = None
        try:
            with closing(parts):
                for answer, response in parts:  # noqa: B007 - the last one concludes
                    yield response
        finally:
            self._conclude(before, answer)

    def _conclude(self, before: list[Message], answer: Answer | None) -> None:
        """Take an answer into the conversation, or go back to what was ``before``."""
        if answer is None:
            self.messages[:] = before
            return
        answer = replace(answer, stats=answer.stats.snapshot())
        if self.messages[-1]["role"] == "assistant":
            self.messages.pop()  # the beginning that was gone on with
        self.messages.append(_said(answer.text))
        self.last = answer
        self.totals.add(answer)
        if not answer.drafted:
            self.note_plain(answer)

    def compare(self) -> Comparison:
        """Answer the last question again, plain and then drafted; the conversation stays.

        Raises:
            RedrafterError: If there is no question yet or nothing is drafted.
        """
        if not self.drafts_if_on:
            raise RedrafterError("There is no drafter to compare with: start with --drafter.")
        asked = [i for i, message in enumerate(self.messages) if message["role"] == "user"]
        if not asked:
            raise RedrafterError("There is no question yet: ask one, then /compare.")
        upto = self.messages[: asked[-1] + 1]
        # Both draw with one seed: the last answer's, if there is one.
        seed = self._seed() if self.last is None else self.last.seed
        plain, drafted = (self._rerun(upto, draft, seed) for draft in (False, True))
        self.note_plain(plain)
        return Comparison(plain, drafted)

    def _rerun(self, messages: Sequence[Message], draft: bool, seed: int) -> Answer:
        answer: Answer | None = None
        with closing(self._answer(messages, draft, seed=seed, remember=False)) as parts:
            for answer, _ in parts:  # noqa: B007 - the last one is the whole answer
                pass
        assert answer is not None, "a generator without an error yields at least one token"
        return replace(answer, stats=answer.stats.snapshot())

    def _seed(self) -> int:
        """The next answer's seed: the one that was set, or one of its own."""
        return self.settings.sampling.seeded().seed or 0

    def _answer(
        self,
        messages: Sequence[Message],
        draft: bool,
        *,
        seed: int | None = None,
        begun: Answer | None = None,
        remember: bool = True,
    ) -> Generator[tuple[Answer, GenerationResponse], None, None]:
        """Generate, pairing each response with the answer as it stands.

        Args:
            messages: The conversation up to the question.
            draft: Whether the drafter is used.
            seed: Of this answer; None for the settings'.
            begun: An answer to go on with, which has its own seed and text.
            remember: Whether earlier answers are copied; not to time one again.
        """
        question, named = messages[-1]["content"], self.settings.sampling.seed
        if begun is not None:
            seed, named = begun.seed, begun.named_seed
        seed = self._seed() if seed is None else seed
        token_ids = list(begun.token_ids) if begun is not None else []
        self.prompt = self.encode(messages)
        prompt = [*self.prompt, *token_ids]
        limit = self._room(len(prompt))
        drafted = draft and self.drafts_if_on
        responses = self._stream(
            self.model,
            self.tokenizer,
            prompt,
            cache=self._cache,
            **self._stream_settings(draft, limit, seed),
            remember=remember,
        )
        said = ""
        if begun is not None:
            detokenizer, said = reopened(self.tokenizer, begun.token_ids)
            responses = going_on(detokenizer, responses)
        self._begun = said
        answer = Answer(
            question, said, drafted, True, len(prompt), None,
            None, AcceptanceStats(), False, seed, named, token_ids,
        )  # fmt: skip
        # Only closing it leaves the caches at exactly the tokens that were taken.
        with closing(cast("Generator[GenerationResponse, None, None]", responses)):
            for response in responses:
                step = response.step if response.step and response.step.drafted else answer.step
                finish = response.finish_reason
                cut = finish == "length" and limit < self.settings.max_tokens
                if finish != "stop":
                    token_ids.append(response.token)
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

    def _stream_settings(self, draft: bool, max_tokens: int, seed: int) -> dict[str, Any]:
        settings = self.settings
        return {
            "max_tokens": max_tokens,
            **settings.sampling_options(),
            "seed": seed,
            "draft": draft,
            "copy": settings.copy,
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
        return encode_prompt(
            self.tokenizer, everything, template_args=self.settings.chat_template_args
        )

    def passages(self) -> Passages:
        """Tells thoughts and answer apart in the answer that is being made."""
        return Passages(self.tokenizer, self.prompt, self._begun)

    def _room(self, prompt_tokens: int) -> int:
        """Longest answer that still fits the context.

        Raises:
            RedrafterError: If none does.
        """
        limit = self.model.room(self.settings.context_limit)
        if limit is None:
            return self.settings.max_tokens
        if prompt_tokens >= limit:
            anew = "start anew with /reset, or " if self.goes_on else ""
            raise RedrafterError(
                f"The conversation is {prompt_tokens:,} tokens long, which leaves no room for an "
                f"answer, as this model reads {limit:,} at most: {anew}ask something shorter."
            )
        return min(self.settings.max_tokens, limit - prompt_tokens)

    def note_plain(self, answer: Answer) -> None:
        """Take a plain answer as the latest measurement of plain decoding."""
        if answer.tokens >= ENOUGH_TOKENS and answer.tps:
            self.take_baseline(Baseline(answer.tps, answer.tokens, answer.prompt_tokens))

    def take_baseline(self, measured: Baseline | None) -> None:
        """Take a measurement of plain decoding, where there is one, in place of the last."""
        self.baseline = measured or self.baseline

    def speedup(self, tps: float, context: int | None = None) -> float | None:
        """How many times as fast as plain decoding; None before both were measured.

        Args:
            tps: Tokens per second.
            context: The text's length: where shapes are planned, plain decoding's speed there is
                known from plain steps as they happen.
        """
        plain = self.baseline.tps if self.baseline is not None else None
        if context is not None and self.beam_planner is not None:
            plain = self.beam_planner.plain_speed(context) or plain
        return tps / plain if plain and tps else None

    def ratio(self, answer: Answer) -> float | None:
        """How many times as fast as plain decoding an answer came; None where that says nothing.

        So it is with a handful of tokens, and where nothing was drafted.
        """
        if answer.tokens < ENOUGH_TOKENS or not answer.stats.drafted:
            return None
        return self.speedup(answer.tps, answer.prompt_tokens + answer.tokens // 2)

    @property
    def planning(self) -> str | None:
        """What the planner is about, where it does not simply draft; None otherwise."""
        planner = self.beam_planner
        return planner.state.value if planner is not None and planner.choice is None else None

    def reset(self) -> None:
        """Forget the conversation; settings and counts stay."""
        self.replace_messages([])

    def replace_messages(self, messages: Sequence[Message], cut: CutMark | None = None) -> None:
        """Go on from another conversation, and with its last answer where that was ``cut``."""
        self.messages = [dict(message) for message in messages]
        self.last = None
        if cut is not None:
            question, answer = (message["content"] for message in self.messages[-2:])
            self.last = cut_answer(self.tokenizer, question, answer, cut)
        self.prompt = []
        self._cache.reset()
