"""What the page does for whoever scrolls, tabs, listens, mistypes or runs out of context."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from browser_page import ask, finished, last_answer, opened
from live_server import Live, serve_scripted
from mlx_lm.tokenizer_utils import TokenizerWrapper
from scripted_answers import ANSWERS, script

WIDE, NARROW = {"width": 1000, "height": 500}, {"width": 400, "height": 500}
# How far the conversation's end lies below the form, which it would be hidden by.
BEYOND = (
    "() => document.getElementById('messages').getBoundingClientRect().bottom"
    " - document.getElementById('ask').getBoundingClientRect().top"
)
FOCUSED = "() => document.activeElement.id"


@contextmanager
def page_of(
    browser: Any, tokenizer: TokenizerWrapper, delay: float = 0.0, **options: Any
) -> Iterator[Any]:
    with serve_scripted(tokenizer, script(tokenizer, delay=delay), **options) as live:
        page = opened(browser, live)
        yield page
        assert page.faults == []
        page.context.close()


def answers(page: Any, number: int) -> None:
    page.wait_for_function(
        "n => document.querySelectorAll('li.assistant .end').length >= n", arg=number
    )


@pytest.mark.parametrize("size", [WIDE, NARROW])
def test_the_answer_is_followed_as_it_comes(browser: Any, live: Live, size: Any) -> None:
    page = opened(browser, live, viewport=size)
    for number in range(1, 4):
        ask(page, "long")
        answers(page, number)
        assert page.evaluate(BEYOND) <= 1
    assert page.locator("li.assistant").last.locator(".end").is_visible()
    page.context.close()


@pytest.mark.parametrize("size", [WIDE, NARROW])
def test_a_reader_who_scrolled_up_stays_there(
    browser: Any, tokenizer: TokenizerWrapper, size: Any
) -> None:
    with page_of(browser, tokenizer, delay=0.02) as page:
        page.set_viewport_size(size)
        for number in (1, 2, 3):
            ask(page, "long")
            page.wait_for_function(
                "n => document.querySelectorAll('li.assistant').length === n", arg=number
            )
            if number == 3:
                page.wait_for_selector("li.assistant:last-child .piece")
                page.mouse.move(200, 200)
                page.mouse.wheel(0, -3000)
                page.wait_for_function(f"() => ({BEYOND})() > 60")
            answers(page, number)
        assert page.evaluate(BEYOND) > 60


def test_no_ratio_is_told_where_nothing_was_drafted(
    browser: Any, tokenizer: TokenizerWrapper
) -> None:
    with serve_scripted(tokenizer, script(tokenizer, drafts=False)) as live:
        page = opened(browser, live)
        ask(page, "long")
        finished(page)
        assert page.inner_text("#speed") == "200.0"
        assert page.inner_text("#ratio") == ""
        page.context.close()


def test_an_answer_among_others_says_so_in_place_of_a_ratio(
    browser: Any, tokenizer: TokenizerWrapper
) -> None:
    with serve_scripted(tokenizer, script(tokenizer, delay=0.02)) as live:
        tabs = [opened(browser, live) for _ in range(2)]
        for tab in tabs:
            ask(tab, "long")
        for tab in tabs:
            finished(tab)
            assert tab.inner_text("#ratio") == "with 1 other"
            tab.context.close()


def test_without_a_drafter_nothing_speaks_of_one(browser: Any, tokenizer: TokenizerWrapper) -> None:
    with page_of(browser, tokenizer, guesses=False, copies=False) as page:
        page.click("#settings summary")
        assert page.is_disabled("#draft")
        assert not page.is_checked("#draft")
        assert "no drafter is loaded" in page.inner_text("#settings")
        assert "drafter" not in page.inner_text("#chat") + page.inner_text("#panel")
        ask(page, "say")
        finished(page)
        assert page.inner_text("#plain") == "this is plain decoding"


def test_without_a_drafter_copies_are_told_apart(browser: Any, tokenizer: TokenizerWrapper) -> None:
    with page_of(browser, tokenizer, guesses=False) as page:
        page.click("#settings summary")
        assert page.is_enabled("#draft")
        assert page.inner_text("#hint").startswith(
            "Ask something. What was copied from the text and what the model supplied itself are"
        )
        assert not page.is_visible("#legend-guessed")
        assert page.is_visible("#legend-copied")


def test_an_answer_that_was_cut_says_after_how_many_tokens(
    browser: Any, tokenizer: TokenizerWrapper
) -> None:
    with page_of(browser, tokenizer) as page:
        page.click("#settings summary")
        page.fill("#max-tokens", "5")
        ask(page, "long")
        finished(page)
        assert page.inner_text("li.assistant .end").startswith("Cut after 5 tokens: ")


def test_an_answer_that_filled_the_context_says_so(
    browser: Any, tokenizer: TokenizerWrapper
) -> None:
    with page_of(browser, tokenizer, context=40) as page:
        ask(page, "long")
        finished(page)
        assert page.inner_text("li.assistant .end").startswith("The model's context is full: ")


def test_a_full_conversation_leads_to_a_new_one(browser: Any, tokenizer: TokenizerWrapper) -> None:
    with page_of(browser, tokenizer, context=60) as page:
        ask(page, "long")
        finished(page)
        ask(page, "say")
        page.wait_for_selector("#messages .fault button")
        assert "has filled the model's context" in page.inner_text("#messages .fault")
        page.click(".fault button")
        assert page.locator("#messages li").count() == 0
        assert page.input_value("#question") == "please say"
        page.press("#question", "Enter")
        finished(page)
        assert last_answer(page) == ANSWERS["say"]


def test_a_question_too_long_by_itself_is_told_to_be_shorter(
    browser: Any, tokenizer: TokenizerWrapper
) -> None:
    with page_of(browser, tokenizer, context=60) as page:
        ask(page, "x y " * 60)
        page.wait_for_selector("#messages .fault")
        assert "shorten the prompt" in page.inner_text("#messages .fault")
        assert page.locator(".fault button").count() == 0


def test_the_focus_goes_from_a_button_that_ends_to_the_one_that_begins(
    browser: Any, tokenizer: TokenizerWrapper
) -> None:
    with page_of(browser, tokenizer, delay=0.03) as page:
        page.fill("#question", "please long")
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        page.wait_for_selector("li.assistant .piece")
        assert page.evaluate(FOCUSED) == "stop"
        page.keyboard.press("Enter")
        page.wait_for_selector("body[data-state=ended]")
        assert page.evaluate(FOCUSED) == "question"


def test_screen_readers_hear_an_answer_once_and_whole(
    browser: Any, tokenizer: TokenizerWrapper
) -> None:
    with page_of(browser, tokenizer) as page:
        page.evaluate(
            "() => { window.heard = []; const spoken = document.getElementById('spoken');"
            " new MutationObserver(() => window.heard.push(spoken.textContent))"
            ".observe(spoken, { childList: true, characterData: true, subtree: true }) }"
        )
        ask(page, "say")
        finished(page)
        assert page.evaluate("() => window.heard") == [ANSWERS["say"]]
        assert page.get_attribute("#spoken", "aria-live") == "polite"


def test_screen_readers_hear_what_went_wrong(browser: Any, tokenizer: TokenizerWrapper) -> None:
    with page_of(browser, tokenizer) as page:
        ask(page, "crash")
        page.wait_for_selector("li.assistant .fault[role=alert]")


@pytest.mark.parametrize(
    ("setting", "value", "sentence"),
    [
        ("temperature", "3", "from 0 to 2"),
        ("temperature", "-1", "from 0 to 2"),
        ("max-tokens", "0", "whole number from 1"),
        ("max-tokens", "1.5", "whole number from 1"),
        ("seed", "-1", "whole number from 0"),
    ],
)
def test_what_a_setting_cannot_be_is_told_and_not_sent(
    browser: Any, live: Live, setting: str, value: str, sentence: str
) -> None:
    page = opened(browser, live)
    page.evaluate(
        "([id, value]) => { document.getElementById(id).value = value }", [setting, value]
    )
    ask(page, "say")
    assert sentence in page.inner_text("#wrong")
    assert page.evaluate(FOCUSED) == setting
    assert page.input_value("#question") == "please say"
    page.fill(f"#{setting}", "1")
    assert not page.is_visible("#wrong")
    page.press("#question", "Enter")
    finished(page)
    page.context.close()


def test_settings_left_empty_are_the_servers_own(browser: Any, tokenizer: TokenizerWrapper) -> None:
    with page_of(browser, tokenizer) as page:
        sent: list[Any] = []
        page.on(
            "request",
            lambda one: sent.append(one.post_data_json) if one.method == "POST" else None,
        )
        page.click("#settings summary")
        for setting in ("temperature", "max-tokens"):
            page.fill(f"#{setting}", "")
        ask(page, "say")
        finished(page)
        assert not {"temperature", "max_tokens", "seed"} & set(sent[-1])
        page.fill("#temperature", "0.75")
        ask(page, "say")
        answers(page, 2)
        assert sent[-1]["temperature"] == 0.75


def test_a_new_chat_while_answering_leaves_nothing_of_the_old_one(
    browser: Any, tokenizer: TokenizerWrapper
) -> None:
    with page_of(browser, tokenizer, delay=0.03) as page:
        fresh = page.inner_text("#panel .card >> nth=0"), page.inner_text("#tree")
        ask(page, "long")
        page.wait_for_selector("#tree svg")
        page.click("#new")
        page.wait_for_function("() => document.querySelectorAll('.slot.on').length === 0")
        assert page.get_attribute("body", "data-state") == ""
        assert page.inner_text("#state") == ""
        assert (page.inner_text("#panel .card >> nth=0"), page.inner_text("#tree")) == fresh
        assert page.inner_text("#share-own") == "–"
        assert page.evaluate(FOCUSED) == "question"


@pytest.mark.parametrize("size", [(800, 300), (360, 400)])
def test_the_settings_can_be_reached_in_a_low_window(browser: Any, live: Live, size: Any) -> None:
    page = opened(browser, live, viewport={"width": size[0], "height": size[1]})
    page.click("#settings summary")
    box = page.locator(".fields").bounding_box()
    assert box["y"] + box["height"] <= size[1]
    assert page.evaluate("() => document.documentElement.scrollWidth") <= size[0]
    page.locator("#key").scroll_into_view_if_needed()
    key = page.locator("#key").bounding_box()
    assert key["y"] + key["height"] <= size[1]
    page.context.close()


def test_leaving_asks_only_where_there_is_a_conversation(
    browser: Any, tokenizer: TokenizerWrapper
) -> None:
    with page_of(browser, tokenizer) as page:
        asked: list[str] = []

        def stay(dialog: Any) -> None:
            asked.append(dialog.type)
            dialog.accept()

        page.on("dialog", stay)
        page.reload()
        assert asked == []
        page.wait_for_selector("#model option", state="attached")
        ask(page, "say")
        finished(page)
        page.reload()
        assert asked == ["beforeunload"]


def test_enter_that_ends_a_composition_sends_nothing(browser: Any, live: Live) -> None:
    page = opened(browser, live)
    page.fill("#question", "please say")
    page.evaluate(
        "() => document.getElementById('question').dispatchEvent(new KeyboardEvent('keydown',"
        " { key: 'Enter', keyCode: 229, bubbles: true, cancelable: true }))"
    )
    assert page.locator("#messages li").count() == 0
    assert page.input_value("#question") == "please say"
    page.context.close()
