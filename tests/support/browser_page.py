"""The server's page in headless Chromium."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from live_server import Live

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
# What keeps a browser from calling its maker, which no test should.
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@contextmanager
def chromium() -> Iterator[Any]:
    """Chromium; a test that has none, or no Playwright, is skipped."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("chromium is not installed")
    with playwright.sync_playwright() as run:
        browser = run.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


def opened(browser: Any, live: Live, **options: Any) -> Any:
    """A tab on the page; ``faults`` collects what its scripts and policy complain of."""
    page = browser.new_context(**options).new_page()
    page.faults = []
    page.on("pageerror", lambda error: page.faults.append(str(error)))
    page.on(
        "console",
        lambda message: (
            page.faults.append(message.text) if "Content Security Policy" in message.text else None
        ),
    )
    page.goto(live.url)
    page.wait_for_selector("#model option", state="attached")
    return page


def ask(page: Any, word: str) -> None:
    page.fill("#question", f"please {word}")
    page.press("#question", "Enter")


def finished(page: Any) -> None:
    page.wait_for_selector("body[data-state=done]", timeout=20_000)


def last_answer(page: Any) -> str:
    return str(page.locator("li.assistant").last.locator("> .text").inner_text()).strip()
