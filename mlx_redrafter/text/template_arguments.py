"""Which arguments of a chat template are whoever calls it's own, and no user's to set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import RedrafterError

# Names that the tokenizer takes for itself.
TOKENIZERS = frozenset(
    {
        "self", "tokenizer", "messages", "conversation", "conversations", "tokenize",
        "tokenizer_kwargs", "padding", "truncation", "max_length", "return_tensors", "return_dict",
    }
)  # fmt: skip
# Those besides that say how a prompt ends and what the template is: with others an answer would
# not be one, or a template would run that nothing bounds.
PROGRAMS = TOKENIZERS | {
    "add_generation_prompt", "continue_final_message", "chat_template",
    "return_assistant_tokens_mask",
}  # fmt: skip


def check_arguments(given: Any) -> Any:
    """Refuse arguments that the program sets itself; what is no mapping is told of elsewhere.

    Raises:
        RedrafterError: Naming the first.
    """
    for name in given if isinstance(given, Mapping) else ():
        if name in PROGRAMS:
            raise RedrafterError(
                f"chat_template_args has {name!r}, which is set for you: leave it out."
            )
    return given
