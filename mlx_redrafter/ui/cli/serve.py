"""The command line of ``python -m mlx_redrafter.server``."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ...errors import RedrafterError
from ...system.own_models import pocket_path
from ..entry import SUCCESS, as_typed, command_line
from ..flags import add_flags, options_of
from ..model_flags import LoadFlags
from ..opening import prepare
from ..output import write
from ..parsing import OneSentenceParser, count, min_p, temperature, top_p

if TYPE_CHECKING:
    import socket

    from ...server.loading import ModelSpec
    from ...server.settings import ServerSettings

POCKET = pocket_path()
NAME = "python -m mlx_redrafter.server"
SIZES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9}
MISSING = (
    "The server needs Starlette, uvicorn, pydantic and prometheus-client: "
    "pip install 'mlx-redrafter[server]'."
)


@command_line(NAME)
def main(arguments: Sequence[str]) -> int:
    """Serve; returns the exit code."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(
        level=logging.INFO if options.verbose else logging.WARNING,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    _run(options)
    return SUCCESS


def _run(options: argparse.Namespace) -> None:
    try:
        from ...server.loading import follow_server, load_models
        from ...server.metrics import Metrics
        from ...server.running import bind, serve
        from ...system.rank_watch import current_ranks
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] == "mlx_redrafter":
            raise
        raise RedrafterError(MISSING) from error
    settings, specs = _settings(options), _specs(options)
    ranks = current_ranks()
    if ranks is not None and not ranks.leads:
        for stop in (signal.SIGINT, signal.SIGTERM):
            signal.signal(stop, signal.SIG_IGN)  # rank 0 decides when all end
        for spec in specs:
            prepare(spec.path, options.revision)
        follow_server(specs, settings, ranks)
        return
    _warn(settings)
    listener = bind(settings)
    for spec in specs:
        prepare(spec.path, options.revision)
    names = ", ".join(spec.name for spec in specs)
    _say(f"Loading {names} (the first time, what drafting costs here is measured too) ...")
    metrics = Metrics()
    thread, models = load_models(specs, settings, metrics)
    ended = serve(
        listener, thread, models, settings, metrics, lambda: _announce(listener, list(models))
    )
    _say("Stopped.")
    if not ended:
        # Python would take the engine's thread down in the middle of mlx, which aborts.
        sys.stdout.flush()
        os._exit(SUCCESS)


def _say(text: str) -> None:
    write(text + "\n", errors=True)


def _announce(listener: socket.socket, names: list[str]) -> None:
    from ...server.running import address_of

    address = address_of(listener)
    _say(f"Serving {', '.join(names)}")
    _say(f"  page       {address}/")
    _say(f"  OpenAI     {address}/v1")
    _say(f"  Anthropic  {address}")


def _warn(settings: ServerSettings) -> None:
    from ...server.web.security import is_loopback

    if settings.api_key is None and not is_loopback(settings.host):
        _say(
            f"Warning: {settings.host} is reachable from other machines and no --api-key is set: "
            "whoever reaches it can use it."
        )


def _specs(options: argparse.Namespace) -> list[ModelSpec]:
    from ...server.loading import ModelSpec

    paths = options.model or [str(POCKET)]
    if not options.model and not POCKET.is_dir():
        raise RedrafterError(f"The pocket bundle is not at {POCKET}: pass --model PATH_OR_REPO.")
    if len(paths) > 1 and (options.drafter or options.adapter_path):
        raise RedrafterError(
            "--drafter and --adapter-path go with one --model: put the drafters into bundles."
        )
    drafter: str | Literal[False] | None = False if options.no_draft else options.drafter
    more = options_of(LoadFlags, options).load_options()
    more = {name: value for name, value in more.items() if name not in ("drafter", "adapter_path")}
    return [
        ModelSpec(path, drafter, options.adapter_path, not options.no_plan, more) for path in paths
    ]


def _settings(options: argparse.Namespace) -> ServerSettings:
    from ...server.settings import ServerSettings

    sampling: dict[str, Any] = {
        "temperature": options.temp,
        "top_p": options.top_p,
        "top_k": options.top_k,
        "min_p": options.min_p,
    }
    if options.seed is not None:
        sampling["seed"] = options.seed
    return ServerSettings(
        host=options.host,
        port=options.port,
        api_key=_key(options),
        allowed_hosts=tuple(options.allowed_host),
        allowed_origins=tuple(options.allowed_origin),
        max_concurrent=options.max_concurrent,
        max_queue=options.max_queue,
        cache_memory=_memory() // 8 if options.cache_memory is None else options.cache_memory,
        max_tokens=options.max_tokens,
        context_limit=options.context_limit,
        prefill_step_size=options.prefill_step_size,
        max_body=options.max_body,
        keep_alive=options.keep_alive,
        grace=options.grace,
        copies=not options.no_copy,
        sampling=sampling,
    )


def _key(options: argparse.Namespace) -> str | None:
    """The key; from a file it is not seen in lists of processes.

    Raises:
        RedrafterError: If the file cannot be read, or the key is empty.
    """
    key: str | None = options.api_key
    if options.api_key_file is not None:
        try:
            key = Path(options.api_key_file).read_text("utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise RedrafterError(
                f"{options.api_key_file} cannot be read: pass a text file that holds the key."
            ) from error
    if key == "":
        raise RedrafterError("The API key is empty: leave it out, or give one.")
    return key


def _memory() -> int:
    """Bytes of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _parser() -> argparse.ArgumentParser:
    parser = OneSentenceParser(
        as_typed(NAME),
        description="Serve models by the APIs of OpenAI and Anthropic, drafting for all requests "
        "at once, with a page to watch it.",
    )
    model = parser.add_argument_group("models")
    model.add_argument(
        "--model",
        metavar="PATH_OR_REPO",
        action="append",
        help="a model to serve; may be repeated; default: the pocket bundle",
    )
    add_flags(parser, LoadFlags)
    model.add_argument("--no-draft", action="store_true", help="decode plainly")
    model.add_argument(
        "--no-plan",
        action="store_true",
        help="draft one fixed shape, whether it pays or not, and measure nothing",
    )
    model.add_argument(
        "--no-copy",
        action="store_true",
        help="do not draft what the text repeats, for which no drafter is needed",
    )
    _add_network_flags(parser.add_argument_group("network"))
    _add_limit_flags(parser.add_argument_group("limits"))
    _add_sampling_flags(parser.add_argument_group("where a request says nothing"))
    parser.add_argument("--verbose", action="store_true", help="log more")
    return parser


def _add_network_flags(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--host", default="127.0.0.1", help="address to listen at; default: this machine only"
    )
    group.add_argument(
        "--port", type=count(0, 65535), default=8080, help="default 8080; 0 takes a free one"
    )
    key = group.add_mutually_exclusive_group()
    key.add_argument("--api-key", metavar="KEY", help="what requests have to show")
    key.add_argument("--api-key-file", metavar="PATH", help="a file that holds it")
    group.add_argument(
        "--allowed-host",
        metavar="NAME",
        action="append",
        default=[],
        help="a further name under which the server may be called; * for all",
    )
    group.add_argument(
        "--allowed-origin",
        metavar="ORIGIN",
        action="append",
        default=[],
        help="a web page's origin that may call the server (CORS); none by default",
    )


def _add_limit_flags(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--max-concurrent",
        type=count(1, 256),
        metavar="N",
        default=8,
        help="answers decoded together; default 8",
    )
    group.add_argument(
        "--max-queue", type=count(0), metavar="N", default=64, help="that may wait; default 64"
    )
    group.add_argument(
        "--cache-memory",
        type=_size,
        metavar="SIZE",
        help="for prefixes that are kept, such as 4GB; 0 keeps none; default: an eighth of memory",
    )
    group.add_argument(
        "--context-limit",
        type=count(2),
        metavar="N",
        help="tokens of prompt and answer; default: the model's own limit",
    )
    group.add_argument(
        "--prefill-step-size",
        type=count(1),
        metavar="N",
        default=512,
        help="prompt tokens read between two steps of running answers; default 512",
    )
    group.add_argument(
        "--max-body",
        type=_size,
        metavar="SIZE",
        default=16 * 2**20,
        help="bytes of a request; default 16 MiB",
    )
    group.add_argument(
        "--keep-alive",
        type=_seconds,
        metavar="SECONDS",
        default=10.0,
        help="silence in a stream, after which it says that it lives; default 10",
    )
    group.add_argument(
        "--grace",
        type=_seconds,
        metavar="SECONDS",
        default=10.0,
        help="that running answers get on SIGTERM; default 10",
    )


def _add_sampling_flags(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--max-tokens",
        type=count(1),
        metavar="N",
        default=4096,
        help="longest answer; default 4096",
    )
    group.add_argument("--temp", type=temperature, metavar="X", default=0.0, help="default 0")
    group.add_argument("--top-p", type=top_p, metavar="P", default=1.0, help="default 1")
    group.add_argument("--top-k", type=count(0), metavar="K", default=0, help="default 0: all")
    group.add_argument("--min-p", type=min_p, metavar="P", default=0.0, help="default 0: all")
    group.add_argument(
        "--seed",
        type=count(0, 2**63 - 1),
        metavar="N",
        help="default: drawn for each answer, and reported with it",
    )


def _size(text: str) -> int:
    """Read bytes: a number, with K, M or G after it."""
    lowered = text.lower().removesuffix("b").removesuffix("i").strip()
    unit = lowered[-1:] if lowered[-1:] in SIZES else ""
    try:
        value = float(lowered.removesuffix(unit))
        if not 0 <= value < 2**50:
            raise ValueError
    except ValueError:
        message = f"a size such as 500MB or 4GB is needed, not '{text}'"
        raise argparse.ArgumentTypeError(message) from None
    return int(value * SIZES[unit])


def _seconds(text: str) -> float:
    try:
        value = float(text)
        if not 0 < value <= 86400:
            raise ValueError
    except ValueError:
        message = f"seconds above 0 are needed, not '{text}'"
        raise argparse.ArgumentTypeError(message) from None
    return value
