"""What the line under an answer says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.text import Text

from .answer import Answer, Baseline
from .session import ENOUGH_TOKENS, Session

if TYPE_CHECKING:
    from ...text.responses import GenerationResponse

BARS = " ▁▂▃▄▅▆▇█"
GAP = "  "
UNMEASURED = "not measured yet: /compare does it"


@dataclass(frozen=True)
class Reading:
    """The figures of an answer under way.

    Attributes:
        tps: Tokens per second.
        speedup: Times as fast as plain decoding, None before that was measured.
        drafted: Whether the drafter is at work.
        tokens_per_step: Mean tokens per target forward.
        by_depth: Acceptance at depth 1, 2, ...
        last_accepted, last_drafted: The last step's.
        context: Tokens in the context.
        memory: Peak memory in GB.
    """

    tps: float
    speedup: float | None
    drafted: bool
    tokens_per_step: float
    by_depth: tuple[float, ...]
    last_accepted: int
    last_drafted: int
    context: int
    memory: float


def read(session: Session, response: GenerationResponse) -> Reading:
    """The figures after a response."""
    stats = response.stats
    tps = stats.tokens_per_second
    context = response.prompt_tokens + response.generation_tokens
    tells = stats.tokens >= ENOUGH_TOKENS and stats.drafted > 0
    return Reading(
        tps=tps,
        speedup=session.speedup(tps, context) if tells else None,
        drafted=session.drafts,
        tokens_per_step=stats.tokens_per_step,
        by_depth=tuple(stats.acceptance_by_depth),
        last_accepted=stats.last_accepted,
        last_drafted=stats.last_drafted,
        context=context,
        memory=response.peak_memory,
    )


def bars(shares: Sequence[float]) -> str:
    """One small bar for each share from 0 to 1."""
    top = len(BARS) - 1
    return "".join(BARS[min(top, max(1, round(share * top)))] for share in shares)


def times(speedup: float | None) -> str:
    """A speed-up as text, a dash before plain decoding was measured."""
    return f"{speedup:.2f}×" if speedup is not None else "-"


def rate(per_second: float) -> str:
    """Tokens a second as text; of few the tenths count, and 0.4 is not nothing."""
    return f"{per_second:,.0f}" if per_second >= 9.95 or not per_second else f"{per_second:.1f}"


def status_line(reading: Reading, width: int) -> Text:
    """The live line: as many of the figures as fit, the weightier first."""
    parts = [_part(rate(reading.tps) if reading.tps else "-", " tok/s")]
    if reading.drafted:
        parts.append(_part(times(reading.speedup), " plain", _speed_style(reading.speedup)))
        parts.append(_part(f"{reading.tokens_per_step:.2f}", " tok/step"))
        depths = bars(reading.by_depth) or "-"
        parts.append(_part("", "depth ").append(depths, "status.bar"))
        last = f"{reading.last_accepted}/{reading.last_drafted}"
        parts.append(_part("", "last ").append(last, "status.value"))
    parts.append(_part("", "context ").append(f"{reading.context:,}", "status.value"))
    parts.append(_part(f"{reading.memory:.2f}", " GB"))
    line = Text(no_wrap=True, overflow="ellipsis")
    for part in parts:
        if line and line.cell_len + len(GAP) + part.cell_len > width:
            break
        line.append(GAP if line else "").append_text(part)
    return line


def _part(value: str, unit: str, style: str = "status.value") -> Text:
    # Both as spans: a style of the text as a whole would lie under the parts added to it.
    return Text().append(value, style).append(unit, "status")


def _speed_style(speedup: float | None) -> str:
    if speedup is None:
        return "status.value"
    return "status.faster" if speedup >= 1 else "status.slower"


def summary(answer: Answer, speedup: float | None, planning: str | None = None) -> str:
    """An answer in one line, after it has ended.

    Args:
        answer: The answer.
        speedup: How many times as fast as plain decoding it came; None where that says nothing.
        planning: What the planner is about, where it does not simply draft.
    """
    noun = "token" if answer.tokens == 1 else "tokens"
    parts = [f"{answer.tokens:,} {noun}", f"{rate(answer.tps)} tok/s"]
    if answer.drafted and answer.stats.steps:
        parts += _drafting_words(answer, speedup)
        parts += [planning] if planning else []
    elif not answer.drafted:
        parts.append("plain decoding")
    if answer.final is not None:
        parts.append(f"prompt {rate(answer.final.prompt_tps)} tok/s")
        parts.append(f"{answer.final.peak_memory:.2f} GB")
    return " · ".join(parts)


def _drafting_words(answer: Answer, speedup: float | None) -> list[str]:
    words = [f"{times(speedup)} plain"] if speedup is not None else []
    words.append(f"{answer.stats.tokens_per_step:.2f} tokens/step")
    words.append(f"{answer.stats.accepted:,} of them drafted")
    depths = " ".join(f"{share:.0%}".rstrip("%") for share in answer.stats.acceptance_by_depth[:8])
    return [*words, f"accepted by depth {depths} %"] if depths else words


def afterwords(session: Session, answer: Answer) -> list[str]:
    """What else has to be said of an answer: why it ended, which seed it had."""
    reason = ending(answer, session.settings.max_tokens, goes_on=session.goes_on)
    sentences = [reason] if reason else []
    sampling = session.settings.sampling
    if sampling.temperature and sampling.seed != answer.seed:
        another = ": /retry draws another." if session.goes_on else "."
        sentences.append(f"Drawn with seed {answer.seed}{another}")
    return sentences


def ending(answer: Answer, max_tokens: int, *, goes_on: bool = True) -> str | None:
    """Why an answer ended, where that was not its own end, and what helps."""
    if not goes_on:
        if answer.interrupted:
            return "Stopped."
        full = "The model's context is full: a shorter question leaves more room."
        cut = f"Cut after {max_tokens:,} tokens: --max-tokens allows more."
        return full if answer.at_limit else cut if answer.cut else None
    if answer.interrupted:
        return "Stopped; the conversation keeps what was said, and /continue goes on with it."
    if answer.at_limit:
        return "The model's context is full: /reset starts a new conversation."
    if answer.cut:
        return f"Cut after {max_tokens:,} tokens: /continue goes on, /max-tokens allows more."
    return None


def baseline_words(baseline: Baseline | None) -> str:
    """How fast plain decoding is and how that is known."""
    if baseline is None:
        return f"plain decoding {UNMEASURED}"
    return (
        f"plain decoding {rate(baseline.tps)} tok/s, measured here over {baseline.tokens} tokens "
        f"at {baseline.context:,} tokens of context"
    )
