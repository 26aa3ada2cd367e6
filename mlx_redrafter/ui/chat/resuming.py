"""Answers that were cut: text that joins onto one, and what a file has to say to go on with it."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

from ...engine.statistics import AcceptanceStats
from ...errors import RedrafterError
from ...text.detokenizing import add_token
from .answer import Answer

if TYPE_CHECKING:
    from ...text.responses import GenerationResponse


@dataclass(frozen=True)
class CutMark:
    """What going on with a cut answer takes besides its text.

    Attributes:
        token_ids: Of the text.
        seed: Names the text at temperatures above 0.
        named_seed: The one that was set then; None if none was.
    """

    token_ids: tuple[int, ...]
    seed: int
    named_seed: int | None


def cut_mark(last: Answer | None, text: str) -> CutMark | None:
    """What has to be kept of the answer ``text``; None where it was not cut."""
    if last is None or not last.cut or last.text != text:
        return None
    return CutMark(tuple(last.token_ids), last.seed, last.named_seed)


def cut_answer(tokenizer: Any, question: str, text: str, mark: CutMark) -> Answer:
    """An answer as it was cut, to go on with.

    Another model's tokens, or those of a text that was changed since, do not make the text: then
    the text is encoded, which may take it apart otherwise than the answer came.
    """
    ids = list(mark.token_ids)
    if not _makes(tokenizer, ids, text):
        ids = list(tokenizer.encode(text, add_special_tokens=False))
    return Answer(
        question, text, False, True, 0, None, None, AcceptanceStats(), False, mark.seed,
        mark.named_seed, ids,
    )  # fmt: skip


def _makes(tokenizer: Any, token_ids: Sequence[int], text: str) -> bool:
    """Whether tokens make a text, the part of a character that may end it aside."""
    try:
        detokenizer, said = reopened(tokenizer, token_ids)
        detokenizer.finalize()
    except Exception:  # tokenizers raise errors of their own kinds for ids that they lack
        return False
    return bool(token_ids) and said + detokenizer.last_segment == text


def refusal(last: Answer | None, *, answered: bool) -> RedrafterError:
    """Why there is nothing to go on with.

    Args:
        last: The latest answer of this session, None where there is none.
        answered: Whether the conversation holds an answer.
    """
    if not answered:
        return RedrafterError("There is no answer yet to go on with: ask a question first.")
    if last is None:
        return RedrafterError(
            "The file does not say that its last answer was cut, so there is nothing to go on "
            "with: ask the next question."
        )
    if last.at_limit:
        return RedrafterError("The model's context is full: /reset starts a new conversation.")
    return RedrafterError(
        "The last answer was not cut, so there is nothing to go on with: ask the next question."
    )


def reopened(tokenizer: Any, token_ids: Sequence[int]) -> tuple[Any, str]:
    """A detokenizer in the midst of a text, and the text so far, as far as it is certain.

    A cut text ends with what stood for the part of a character that had come; the rest of its bytes
    may be the next token's.
    """
    detokenizer, text = tokenizer.detokenizer, ""
    for token in token_ids:
        add_token(detokenizer, token)
        text += detokenizer.last_segment
    return detokenizer, text


def going_on(
    detokenizer: Any, responses: Iterator[GenerationResponse]
) -> Generator[GenerationResponse, None, None]:
    """Responses whose texts join onto the text that the detokenizer holds."""
    with closing(cast("Generator[GenerationResponse, None, None]", responses)):
        for response in responses:
            if response.finish_reason != "stop":
                add_token(detokenizer, response.token)
            if response.finish_reason is not None:
                detokenizer.finalize()
            yield replace(response, text=detokenizer.last_segment)
