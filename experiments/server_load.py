"""This server against mlx_lm.server on the same model: speed, waiting, prefixes, memory.

    python experiments/server_load.py [--model models/pocket] [--clients 1 2 4 8]

Both servers run all the time and are asked in turns, one idle while the other works; every repeat
goes through all numbers of clients, in rotating order, after a first one that warms up. Medians are
shown; ratios are between the two servers in the same repeat. Each client sends its own questions
one after the other and reads the stream. Time to first token and between chunks is the client's.
mlx_lm.server is given no drafter: it has none for this model, and batches only without one. It gets
the same BLAS: mlx_redrafter is imported before it, which loads OpenBLAS where there is one.

Then a prefix of --prefix-tokens is sent with two questions, the second of which should find it
known; and --requests short requests show whether memory stays flat.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from interleaved import ROOT, read_prompts
from rich.console import Console
from rich.table import Table
from transformers import AutoTokenizer

from mlx_redrafter import RedrafterError
from mlx_redrafter.benchmark.environment import environment
from mlx_redrafter.benchmark.prompts import own_prompts
from mlx_redrafter.text.places import locate
from mlx_redrafter.ui.cli.benchmark_view import circumstances

START_SECONDS = 300
OURS = ["-m", "mlx_redrafter.server"]
THEIRS = ["-c", "import mlx_redrafter, mlx_lm.server as server; server.main()"]
FILLER = "The library has many rooms, and each of them holds other books than the one before it. "


@dataclass
class Served:
    """A server in a process of its own.

    Attributes:
        name: What tables call it.
        url: To ask it.
        model: The name that requests use.
        process: It.
    """

    name: str
    url: str
    model: str
    process: subprocess.Popen[bytes]

    @property
    def megabytes(self) -> float:
        """Resident memory of the process."""
        command = ["ps", "-o", "rss=", "-p", str(self.process.pid)]
        shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        return int(shown) / 1024


@dataclass
class Round:
    """What one server did for one number of clients.

    Attributes:
        tokens: Of all answers.
        seconds: From the first request to the last token.
        first: Seconds to the first token of each request.
        gaps: Seconds between the chunks of a stream.
    """

    tokens: int = 0
    seconds: float = 0.0
    first: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Tokens a second, all clients together."""
        return self.tokens / self.seconds


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def start(name: str, program: list[str], model: str, flags: list[str], asked: str) -> Served:
    """Start a server and wait until it answers."""
    port = free_port()
    command = [sys.executable, *program, "--model", model, "--port", str(port), *flags]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        try:
            if httpx.get(f"{url}/health").status_code == 200:
                return Served(name, url, asked, process)
        except httpx.HTTPError:
            pass
        time.sleep(0.2)
    process.kill()
    raise RedrafterError(f"{' '.join(command)} did not start: run it to see why.")


async def ask(
    client: httpx.AsyncClient, server: Served, messages: list[Any], most: int, taken: Round
) -> None:
    """Send one request and read its stream."""
    body = {
        "model": server.model,
        "messages": messages,
        "max_tokens": most,
        "temperature": 0.0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    started = last = time.perf_counter()
    url = f"{server.url}/v1/chat/completions"
    async with client.stream("POST", url, json=body, timeout=600) as response:
        if response.is_error:
            said = (await response.aread()).decode(errors="replace")
            raise SystemExit(f"{server.name} answered {response.status_code}: {said}")
        async for line in response.aiter_lines():
            if not line.startswith("data: {"):
                continue
            chunk = json.loads(line.removeprefix("data: "))
            now = time.perf_counter()
            if chunk.get("usage"):
                taken.tokens += chunk["usage"]["completion_tokens"]
            if not any(choice["delta"].get("content") for choice in chunk["choices"]):
                continue
            if last == started:
                taken.first.append(now - started)
            else:
                taken.gaps.append(now - last)
            last = now


async def load(server: Served, prompts: list[Any], clients: int, most: int) -> Round:
    """Let so many clients ask at once, each its share of the questions one by one."""
    taken = Round()
    async with httpx.AsyncClient() as client:

        async def one(place: int) -> None:
            for prompt in prompts[place::clients]:
                await ask(client, server, prompt, most, taken)

        started = time.perf_counter()
        await asyncio.gather(*(one(place) for place in range(clients)))
        taken.seconds = time.perf_counter() - started
    return taken


def measure(
    servers: list[Served], prompts: list[Any], args: argparse.Namespace
) -> dict[tuple[str, int], list[Round]]:
    """All rounds, by (server, clients)."""
    order = [(server, clients) for clients in args.clients for server in servers]
    rounds: dict[tuple[str, int], list[Round]] = {(s.name, n): [] for s, n in order}
    for repeat in range(args.repeats + 1):
        turn = repeat % len(order)
        for server, clients in order[turn:] + order[:turn]:
            taken = asyncio.run(load(server, prompts, clients, args.max_tokens))
            said = f"round {repeat}, {clients} clients, {server.name}: {taken.rate:.1f} tokens/s"
            print(said, file=sys.stderr, flush=True)  # a run that is cut off has told so much
            if repeat:
                rounds[server.name, clients].append(taken)
    return rounds


def percentile(values: list[float], share: float) -> float:
    """The value that so large a share lies below."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")


def show(console: Console, rounds: dict[tuple[str, int], list[Round]]) -> None:
    """A row for each server and number of clients."""
    table = Table(title="Requests at once")
    for column in ("clients", "server", "tokens/s", "ratio", "first token", "95 % between chunks"):
        table.add_column(column, justify="right")
    names = list(dict.fromkeys(name for name, _ in rounds))
    for (name, clients), taken in rounds.items():
        base = rounds[names[-1], clients]
        ratio = statistics.median(r.rate / b.rate for r, b in zip(taken, base, strict=True))
        first = statistics.median(value for r in taken for value in r.first)
        gap = percentile([value for r in taken for value in r.gaps], 0.95)
        table.add_row(
            str(clients),
            name,
            f"{statistics.median(r.rate for r in taken):.1f}",
            f"{ratio:.2f} x",
            f"{1000 * first:.0f} ms",
            f"{1000 * gap:.1f} ms",
        )
    console.print(table)


def prefixes(servers: list[Served], directory: str, args: argparse.Namespace) -> Table:
    """Time to first token of two requests with one long beginning."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    filler = FILLER
    while (length := len(tokenizer.encode(filler))) < args.prefix_tokens:
        filler += FILLER
    table = Table(title=f"A prefix of about {length:,} tokens")
    for column in ("server", "first request", "second request", "share"):
        table.add_column(column, justify="right")
    for server in servers:
        shares, seconds = [], []
        for repeat in range(args.repeats + 1):
            text = f"Note {repeat}-{server.name}. " + filler
            taken = Round()
            for question in ("Which room?", "Which book?"):
                messages = [{"role": "user", "content": f"{text} {question}"}]
                asyncio.run(_single(server, messages, taken))
            if repeat and len(taken.first) == 2:
                seconds.append(taken.first)
                shares.append(taken.first[1] / taken.first[0])
        first, second = (statistics.median(s[i] for s in seconds) for i in range(2))
        share = statistics.median(shares)
        cells = (f"{1000 * first:.0f} ms", f"{1000 * second:.0f} ms", f"{100 * share:.0f} %")
        table.add_row(server.name, *cells)
    return table


async def _single(server: Served, messages: list[Any], taken: Round) -> None:
    async with httpx.AsyncClient() as client:
        await ask(client, server, messages, 4, taken)


def memory(server: Served, prompts: list[Any], requests: int) -> str:
    """How the memory of a server goes over many short requests."""
    marks = []
    many = [prompts[i % len(prompts)] for i in range(requests)]
    for part in range(4):
        asyncio.run(load(server, many[part::4], 4, 16))
        marks.append(server.megabytes)
    shown = ", ".join(f"{mark:.0f}" for mark in marks)
    return f"{server.name}: {shown} MB after each quarter of {requests} requests"


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default=str(ROOT / "models" / "pocket"))
    parser.add_argument("--prompts", type=Path, help="JSONL; by default the model's own questions")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--count", type=int, default=16, help="questions of a round")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--max-tokens", type=int, default=100)
    parser.add_argument("--prefix-tokens", type=int, default=1950)
    parser.add_argument("--requests", type=int, default=0, help="short ones, to watch memory")
    return parser.parse_args()


def main() -> int:
    """Measure and show."""
    args = arguments()
    console = Console()
    prompts = read_prompts(args.prompts or own_prompts(Path(args.model)), args.count)
    servers: list[Served] = []
    try:
        most = str(max(args.clients))
        ours = ["--max-concurrent", most]
        servers.append(start("mlx_redrafter", OURS, args.model, ours, "default"))
        theirs = ["--decode-concurrency", most, "--prompt-concurrency", most]
        # A name or a GGUF file is converted by us once; theirs reads the same directory.
        directory = str(locate(args.model).directory)
        servers.append(start("mlx_lm", THEIRS, directory, theirs, "default_model"))
        show(console, measure(servers, prompts, args))
        if args.prefix_tokens:
            console.print(prefixes(servers, directory, args))
        if args.requests:
            console.print(memory(servers[0], prompts, args.requests))
        console.print(circumstances(environment(sys.argv[1:], "python experiments/server_load.py")))
    except RedrafterError as error:
        print(error, file=sys.stderr)
        return 2
    finally:
        for server in servers:
            server.process.terminate()
            server.process.wait(30)
    return 0


if __name__ == "__main__":
    sys.exit(main())
