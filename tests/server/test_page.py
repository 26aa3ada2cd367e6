"""The page in headless Chromium, before a scripted engine."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser_page import ask, finished, last_answer, opened
from live_server import Live, eventually, serve_scripted
from mlx_lm.tokenizer_utils import TokenizerWrapper
from scripted_answers import ANSWERS, LONG, script

from mlx_redrafter.server.settings import ServerSettings


@pytest.fixture
def live(tokenizer: TokenizerWrapper) -> Iterator[Live]:
    with serve_scripted(tokenizer, script(tokenizer, delay=0.01)) as live:
        yield live


@pytest.fixture
def page(browser: Any, live: Live) -> Iterator[Any]:
    page = opened(browser, live)
    yield page
    assert page.faults == []
    page.context.close()


def test_an_answer_streams_and_shows_where_it_came_from(page: Any) -> None:
    ask(page, "long")
    page.wait_for_function(
        "() => document.querySelectorAll('li.assistant .piece').length > 3", timeout=10_000
    )
    assert page.get_attribute("body", "data-state") == "answering", "it streams"
    finished(page)
    assert last_answer(page).strip() == LONG.strip()
    assert page.locator("li.assistant .piece.guessed").count() > 3
    assert page.locator("li.assistant .piece.own").count() > 3
    assert re.fullmatch(r"\d+ %", page.inner_text("#share-guessed"))
    assert page.locator("#tree svg text.accepted").count() >= 2
    assert page.locator("#depths .depth").count() == 2
    assert "50.0 tokens/s" in page.inner_text("#plain")
    assert page.inner_text("#speed") == "200.0"
    assert page.inner_text("#ratio") == "4.00 x"
    assert page.inner_text("#per-step") == "2.00"
    assert "prompt tokens" in page.inner_text("li.assistant .end")
    ask(page, "say")
    finished(page)
    assert page.inner_text("#speed") == "200.0"
    assert page.inner_text("#ratio") == "", "a handful of tokens says nothing"


def test_an_answer_can_be_stopped_and_made_again(browser: Any, tokenizer: TokenizerWrapper) -> None:
    with serve_scripted(tokenizer, script(tokenizer, delay=0.05)) as live:
        page = opened(browser, live)
        ask(page, "long")
        page.wait_for_selector("li.assistant .piece")
        page.keyboard.press("Escape")
        page.wait_for_selector("body[data-state=ended]")
        assert "stopped" in page.inner_text("li.assistant .end")
        part = last_answer(page)
        assert 0 < len(part) < len(LONG)
        assert LONG.startswith(part)
        page.click("#retry")
        finished(page)
        assert page.locator("li.assistant").count() == 1
        assert last_answer(page) == LONG.strip()
        page.context.close()


def test_a_refused_question_is_given_back_and_not_sent_again(
    browser: Any, tokenizer: TokenizerWrapper
) -> None:
    settings = ServerSettings(max_body=3000)
    with serve_scripted(tokenizer, script(tokenizer), settings) as live:
        page = opened(browser, live)
        ask(page, "x" * 4000)
        page.wait_for_selector("li.withdrawn .fault")
        assert page.input_value("#question") == "please " + "x" * 4000
        page.click("#retry")
        page.wait_for_selector("li.withdrawn .fault")
        assert page.locator("li.user").count() == 1
        ask(page, "say")
        finished(page)
        assert last_answer(page) == ANSWERS["say"]
        assert page.locator("#messages li").count() == 2
        page.context.close()


def test_a_question_that_was_stopped_at_once_is_no_part_of_the_conversation(
    browser: Any, tokenizer: TokenizerWrapper
) -> None:
    with serve_scripted(tokenizer, script(tokenizer, delay=0.3)) as live:
        page = opened(browser, live)
        sent: list[Any] = []
        page.on(
            "request",
            lambda one: sent.append(one.post_data_json) if one.method == "POST" else None,
        )
        ask(page, "long")
        page.keyboard.press("Escape")
        page.wait_for_selector("li.user.withdrawn")
        page.click("#retry")
        page.wait_for_selector("li.assistant .piece")
        assert page.input_value("#question") == ""
        assert [message["role"] for message in sent[-1]["messages"]] == ["user"]
        page.keyboard.press("Escape")
        page.context.close()


def test_a_conversation_goes_on_and_begins_anew(page: Any) -> None:
    ask(page, "think")
    finished(page)
    assert page.inner_text("details.thinking .text") == "Is it lazy?"
    assert last_answer(page) == "Yes, it is."
    ask(page, "smile")
    page.wait_for_function("() => document.querySelectorAll('li.assistant').length == 2")
    finished(page)
    assert last_answer(page) == ANSWERS["smile"]
    page.click("#new")
    assert page.locator("#messages li").count() == 0


def test_two_tabs_talk_at_once(browser: Any, tokenizer: TokenizerWrapper) -> None:
    with serve_scripted(tokenizer, script(tokenizer, delay=0.04)) as live:
        tabs = [opened(browser, live) for _ in range(2)]
        for tab in tabs:
            ask(tab, "long")
        tabs[0].wait_for_function(
            "() => document.querySelectorAll('.slot.on').length == 2", timeout=10_000
        )
        for tab in tabs:
            finished(tab)
            assert last_answer(tab) == LONG.strip()
            tab.context.close()


def test_a_server_that_dies_is_called_so(browser: Any, tokenizer: TokenizerWrapper) -> None:
    with serve_scripted(tokenizer, script(tokenizer, delay=0.05)) as live:
        page = opened(browser, live)
        ask(page, "long")
        page.wait_for_selector("li.assistant .piece")
        live.server.force_exit = live.server.should_exit = True
        page.wait_for_selector("li.assistant .fault", timeout=10_000)
        assert "The server stopped answering" in page.inner_text("li.assistant .fault")
        assert page.is_enabled("#retry")
        page.wait_for_selector("#banner:not([hidden])")
    page.context.close()


def test_markup_in_an_answer_stays_text(browser: Any, tokenizer: TokenizerWrapper) -> None:
    with serve_scripted(tokenizer, script(tokenizer)) as live:
        page = opened(browser, live)
        ask(page, "markup")
        finished(page)
        assert last_answer(page) == ANSWERS["markup"]
        assert page.locator("#messages img, #messages b").count() == 0
        assert page.faults == []
        page.context.close()


def test_every_seed_is_asked_for_as_it_was_written(
    browser: Any, tokenizer: TokenizerWrapper
) -> None:
    engine = script(tokenizer)
    with serve_scripted(tokenizer, engine) as live:
        page = opened(browser, live)
        page.click("#settings summary")
        for seed, taken in (("7", 7), ("007", 7), ("9007199254740993", 2**53 + 1)):
            page.fill("#seed", seed)
            ask(page, "say")
            finished(page)
            assert eventually(lambda taken=taken: engine.added[-1].sampling["seed"] == taken)
        page.context.close()


@pytest.mark.parametrize("key", ["secret", "secrét", "ключ"])
def test_a_key_is_asked_for(browser: Any, tokenizer: TokenizerWrapper, key: str) -> None:
    settings = ServerSettings(api_key=key)
    with serve_scripted(tokenizer, script(tokenizer), settings) as live:
        page = browser.new_context().new_page()
        page.goto(live.url)
        page.wait_for_selector("#banner:not([hidden])")
        assert "API key" in page.inner_text("#banner")
        page.click("#settings summary")
        page.fill("#key", key)
        page.press("#key", "Tab")
        page.wait_for_selector("#model option", state="attached")
        ask(page, "say")
        finished(page)
        assert last_answer(page) == ANSWERS["say"]
        page.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_in_light_and_dark(browser: Any, live: Live, scheme: Any) -> None:
    page = opened(browser, live, viewport={"width": 360, "height": 640}, color_scheme=scheme)
    ask(page, "say")
    finished(page)
    wide = page.evaluate("() => document.documentElement.scrollWidth")
    assert wide <= 360
    ground = page.evaluate("() => getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", ground)[:3])) < 384) == (scheme == "dark")
    assert page.is_visible("#send")
    page.context.close()


@pytest.mark.parametrize("width", [320, 800, 1120])
def test_deep_drafts_stay_in_their_card(browser: Any, live: Live, width: int) -> None:
    page = opened(browser, live, viewport={"width": width, "height": 640})
    page.evaluate("() => import('/figures.js').then(f => f.showDepths(Array(20).fill(1)))")
    outside = page.evaluate(
        "() => { const card = document.getElementById('depths');"
        " const edge = card.getBoundingClientRect().right + 0.5;"
        " return [...card.querySelectorAll('*')].filter("
        "e => e.getBoundingClientRect().right > edge || e.scrollWidth > e.clientWidth + 1).length }"
    )
    assert page.locator(".depth").count() == 12
    assert outside == 0
    page.context.close()


def test_escape_closes_the_settings(page: Any) -> None:
    page.focus("summary")
    page.keyboard.press("Enter")
    assert page.evaluate("() => document.getElementById('settings').open")
    page.keyboard.press("Escape")
    assert not page.evaluate("() => document.getElementById('settings').open")
    assert page.evaluate("() => document.activeElement.id") == "question"


def test_it_is_used_from_the_keyboard_alone(page: Any) -> None:
    assert page.evaluate("() => document.activeElement.id") == "question"
    page.keyboard.type("first line")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("please say")
    page.keyboard.press("Enter")
    finished(page)
    assert last_answer(page) == ANSWERS["say"]
    page.keyboard.press("Alt+R")
    page.wait_for_function("() => document.querySelectorAll('li.assistant').length == 1")
    finished(page)
    names = page.evaluate(
        "() => [...document.querySelectorAll('button, input, select, textarea')]"
        ".filter(e => !(e.textContent.trim() || e.labels?.length)).map(e => e.id)"
    )
    assert names == [], "every control has a name"


def test_nothing_comes_from_elsewhere(live: Live) -> None:
    folder = Path(__file__).resolve().parents[2] / "mlx_redrafter" / "server" / "page"
    for file in folder.iterdir():
        text = file.read_text("utf-8").replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?://|//cdn|@import", text), file.name
    assert eventually(lambda: live.thread.alive)
