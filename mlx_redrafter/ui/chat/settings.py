"""The chat's settings, their flags, and how they are told in words."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from ...sampling import SamplingConfig
from ..flags import flag, flags_of
from ..parsing import LONGEST_BEAM, WIDEST_BEAM, count, template_arguments

_ANSWERS, _DRAFTING, _SCREEN = "answers", "drafting", "screen"


@dataclass(frozen=True)
class ChatSettings:
    """How answers are made; commands replace it as a whole.

    Each field is a flag; its metadata says what it means. ``beam_width``, ``beam_length`` and
    ``node_budget`` are None for the planner's or the library's choice, ``sampling.seed`` is None
    where every answer draws its own.
    """

    sampling: SamplingConfig = flags_of(
        SamplingConfig, _ANSWERS, aliases={"temperature": ("temp",)}, without=("logprobs",)
    )
    max_tokens: int = flag(512, _ANSWERS, "longest answer", reader=count(1), aliases=("m",))
    system: str | None = flag(
        None, _ANSWERS, "instruction above the conversation", aliases=("system_prompt",)
    )
    chat_template_args: dict[str, Any] | None = flag(
        None, _ANSWERS, "arguments of the chat template, such as '{\"enable_thinking\": false}'",
        reader=template_arguments, metavar="JSON", aliases=("chat_template_config",),
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

    @property
    def names_beam(self) -> bool:
        """Whether the drafts' shape is said, wholly or in part, so that nobody plans it."""
        return (self.beam_width, self.beam_length, self.node_budget) != (None, None, None)

    def sampling_options(self) -> dict[str, Any]:
        """The options of sampling that differ from the defaults, by name."""
        own = self.sampling
        every = {one.name: (getattr(own, one.name), one.default) for one in fields(own)}
        return {name: value for name, (value, default) in every.items() if value != default}

    def sampling_words(self) -> str:
        """'greedy', or the temperature and whatever differs from the defaults."""
        sampling = self.sampling
        words = [f"temperature {sampling.temperature:g}"] if sampling.temperature else ["greedy"]
        for one in fields(sampling):
            value = getattr(sampling, one.name)
            if one.name not in ("temperature", "seed") and value != one.default:
                words.append(f"{one.name.replace('_', '-')} {value}")
        if sampling.temperature:
            seed = (
                "a seed of each answer's own" if sampling.seed is None else f"seed {sampling.seed}"
            )
            words.append(seed)
        return ", ".join(words)
