"""Text that joins onto an answer which was cut, in the midst of a character too."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from ...text.detokenizing import add_token

if TYPE_CHECKING:
    from ...text.responses import GenerationResponse


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
