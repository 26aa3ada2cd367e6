"""The chat's settings, their flags, and how they are told in words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..flags import flag
from ..parsing import (
    LARGEST_SEED,
    LONGEST_BEAM,
    WIDEST_BEAM,
    count,
    json_object,
    min_p,
    temperature,
    top_p,
)

_ANSWERS, _DRAFTING, _SCREEN = "answers", "drafting", "screen"


@dataclass(frozen=True)
class ChatSettings:
    """How answers are made; commands replace it as a whole.

    Each field is a flag; its metadata says what it means. ``beam_width``, ``beam_length`` and
    ``node_budget`` are None for the planner's or the library's choice, ``seed`` is None where every
    answer draws its own.
    """

    temperature: float = flag(
        0.0, _ANSWERS, "sampling temperature; 0, the default, takes the likeliest token",
        reader=temperature, aliases=("temp",), metavar="X",
    )  # fmt: skip
    top_p: float = flag(
        1.0, _ANSWERS, "sample from the likeliest tokens that make up this share; 1 is all",
        reader=top_p, metavar="P",
    )  # fmt: skip
    top_k: int = flag(
        0, _ANSWERS, "sample from the K likeliest tokens; 0 is all", reader=count(0), metavar="K"
    )
    min_p: float = flag(
        0.0, _ANSWERS, "leave out tokens less likely than this share of the likeliest; 0 is none",
        reader=min_p, metavar="P",
    )  # fmt: skip
    seed: int | None = flag(
        None, _ANSWERS, "the same seed gives the same words; without one every answer draws its "
        "own", reader=count(0, LARGEST_SEED),
    )  # fmt: skip
    max_tokens: int = flag(512, _ANSWERS, "longest answer", reader=count(1), aliases=("m",))
    system: str | None = flag(
        None, _ANSWERS, "instruction above the conversation", aliases=("system_prompt",)
    )
    chat_template_args: dict[str, Any] | None = flag(
        None, _ANSWERS, "arguments of the chat template, such as '{\"enable_thinking\": false}'",
        reader=json_object, metavar="JSON",
    )  # fmt: skip
    context_limit: int | None = flag(
        None, _ANSWERS, "longest conversation, where the model's config.json says it wrongly",
        reader=count(1), metavar="N",
    )  # fmt: skip

    draft: bool = flag(True, _DRAFTING, "start with plain decoding", negative="no-draft")
    copy: bool = flag(
        True, _DRAFTING, "do not draft copies of the text, for which no drafter is needed",
        negative="no-copy",
    )  # fmt: skip
    beam_width: int | None = flag(
        None, _DRAFTING, "beams kept while drafting", reader=count(1, WIDEST_BEAM), metavar="W"
    )
    beam_length: int | None = flag(
        None, _DRAFTING, "tokens drafted ahead", reader=count(1, LONGEST_BEAM), metavar="L"
    )
    node_budget: int | None = flag(
        None, _DRAFTING, "drafted tokens the target checks at once; default: all the beams opened",
        reader=count(1, WIDEST_BEAM), metavar="N",
    )  # fmt: skip

    marks: bool = flag(
        True, _SCREEN, "do not show which tokens the drafter had guessed", negative="no-marks"
    )
    thoughts: bool = flag(
        True, _SCREEN, "fold a reasoning model's thoughts away", negative="no-thoughts"
    )

    def sampling_words(self) -> str:
        """'greedy', or the temperature and whatever narrows the choice."""
        if self.temperature == 0:
            return "greedy"
        words = [f"temperature {self.temperature:g}"]
        if 0 < self.top_p < 1:
            words.append(f"top-p {self.top_p:g}")
        if self.top_k:
            words.append(f"top-k {self.top_k}")
        if self.min_p:
            words.append(f"min-p {self.min_p:g}")
        seed = "a seed of each answer's own" if self.seed is None else f"seed {self.seed}"
        return ", ".join([*words, seed])
