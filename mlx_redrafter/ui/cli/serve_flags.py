"""The flags of ``python -m mlx_redrafter.server``, read without importing anything slow."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from ...errors import RedrafterError
from ...sampling import SamplingConfig
from ...system.limits import usable_memory
from ..entry import as_typed
from ..flags import add_flags, flag, flags_of, options_of
from ..model_flags import LoadFlags, pocket_or_refuse
from ..parsing import OneSentenceParser, count, json_object, place

if TYPE_CHECKING:
    from ...server.loading import ModelSpec
    from ...server.settings import ServerSettings

NAME = "python -m mlx_redrafter.server"
# K, M and G as mlx-lm's flags have them, Ki, Mi and Gi as computers count memory.
SIZES = {"": 1} | {
    unit + i: base**power
    for power, unit in enumerate("kmg", start=1)
    for i, base in (("", 1000), ("i", 1024))
}
USUAL_PORTS = {"http": ":80", "https": ":443"}  # which browsers leave out of an origin
_MODEL, _NETWORK, _LIMITS, _REQUESTS = "model", "network", "limits", "where a request says nothing"


def size(text: str) -> int:
    """Read bytes: a number, with K, M, G, Ki, Mi or Gi after it."""
    lowered = text.lower().removesuffix("b").strip()
    unit = max((unit for unit in SIZES if lowered.endswith(unit)), key=len)
    try:
        value = float(lowered.removesuffix(unit))
        if not 0 <= value < 2**50:
            raise ValueError
    except ValueError:
        message = f"a size such as 500MB or 4GB is needed, not '{text}'"
        raise argparse.ArgumentTypeError(message) from None
    return int(value * SIZES[unit])


def body_size(text: str) -> int:
    """Read bytes of which there is at least one."""
    value = size(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"a size above 0 is needed, not '{text}'")
    return value


def origin(text: str) -> str:
    """Read a web page's origin, and write it as browsers do; * for all."""
    if text in ("*", "null"):
        return text
    try:
        parts = urlsplit(text)
    except ValueError:
        parts = urlsplit("")
    further = parts.path.strip("/") or parts.query or parts.fragment or "@" in parts.netloc
    if not parts.netloc or further:
        message = f"an origin such as https://app.example is needed, without a path, not '{text}'"
        raise argparse.ArgumentTypeError(message)
    host = parts.netloc.lower().removesuffix(USUAL_PORTS.get(parts.scheme, " "))
    return f"{parts.scheme}://{host}"


def seconds(text: str) -> float:
    """Read a time: a number above 0, a day at most."""
    try:
        value = float(text)
        if not 0 < value <= 86400:
            raise ValueError
    except ValueError:
        message = f"seconds above 0 are needed, not '{text}'"
        raise argparse.ArgumentTypeError(message) from None
    return value


@dataclass(frozen=True)
class ServeFlags(LoadFlags):
    """Which models are served, to whom, and within which limits."""

    model: list[str] = flag(
        (), _MODEL, "a model to serve; may be repeated; default: the pocket bundle",
        repeated=True, metavar="PATH_OR_REPO", own=True,
    )  # fmt: skip
    draft: bool = flag(True, _MODEL, "decode plainly", negative="no-draft")
    plan: bool = flag(
        True, _MODEL, "draft one fixed shape, whether it pays or not, and measure nothing",
        negative="no-plan",
    )  # fmt: skip
    copy: bool = flag(
        True, _MODEL, "do not draft what the text repeats, for which no drafter is needed",
        negative="no-copy",
    )  # fmt: skip

    host: str = flag(
        "127.0.0.1", _NETWORK, "address to listen at; default: this machine only", metavar="HOST",
        own=True,
    )  # fmt: skip
    port: int = flag(
        8080, _NETWORK, "default 8080; 0 takes a free one", reader=count(0, 65535), own=True
    )
    api_key: str | None = flag(
        None, _NETWORK, "what requests have to show", metavar="KEY", own=True
    )
    api_key_file: Path | None = flag(
        None, _NETWORK, "a file that holds it", reader=place, metavar="PATH", own=True
    )
    allowed_host: list[str] = flag(
        (), _NETWORK, "a further name under which the server may be called; * for all",
        repeated=True, metavar="NAME", own=True,
    )  # fmt: skip
    allowed_origin: list[str] = flag(
        (), _NETWORK, "a web page's origin that may call the server (CORS); none by default",
        repeated=True, metavar="ORIGIN", reader=origin, own=True,
    )  # fmt: skip

    max_concurrent: int = flag(
        8, _LIMITS, "answers of a model decoded together", reader=count(1, 256)
    )
    max_queue: int = flag(64, _LIMITS, "of a model that may wait", reader=count(0))
    cache_memory: int | None = flag(
        None, _LIMITS, "for prefixes that are kept, such as 4GB; 0 keeps none; default: an eighth "
        "of memory", reader=size, metavar="SIZE",
    )  # fmt: skip
    context_limit: int | None = flag(
        None, _LIMITS, "tokens of prompt and answer, in place of the model's own limit",
        reader=count(2),
    )  # fmt: skip
    prefill_step_size: int = flag(
        512, _LIMITS, "prompt tokens read between two steps of running answers", reader=count(1)
    )
    max_body: int = flag(
        16 * 2**20, _LIMITS, "bytes of a request; default 16 MiB", reader=body_size, metavar="SIZE"
    )
    keep_alive: float = flag(
        10.0, _LIMITS, "silence in a stream, after which it says that it lives; default 10",
        reader=seconds, metavar="SECONDS",
    )  # fmt: skip
    grace: float = flag(
        10.0, _LIMITS, "that running answers get on Ctrl-C, SIGTERM or SIGHUP; default 10",
        reader=seconds, metavar="SECONDS",
    )  # fmt: skip

    max_tokens: int | None = flag(
        None, _REQUESTS, "longest answer; default 4096, and 16 at /v1/completions, as OpenAI has "
        "it", reader=count(1), aliases=("m",),
    )  # fmt: skip
    chat_template_args: dict[str, Any] | None = flag(
        None, _REQUESTS, "arguments of the chat template, such as '{\"enable_thinking\": false}'",
        reader=json_object, metavar="JSON",
    )  # fmt: skip
    sampling: SamplingConfig = flags_of(
        SamplingConfig, _REQUESTS, aliases={"temperature": ("temp",)}, without=("logprobs",)
    )

    verbose: bool = flag(False, "log", "log more")

    def settings(self) -> ServerSettings:
        """What is decided for the whole server.

        Raises:
            RedrafterError: If the key's file cannot be read, or the key is empty.
        """
        from ...server.settings import ServerSettings

        return ServerSettings(
            host=self.host.removeprefix("[").removesuffix("]"),  # as URLs write IPv6
            port=self.port,
            api_key=self._key(),
            allowed_hosts=tuple(self.allowed_host),
            allowed_origins=tuple(self.allowed_origin),
            max_concurrent=self.max_concurrent,
            max_queue=self.max_queue,
            cache_memory=self._cache_memory(),
            max_tokens=self.max_tokens,
            context_limit=self.context_limit,
            prefill_step_size=self.prefill_step_size,
            max_body=self.max_body,
            keep_alive=self.keep_alive,
            grace=self.grace,
            copies=self.copy and self.draft,
            template=self._template(),
            sampling=_changed(self.sampling),
        )

    def specs(self) -> list[ModelSpec]:
        """The models to load.

        Raises:
            RedrafterError: If there are none, or one drafter for several.
        """
        from ...server.loading import ModelSpec

        paths = self.model or [str(pocket_or_refuse())]
        if len(paths) > 1 and (self.drafter or self.adapter_path):
            raise RedrafterError(
                "--drafter and --adapter-path go with one --model: put the drafters into bundles."
            )
        more = self.load_options()
        drafter, adapter = more.pop("drafter"), more.pop("adapter_path")
        return [
            ModelSpec(path, drafter if self.draft else False, adapter, self.plan, more)
            for path in paths
        ]

    def _template(self) -> dict[str, Any]:
        """Arguments of the chat template; those that are the server's own are refused."""
        from ...server.protocol.chat_request import RESERVED

        given = self.chat_template_args or {}
        for name in sorted(RESERVED & given.keys()):
            raise RedrafterError(
                f"--chat-template-args has {name!r}, which the server sets itself: leave it out."
            )
        return given

    def _cache_memory(self) -> int:
        """Bytes for prefixes: an eighth of what this process may use, unless it is told."""
        from ...server.settings import ServerSettings

        if self.cache_memory is not None:
            return self.cache_memory
        memory = usable_memory()
        return ServerSettings.cache_memory if memory is None else memory // 8

    def _key(self) -> str | None:
        """The key; from a file it is not seen in lists of processes."""
        key = self.api_key
        if self.api_key_file is not None:
            if key is not None:
                raise RedrafterError("Both --api-key and --api-key-file were given: choose one.")
            try:
                # Windows programs begin files with a mark.
                key = self.api_key_file.read_text("utf-8-sig")
            except (OSError, UnicodeDecodeError) as error:
                raise RedrafterError(
                    f"{self.api_key_file} cannot be read: pass a text file that holds the key."
                ) from error
        if key is None:
            return None
        key = key.strip()  # headers lose what is around a value: no request could show it
        if not key:
            raise RedrafterError("The API key is empty: leave it out, or give one.")
        if not key.isprintable():
            raise RedrafterError(
                "The API key holds a line break or another character that no header can carry: "
                "give a single line of text."
            )
        return key


def build_parser() -> argparse.ArgumentParser:
    """One flag for each field of ``ServeFlags``."""
    parser = OneSentenceParser(
        as_typed(NAME),
        description="Serve models by the APIs of OpenAI and Anthropic, drafting for all requests "
        "at once, with a page to watch it.",
    )
    add_flags(parser, ServeFlags)
    return parser


def read_flags(arguments: Sequence[str]) -> ServeFlags:
    """The flags of a command line, without the program's name."""
    return options_of(ServeFlags, build_parser().parse_args(arguments))


def _changed(sampling: SamplingConfig) -> dict[str, Any]:
    """The options that differ from the defaults, which a request's own replace one by one."""
    values = {one.name: getattr(sampling, one.name) for one in fields(sampling)}
    usual = SamplingConfig()
    return {name: value for name, value in values.items() if value != getattr(usual, name)}
