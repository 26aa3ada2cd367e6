"""docs/server.png: the page after two questions to a model, in headless Chromium.

    python experiments/server_png.py [--model models/pocket] [--out docs/server.png]

Needs Chromium and the dev extra (Playwright). The figures on it are those of the machine that runs
this, at that moment, and of the second time that all is asked: by then plain steps were timed. With
--no-plan it drafts a fixed shape and compares with nothing.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

ROOT = Path(__file__).resolve().parent.parent
QUESTIONS = ("What does itertools.chain do?", "What does np.linspace do?")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking"]
SIZE = {"width": 1120, "height": 760}


def main() -> int:
    """Serve, ask, take the picture."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default=str(ROOT / "models" / "pocket"))
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "server.png")
    parser.add_argument("--question", action="append", help="instead of the pocket's")
    parser.add_argument("--no-plan", action="store_true")
    parser.add_argument("--dark", action="store_true")
    args = parser.parse_args()
    command = [sys.executable, "-m", "mlx_redrafter.server", "--port", "0", "--model", args.model]
    command += ["--no-plan"] if args.no_plan else []
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        address = next(line.split()[-1] for line in server.stderr if "page" in line)
        try:
            picture(address, args)
        finally:
            server.terminate()
    return 0


def picture(address: str, args: argparse.Namespace) -> None:
    """Ask all questions and save what the page then looks like."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    with sync_playwright() as run:
        browser = run.chromium.launch(executable_path=chromium, args=FLAGS)
        scheme = "dark" if args.dark else "light"
        page = browser.new_page(viewport=SIZE, color_scheme=scheme)
        page.goto(address)
        page.wait_for_selector("#model option", state="attached")
        ask(page, args.question or QUESTIONS)
        page.click("#new")
        ask(page, args.question or QUESTIONS)
        page.screenshot(path=args.out)
        browser.close()


def ask(page: Page, questions: Sequence[str]) -> None:
    """Ask one after the other, and wait for the answers."""
    for number, question in enumerate(questions, start=1):
        page.fill("#question", question)
        page.press("#question", "Enter")
        page.wait_for_function(
            "n => document.body.dataset.state === 'done' && "
            "document.querySelectorAll('li.assistant .end').length === n",
            arg=number,
            timeout=120_000,
        )


if __name__ == "__main__":
    sys.exit(main())
