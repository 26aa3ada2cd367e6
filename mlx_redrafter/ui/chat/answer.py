"""What a chat knows of its model, of an answer, and of all answers of a session."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ...engine.statistics import AcceptanceStats

if TYPE_CHECKING:
    from ...engine.step import StepRecord
    from ...text.responses import GenerationResponse


@dataclass(frozen=True)
class ModelFacts:
    """What the screen says about the model.

    Attributes:
        name: The target's name.
        drafter: The drafter in a few words, None if there is none.
        device: Where it runs.
        precision: How its weights are stored.
        beam: Default beam width and length.
        purpose: What it is for, in a sentence of its own README; None if it has none.
        copies: Whether copies of the text can be verified.
    """

    name: str
    drafter: str | None
    device: str
    precision: str
    beam: tuple[int, int]
    purpose: str | None = None
    copies: bool = False


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
        drafted: Whether the drafter was used, or the text copied.
        interrupted: Whether it was stopped before its end.
        prompt_tokens: Length of the whole prompt.
        final: The last response, None if not even the first token came.
        step: The last step that drafted, None if none did.
        stats: Counts of this answer.
        at_limit: Whether the model's context was full.
        seed: Names the text at temperatures above 0.
        named_seed: The one that was set then; None if none was.
        token_ids: Of the text, without the one that ended it; it grows as the answer does.
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
    seed: int = 0
    named_seed: int | None = None
    token_ids: list[int] = field(default_factory=list)

    @property
    def cut(self) -> bool:
        """Whether there is more to say: it was stopped, or the limit of tokens ended it."""
        return self.interrupted or (
            self.final is not None and self.final.finish_reason == "length" and not self.at_limit
        )

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
            "seed": self.seed,
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
