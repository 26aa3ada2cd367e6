"""What requests are made of, with pydantic: strict types, ranges, no unknown fields."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from .field_errors import refusal_of

MAX_STOPS = 64
MAX_ANSWERS = 16
SEEDS = 2**63

Parsed = TypeVar("Parsed", bound=BaseModel)

Temperature = Annotated[float, Field(ge=0, le=100)]
TopP = Annotated[float, Field(ge=0, le=1, description="0 and 1 keep all tokens")]
MinP = Annotated[float, Field(ge=0, le=1)]
TopK = Annotated[int, Field(ge=-1, lt=2**31, description="0 and -1 keep all tokens")]
Penalty = Annotated[float, Field(ge=-2, le=2)]
RepetitionPenalty = Annotated[float, Field(ge=0, le=100, description="0 and 1 change nothing")]
ContextSize = Annotated[int, Field(ge=1, lt=2**31)]
MaxTokens = Annotated[int, Field(ge=1, lt=2**31)]
# What programs made for llama.cpp or LM Studio send where they have no number to name.
_MinusOneIsNone = BeforeValidator(lambda value: None if value == -1 else value)
TokenLimit = Annotated[
    MaxTokens | None, _MinusOneIsNone, Field(description="-1 is as good as nothing")
]
_AnySeed = Annotated[int, Field(ge=-SEEDS, lt=SEEDS), AfterValidator(lambda seed: seed % SEEDS)]
Seed = Annotated[
    _AnySeed | None,
    _MinusOneIsNone,
    Field(description="-1 is as good as nothing; to other negative numbers 2**63 is added"),
]
StopString = Annotated[str, Field(min_length=1, max_length=1000)]
Stops = Annotated[list[StopString], Field(max_length=MAX_STOPS)]
Bias = Annotated[float, Field(ge=-100, le=100)]
LogitBias = Annotated[
    dict[Annotated[str, Field(pattern=r"^[0-9]{1,9}$")], Bias], Field(max_length=1024)
]
# Said for the sake of the description: what has no effect on the text is read and left, and not
# handed on to the chat template.
Ignored = Annotated[Any, Field(description="accepted, without effect on the text", exclude=True)]


class Strict(BaseModel):
    """A part of a request that has no other fields than those named."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _without_unset(cls, given: Any) -> Any:
        """Leave out unknown fields that are null: many clients write all that they know of so."""
        if not isinstance(given, dict):
            return given
        known = cls.model_fields
        return {name: value for name, value in given.items() if value is not None or name in known}


class Open(BaseModel):
    """A part of a request whose other fields are handed on, to the chat template."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)

    cache_control: Ignored = None


class Extension(Strict):
    """The field ``redrafter``: what no other API has.

    Attributes:
        draft: False decodes plainly; the text stays the same.
        copies: Whether copies of the text are drafted too; None for the server's default.
        trace: Stream where each token came from, the draft trees and the counts.
    """

    draft: bool | None = None
    copies: bool | None = None
    trace: bool | None = None

    def given(self) -> dict[str, Any]:
        """Those that were given, as fields of Task."""
        return {name: value for name, value in self if value is not None}


class SamplingFields(Strict):
    """How tokens are chosen, in the names that local servers share."""

    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_k: TopK | None = None
    min_p: MinP | None = None
    repetition_penalty: RepetitionPenalty | None = None
    repetition_context_size: ContextSize | None = None
    presence_penalty: Penalty | None = None
    presence_context_size: ContextSize | None = None
    frequency_penalty: Penalty | None = None
    frequency_context_size: ContextSize | None = None
    xtc_probability: MinP | None = None
    xtc_threshold: Annotated[float, Field(ge=0, le=0.5)] | None = None
    seed: Seed = None

    def sampling(self) -> dict[str, Any]:
        """Those that were given, as fields of SamplingConfig."""
        given = {name: getattr(self, name) for name in SamplingFields.model_fields}
        if given["top_k"] == -1:
            given["top_k"] = 0
        return {name: value for name, value in given.items() if value is not None}


def bias_pairs(bias: dict[str, float] | None) -> dict[str, Any]:
    """``logit_bias`` as a field of SamplingConfig; nothing where none is given."""
    pairs = tuple(sorted((int(token), value) for token, value in (bias or {}).items() if value))
    return {"logit_bias": pairs} if pairs else {}


def stop_list(stop: str | list[str] | None) -> tuple[str, ...]:
    """One stop string or several."""
    return (stop,) if isinstance(stop, str) else tuple(stop or ())


def parse(model: type[Parsed], body: dict[str, Any]) -> Parsed:
    """A request, checked.

    Raises:
        ApiError: 400 with the name of the first field that is wrong.
    """
    try:
        return model.model_validate(body)
    except ValidationError as error:
        raise refusal_of(error, body) from error
