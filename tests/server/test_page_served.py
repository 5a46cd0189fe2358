"""The web page on the real server, whose service is scripted (conftest.py)."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

pytest.importorskip("playwright.sync_api", reason="no playwright")
from page_browser import launched
from playwright.sync_api import Browser, Page, expect

from m40llm.errors import BusyError, DeadlineError, DeviceError, M40LLMError
from m40llm.testing.scripted import ScriptedService

expect.set_options(timeout=15_000)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with launched() as browser:
        yield browser


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page of a fresh profile, on which nothing may break the server's policy."""
    context = browser.new_context()
    page = context.new_page()
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda m: "Content Security" in m.text and faults.append(m.text))
    yield page
    context.close()
    assert not faults


def send(page: Page, text: str) -> None:
    page.fill("#prompt", text)
    page.press("#prompt", "Enter")


def test_chat_with_settings_and_key(
    page: Page, service: ScriptedService, served: Callable[..., str]
) -> None:
    page.goto(served(keys=("secret",)))
    page.locator("#notice").get_by_text("Enter key").click()
    page.keyboard.type("secret")
    fields = {"temperature": "0.5", "top_p": "0.9", "top_k": "40", "min_p": "0.1", "seed": "7"}
    for name, value in {**fields, "max_tokens": "9", "stop": "END\n\\n"}.items():
        page.fill(f"[name={name}]", value)
    page.get_by_role("button", name="Done").click()
    expect(page.locator("#model")).to_have_value("tiny")
    send(page, "Hello")
    expect(page.locator(".stats")).to_contain_text("9 tokens")
    expect(page.locator(".stats")).to_contain_text("(1 reused)")
    expect(page.locator(".stats")).to_contain_text("cut at the token limit")
    expect(page.locator(".answer")).to_contain_text("the quick b")
    params = service.asked[0]["params"]
    assert {name: getattr(params, name) for name in fields} == {n: float(fields[n]) for n in fields}
    assert (params.max_tokens, params.stop) == (9, ("END", "\n"))


def test_stop_frees_the_slot(
    page: Page, service: ScriptedService, served: Callable[..., str]
) -> None:
    service.script.n_tokens, service.script.token_s = 2000, 0.02
    page.goto(served())
    send(page, "Hello")
    expect(page.locator(".answer")).to_contain_text("the quick brown")
    page.keyboard.press("Escape")
    expect(page.locator(".stats")).to_contain_text("stopped")
    while not service.tickets[0].is_ended:
        page.wait_for_timeout(10)
    assert service.tickets[0].is_cancelled


IN_MID_STREAM: list[tuple[M40LLMError, str]] = [
    (DeviceError("the card fell off"), "Something failed in the server"),
    (DeadlineError("1.0 s have passed"), "took longer than it allows"),
]


def test_errors(page: Page, service: ScriptedService, served: Callable[..., str]) -> None:
    page.goto(served(max_body_bytes=2000))
    error: Any = page.locator("article .error")
    service.script.busy = BusyError("the queue is full", retry_after_s=7)
    send(page, "Hello")
    expect(error).to_contain_text("try again in 7 s.")
    service.script.busy = None
    for service.script.error, words in IN_MID_STREAM:
        page.get_by_text("Try again", exact=True).click()
        expect(error).to_contain_text(words)
        expect(page.locator(".answer")).to_contain_text("the")
    page.get_by_role("button", name="New conversation").first.click()
    send(page, "word " * 100)  # 64 tokens fit
    expect(error).to_contain_text("no longer fits the model's context")
    page.get_by_text("New conversation").last.click()
    send(page, "word " * 1000)
    expect(error).to_contain_text("too large for the server")
