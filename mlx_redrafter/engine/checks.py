"""What is asked of a text before it is decoded: its prompt, its options, and room for it."""

from __future__ import annotations

from typing import Any, cast

from ..errors import RedrafterError
from ..ranges import of_kind, prompt_ids
from .config import DecodingConfig
from .model import check_model
from .shape_planner import ShapePlanner


def checked_prompt(prompt: Any, vocab_size: int, name: str = "The prompt") -> list[int]:
    """The ids of a prompt, which may be an array's.

    Raises:
        RedrafterError: If it is no list of token ids, is empty, or holds ids that the model has
            not, naming the prompt.
    """
    ids = prompt_ids(prompt, name)
    if not ids:
        raise RedrafterError(f"{name} is empty: give at least one token.")
    if min(ids) < 0 or max(ids) >= vocab_size:
        raise RedrafterError(f"{name} holds token ids outside the vocabulary of {vocab_size}.")
    return ids


def checked_config(model: Any, config: Any) -> DecodingConfig:
    """How to decode, by default greedily; and that there is a model to decode with.

    Raises:
        RedrafterError: If one is something else.
    """
    check_model(model)
    if config is None:
        return DecodingConfig()
    whole: DecodingConfig = of_kind(config, "config", DecodingConfig, "a DecodingConfig")
    return whole


def checked_planner(planner: Any) -> ShapePlanner | None:
    """Who is to plan; None where nobody is.

    Raises:
        RedrafterError: If it does not plan.
    """
    told: Any = getattr(planner, "observe", None)
    if planner is not None and (isinstance(planner, type) or not callable(told)):
        raise RedrafterError("planner has to be a Planner, or something with its methods.")
    return cast("ShapePlanner | None", planner)


def token_limit(prompt: int, max_tokens: int, positions: int | None) -> int:
    """Tokens to decode at most where a model's table of positions ends.

    Args:
        prompt: Tokens of the prompt.
        max_tokens: What was asked for; -1 for no limit.
        positions: Rows of the table; None where the model has none.

    Raises:
        RedrafterError: If the prompt alone is longer than the table.
    """
    if positions is None:
        return max_tokens
    if prompt > positions:
        raise RedrafterError(
            f"The prompt has {prompt} tokens, but this model has positions for {positions}: "
            "shorten it."
        )
    room = positions + 1 - prompt  # the last token is chosen, but never fed
    return room if max_tokens == -1 else min(max_tokens, room)
