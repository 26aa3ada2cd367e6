"""How a text is to be decoded."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..cache.quantized import CacheOptions
from ..drafting.shape import BeamShape
from ..errors import RedrafterError
from ..sampling import SamplingConfig
from ..target.target import PREFILL_STEP


@dataclass(frozen=True)
class DecodingConfig:
    """How a text is to be decoded.

    Attributes:
        max_tokens: Tokens to decode at most; -1 for no limit.
        sampling: How tokens are chosen.
        draft: Whether to draft, where the model can.
        beam: Shape of the drafts.
        eos_token_ids: Tokens that end the text.
        prefill_step_size: Prompt tokens run through the target at once.
        cache_options: How keys and values are kept.
    """

    max_tokens: int = 256
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    draft: bool = True
    beam: BeamShape = field(default_factory=BeamShape)
    eos_token_ids: frozenset[int] = frozenset()
    prefill_step_size: int = PREFILL_STEP
    cache_options: CacheOptions = field(default_factory=CacheOptions)

    def __post_init__(self) -> None:
        """Check ranges.

        Raises:
            RedrafterError: If a value is out of its range.
        """
        if self.max_tokens != -1 and self.max_tokens < 1:
            raise RedrafterError(
                f"max_tokens is {self.max_tokens}, but has to be 1 or more, or -1 for no limit."
            )
        if self.prefill_step_size < 1:
            raise RedrafterError(
                f"prefill_step_size is {self.prefill_step_size}, but has to be 1 or more."
            )
