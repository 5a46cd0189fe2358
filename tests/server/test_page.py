"""The web page, end to end in headless Chromium, against a scripted server (page_server.py)."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("playwright.sync_api", reason="no playwright")
from page_browser import launched
from page_server import PAGE, Serving, serving
from playwright.sync_api import Browser, BrowserContext, Locator, Page, expect

expect.set_options(timeout=15_000)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with launched() as browser:
        yield browser


@pytest.fixture(scope="module")
def server() -> Iterator[Serving]:
    with serving() as server:
        yield server


def watch(page: Page, server: Serving) -> list[str]:
    """What must not happen on a page, as it happens: it fails, or leaves the server's origin."""
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("dialog", lambda dialog: faults.append(f"dialog: {dialog.message}"))
    page.on("console", lambda m: "Content Security" in m.text and faults.append(m.text))
    page.on("request", lambda r: server.origin in r.url or faults.append(f"asks {r.url}"))
    return faults


@pytest.fixture
def open_page(browser: Browser, server: Serving) -> Iterator[Any]:
    """Opens pages of one fresh browser profile, made with the first one's options."""
    server.script.__init__()
    contexts: list[BrowserContext] = []
    faults: list[list[str]] = []

    def open_page(**options: Any) -> Page:
        if not contexts:
            contexts.append(browser.new_context(**options))
        page = contexts[0].new_page()
        faults.append(watch(page, server))
        page.goto(server.url)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not any(faults)


@pytest.fixture(scope="module")
def shared_page(browser: Browser, server: Serving) -> tuple[Page, list[str]]:
    page = browser.new_context().new_page()
    return page, watch(page, server)


@pytest.fixture
def page(shared_page: tuple[Page, list[str]], server: Serving) -> Iterator[Page]:
    """A page with nothing kept: a profile costs twice as much as a page, so they share one."""
    page, faults = shared_page
    server.script.__init__()
    faults.clear()
    page.goto(server.url)
    yield page
    page.context.set_offline(False)
    page.evaluate("sessionStorage.clear()")
    page.goto("about:blank")
    storage = {"origin": server.origin, "storageTypes": "local_storage"}
    page.context.new_cdp_session(page).send("Storage.clearDataForOrigin", storage)
    assert not faults


def send(page: Page, text: str) -> None:
    page.fill("#prompt", text)
    page.press("#prompt", "Enter")


def answers(page: Page) -> Locator:
    return page.locator("article.assistant .answer")


def ask(page: Page, text: str) -> Locator:
    """Sends `/answer text` and waits for the answer's end."""
    send(page, f"/answer {text}")
    expect(page.locator("article.assistant").last).to_have_attribute("aria-busy", "false")
    return answers(page).last


def bodies(server: Serving) -> list[dict[str, Any]]:
    return server.script.bodies


def contents(body: dict[str, Any]) -> list[tuple[str, str]]:
    return [(m["role"], m["content"]) for m in body["messages"]]


def stored(page: Page, name: str) -> Any:
    return json.loads(page.evaluate(f"localStorage.getItem('m40llm.{name}')") or "null")


# --- talking ---


def test_a_message_is_answered_in_pieces_and_counted(page: Page, server: Serving) -> None:
    expect(page.locator("#model")).to_have_value("SmolLM2-135M-Instruct")
    expect(page.locator("#prompt")).to_be_focused()
    expect(ask(page, "Grüße, 世界 🌍!")).to_have_text("Grüße, 世界 🌍!")
    expect(page.locator(".stats")).to_contain_text("3 tokens · ")
    expect(page.locator(".stats")).to_contain_text(re.compile(r"first after \d\.\d\d s"))
    expect(page.locator(".stats")).to_contain_text("prompt of 31 (16 reused)")
    expect(page.locator("#prompt")).to_have_value("")
    expect(page.locator("#prompt")).to_be_focused()
    assert bodies(server) == [
        {
            "model": "SmolLM2-135M-Instruct",
            "messages": [{"role": "user", "content": "/answer Grüße, 世界 🌍!"}],
            "stream": True,
            "stream_options": {"include_usage": True},
            **DEFAULTS,
        }
    ]


def test_the_whole_conversation_is_sent(page: Page, server: Serving) -> None:
    ask(page, "one")
    ask(page, "two")
    want = [("user", "/answer one"), ("assistant", "one"), ("user", "/answer two")]
    assert contents(bodies(server)[1]) == want


def test_an_edit_waits_for_the_answer_under_way(page: Page, server: Serving) -> None:
    ask(page, "one")
    page.get_by_text("Edit").click()
    editor = page.get_by_label("Edit the message")
    send(page, "/slow 2000")
    expect(answers(page).last).to_contain_text("word1")
    editor.fill("/answer two")
    editor.press("Enter")
    expect(page.locator("#toast")).to_contain_text("Still answering")
    expect(editor).to_have_value("/answer two")
    page.get_by_label("Stop", exact=True).click()
    editor.press("Enter")
    expect(answers(page)).to_have_text(["two"])


@pytest.mark.parametrize("by", ["Escape", "button"])
def test_stop(page: Page, server: Serving, by: str) -> None:
    send(page, "/slow 2000")
    expect(answers(page)).to_contain_text("word5")
    expect(page.locator(".stats")).to_contain_text("tokens/s")
    page.keyboard.press("Escape") if by == "Escape" else page.get_by_label(
        "Stop", exact=True
    ).click()
    expect(page.locator(".stats")).to_contain_text("stopped")
    expect(answers(page)).to_contain_text("word5")
    expect(page.get_by_label("Send", exact=True)).to_be_visible()
    page.wait_for_timeout(200)
    assert server.script.n_gone == 1


def test_enter_while_an_answer_comes_loses_nothing(page: Page, server: Serving) -> None:
    send(page, "/slow 2000")
    expect(answers(page)).to_contain_text("word1")
    send(page, "impatient")
    expect(page.locator("#toast")).to_contain_text("Still answering")
    expect(page.locator("#prompt")).to_have_value("impatient")
    assert len(bodies(server)) == 1


def test_conversations_are_answered_side_by_side(page: Page) -> None:
    send(page, "/slow 40")
    expect(answers(page)).to_contain_text("word1")
    page.get_by_role("button", name="New conversation").first.click()
    expect(ask(page, "beside")).to_have_text("beside")
    page.get_by_role("button", name="/slow 40", exact=True).click()
    expect(answers(page)).to_contain_text("word39")


def test_regenerate(page: Page, server: Serving) -> None:
    ask(page, "one")
    ask(page, "two")
    expect(page.get_by_text("Regenerate")).to_have_count(2)
    expect(page.get_by_text("Regenerate").first).to_be_hidden()
    page.get_by_text("Regenerate").last.click()
    expect(page.locator(".stats").last).to_contain_text("1 token")
    expect(answers(page)).to_have_text(["one", "two"])
    assert contents(bodies(server)[2]) == contents(bodies(server)[1])


def test_edit_and_send_again(page: Page, server: Serving) -> None:
    ask(page, "one")
    ask(page, "two")
    page.get_by_text("Edit").first.click()
    editor = page.get_by_label("Edit the message")
    expect(editor).to_have_value("/answer one")
    page.keyboard.press("Escape")
    expect(editor).to_have_count(0)
    expect(answers(page)).to_have_text(["one", "two"])
    expect(page.get_by_text("Edit").first).to_be_focused()
    page.keyboard.press("Enter")
    editor.fill("/answer three")
    editor.press("Enter")
    expect(answers(page)).to_have_text(["three"])
    assert contents(bodies(server)[2]) == [("user", "/answer three")]
    expect(page.locator("#chats .chat")).to_have_text(["/answer three"])


def test_thoughts_are_folded(page: Page) -> None:
    expect(ask(page, "<think>Hm, a list.</think>Apples.")).to_have_text("Apples.")
    thoughts = page.get_by_text("Hm, a list.", exact=True)
    expect(thoughts).to_be_hidden()
    page.get_by_text("Thoughts").click()
    expect(thoughts).to_be_visible()


def test_copy(open_page: Any) -> None:
    page = open_page(permissions=["clipboard-read", "clipboard-write"])
    ask(page, "See:\n```python\nprint(1)\n```")
    expect(page.get_by_text("Copy")).to_have_count(2)
    page.locator("[data-act=copy-code]").click()
    expect(page.get_by_text("Copied")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == "print(1)"
    page.locator("[data-act=copy]").click()
    expect(page.get_by_text("Copied")).to_have_count(2)
    assert page.evaluate("navigator.clipboard.readText()") == "See:\n```python\nprint(1)\n```"


def test_scrolls_only_for_who_is_at_the_bottom(page: Page) -> None:
    ask(page, "line\n\n" * 60)
    at_bottom = "s => s.scrollHeight - s.scrollTop - s.clientHeight < 40"
    scroller = page.locator("#scroller")
    assert scroller.evaluate(at_bottom)
    send(page, "/slow 400")
    expect(answers(page).last).to_contain_text("word9")
    assert scroller.evaluate(at_bottom)
    scroller.evaluate("s => { s.scrollTop = 100; }")
    expect(answers(page).last).to_contain_text("word30")
    assert scroller.evaluate("s => s.scrollTop") == 100
    page.get_by_label("Jump to the latest").click()
    expect(page.get_by_label("Jump to the latest")).to_be_hidden()
    expect(answers(page).last).to_contain_text("word60")
    assert scroller.evaluate(at_bottom)


# --- what is kept ---


def test_a_reload_keeps_history_draft_and_place(page: Page) -> None:
    ask(page, "**kept**")
    page.fill("#prompt", "half a thought")
    page.reload()
    expect(answers(page)).to_have_text(["kept"])
    expect(answers(page).locator("strong")).to_have_count(1)
    expect(page.locator(".stats")).to_contain_text("1 token")
    expect(page.locator("#prompt")).to_have_value("half a thought")


def test_a_reload_in_mid_answer_keeps_what_came(page: Page) -> None:
    send(page, "/slow 2000")
    expect(answers(page)).to_contain_text("word5")
    page.reload()
    expect(answers(page)).to_contain_text("word5")
    expect(page.locator(".stats")).to_contain_text("stopped")
    expect(page.get_by_text("Regenerate")).to_be_visible()


def test_what_is_typed_waits_where_it_was_typed(page: Page) -> None:
    ask(page, "one")
    page.fill("#prompt", "for one")
    page.get_by_role("button", name="New conversation").first.click()
    expect(page.locator("#prompt")).to_have_value("")
    page.fill("#prompt", "for a new one")
    page.get_by_role("button", name="/answer one", exact=True).click()
    expect(page.locator("#prompt")).to_have_value("for one")
    page.get_by_role("button", name="New conversation").first.click()
    expect(page.locator("#prompt")).to_have_value("for a new one")
    page.press("#prompt", "Enter")
    expect(answers(page)).to_have_text(["for a new one"])
    page.get_by_role("button", name="New conversation").first.click()
    expect(page.locator("#prompt")).to_have_value("")


def test_delete_and_undo(page: Page) -> None:
    ask(page, "one")
    page.get_by_role("button", name="New conversation").first.click()
    ask(page, "two")
    titles = page.locator("#chats .chat")
    expect(titles).to_have_text(["/answer two", "/answer one"])
    page.get_by_label("Delete: /answer two").click()
    expect(titles).to_have_text(["/answer one"])
    expect(answers(page)).to_have_count(0)
    page.get_by_text("Undo").click()
    expect(titles).to_have_text(["/answer two", "/answer one"])
    expect(answers(page)).to_have_text(["two"])
    page.get_by_label("Settings").first.click()
    page.get_by_text("Delete all").click()
    expect(titles).to_have_count(0)
    page.reload()
    expect(titles).to_have_count(0)


def test_export_and_import(page: Page, tmp_path: Path) -> None:
    ask(page, "precious")
    page.get_by_label("Settings").first.click()
    page.fill("[name=key]", "secret")
    page.get_by_role("button", name="Done").click()
    page.get_by_label("Settings").first.click()
    with page.expect_download() as download:
        page.get_by_text("Export").click()
    path = tmp_path / "kept.json"
    download.value.save_as(path)
    assert "secret" not in path.read_text()
    page.get_by_text("Delete all").click()
    page.get_by_label("Settings").first.click()
    page.set_input_files("#import-file", path)
    expect(page.locator("#import-note")).to_have_text("1 conversations read.")
    page.set_input_files("#import-file", path)
    expect(page.locator("#import-note")).to_have_text("0 conversations read.")
    page.keyboard.press("Escape")
    page.get_by_role("button", name="/answer precious", exact=True).click()
    expect(answers(page)).to_have_text(["precious"])


DEFAULTS = {"temperature": 0.8, "top_p": 0.95, "top_k": 40, "min_p": 0.05}  # of SamplingParams
WRONG_FILES = {
    "not JSON": "not a file that Export has written",
    '{"conversations": 3}': "not a file that Export has written",
    '{"conversations": [{}]}': "a conversation needs messages",
    '{"conversations": [{"messages": [{"role": "tool", "content": "x"}]}]}': "needs a role",
    '{"conversations": [{"messages": [{"role": "user", "content": {"a": 1}}]}]}': "and a text",
}


def test_a_wrong_file_is_refused_in_words(page: Page) -> None:
    page.get_by_label("Settings").first.click()
    for text, words in WRONG_FILES.items():
        file: Any = {"name": "x.json", "mimeType": "text/json", "buffer": text.encode()}
        page.set_input_files("#import-file", file)
        expect(page.locator("#import-note")).to_contain_text(words)
    expect(page.locator("#chats .chat")).to_have_count(0)


def test_a_stranger_s_file_is_shown_as_text(page: Page) -> None:
    evil: Any = {"role": "assistant", "content": "<img src=x onerror=alert(1)>", "stop": {"a": 1}}
    evil["stats"] = {"nTokens": "<b>3", "perSecond": "9", "nPrompt": {"a": 1}, "firstMs": None}
    evil["error"] = {"kind": "constructor", "detail": ["<script>"], "retryAfter": "soon"}
    chat = {"id": "../key", "title": {"a": 1}, "messages": [evil]}
    text = json.dumps({"conversations": [chat]}).encode()
    page.get_by_label("Settings").first.click()
    file: Any = {"name": "x.json", "mimeType": "text/json", "buffer": text}
    page.set_input_files("#import-file", file)
    page.keyboard.press("Escape")
    page.locator("#chats .chat").click()
    expect(answers(page)).to_have_text("<img src=x onerror=alert(1)>")
    expect(page.locator("article .error")).to_contain_text("Something failed in the server")
    expect(page.locator("article .error")).to_contain_text("<script>")


def test_full_storage_is_said_and_the_chat_goes_on(page: Page) -> None:
    page.evaluate("() => { Storage.prototype.setItem = () => { throw new Error('no room'); }; }")
    expect(ask(page, "still here")).to_have_text("still here")
    expect(page.locator("#toast")).to_contain_text("no room left")


def test_a_second_tab_sees_what_the_first_writes(open_page: Any) -> None:
    first, second = open_page(), open_page()
    ask(first, "from the first")
    expect(second.locator("#chats .chat")).to_have_text(["/answer from the first"])


# --- settings ---


def test_settings_and_system_prompt_arrive(page: Page, server: Serving) -> None:
    page.get_by_label("Settings").first.click()
    fields = {
        "temperature": "0.7",
        "top_p": "0.9",
        "top_k": "0",
        "min_p": "0.1",
        "max_tokens": "64",
        "seed": "7",
    }
    for name, value in fields.items():
        page.fill(f"[name={name}]", value)
    page.fill("[name=stop]", "END\n\\n\\n")
    page.fill("[name=system]", "Be brief.")
    page.get_by_role("button", name="Done").click()
    ask(page, "one")
    page.reload()
    ask(page, "two")
    for body in bodies(server):
        assert {name: body[name] for name in fields} == {n: float(v) for n, v in fields.items()}
        assert body["stop"] == ["END", "\n\n"]
        assert contents(body)[0] == ("system", "Be brief.")
    page.get_by_label("Settings").first.click()
    page.get_by_text("Clear all").click()
    page.fill("[name=temperature]", "99")  # no such temperature: not taken
    page.fill("[name=system]", "")
    page.keyboard.press("Escape")
    ask(page, "three")
    last = bodies(server)[-1]
    assert last | DEFAULTS == last
    assert set(last) - set(DEFAULTS) == {"model", "messages", "stream", "stream_options"}
    assert contents(bodies(server)[-1])[0][0] == "user"


def test_done_points_at_what_is_not_valid(page: Page) -> None:
    page.get_by_label("Settings").first.click()
    page.fill("[name=top_p]", "2")
    page.get_by_role("button", name="Done").click()
    expect(page.locator("dialog")).to_be_visible()
    expect(page.locator("[name=top_p]")).to_be_focused()


# --- errors ---


ERRORS = {
    "400 0": "no longer fits the model's context",
    "413 0": "too large for the server",
    "422 0": "refused this request",
    "429 7": "full just now.Nothing is lost: try again in 7 s.",
    "500 0": "Something failed in the server",
    "503 9": "cannot answer just now.It may be starting or shutting down. Try again in 9 s.",
}


def test_errors_in_words(page: Page, server: Serving) -> None:
    error = page.locator("article .error")
    for status, words in ERRORS.items():
        page.get_by_role("button", name="New conversation").first.click()
        send(page, f"/status {status}")
        expect(error).to_contain_text(words)
        expect(error).to_contain_text("As the script says.")
        expect(page.locator("article.user .text")).to_have_text(f"/status {status}")
    page.reload()
    expect(error).to_contain_text(words)
    page.get_by_text("Try again", exact=True).click()
    expect(error).to_contain_text(words)
    page.wait_for_timeout(100)
    assert bodies(server)[-1] == bodies(server)[-2]


@pytest.mark.parametrize("is_remembered", [False, True])
def test_a_key_is_asked_for_once(open_page: Any, server: Serving, is_remembered: bool) -> None:
    server.script.key = "secret"
    page = open_page()
    expect(page.locator("#notice")).to_contain_text("wants an API key")
    send(page, "/answer let in")
    expect(page.locator("article .error")).to_contain_text("wants an API key")
    expect(page.locator("#notice")).to_be_hidden()
    page.locator("article").get_by_text("Enter key").click()
    expect(page.get_by_label("API key")).to_be_focused()
    page.keyboard.type("secret")
    page.get_by_label("Remember it").set_checked(is_remembered)
    page.get_by_role("button", name="Done").click()
    expect(answers(page)).to_have_text(["let in"])  # without sending it again
    expect(page.locator("#model")).to_have_value("SmolLM2-135M-Instruct")
    assert stored(page, "key") == ("secret" if is_remembered else None)
    page.reload()
    expect(page.locator("#model")).to_have_value("SmolLM2-135M-Instruct")


BREAKS = {
    "/late": "Something failed in the server",
    "/cut": "The answer ended too early",
    "/reset": "The connection broke in the middle",
}


def test_what_came_before_an_error_is_kept(page: Page) -> None:
    for verb, words in BREAKS.items():
        page.get_by_role("button", name="New conversation").first.click()
        send(page, verb)
        expect(page.locator("article .error")).to_contain_text(words)
        expect(answers(page)).to_have_text(["The first half"])


def test_no_network(page: Page) -> None:
    page.evaluate("document.querySelector('#model').replaceChildren()")  # nor when it was opened
    page.context.set_offline(True)
    send(page, "/answer back again")
    expect(page.locator("article .error")).to_contain_text("cannot be reached")
    page.context.set_offline(False)
    page.get_by_text("Try again", exact=True).click()
    expect(answers(page)).to_have_text(["back again"])


def test_roles_still_take_turns_after_an_error(page: Page, server: Serving) -> None:
    send(page, "/status 500")
    expect(page.locator("article .error")).to_be_visible()
    send(page, "and then?")
    expect(page.locator("article.assistant")).to_have_count(2)
    page.wait_for_timeout(100)
    assert contents(bodies(server)[1]) == [("user", "/status 500\n\nand then?")]


def test_events_are_read_wherever_the_network_cuts(page: Page) -> None:
    wire = (
        ": hello\r\n\r\ndata: one\r\n\r\ndata:two\ndata: lines\n\nevent: x\rdata: é\r\rdata: last"
    )
    found = page.evaluate(
        """async ([url, wire]) => {
          const { eventsOf } = await import(url);
          const bytes = new TextEncoder().encode(wire);
          const results = new Set();
          for (let a = 0; a <= bytes.length; a += 1) {
            const parts = [bytes.slice(0, a), bytes.slice(a, a + 1), bytes.slice(a + 1)];
            const events = [];
            const start = (controller) => {
              for (const part of parts) controller.enqueue(part);
              controller.close();
            };
            for await (const data of eventsOf(new ReadableStream({ start }))) events.push(data);
            results.add(JSON.stringify(events));
          }
          return [...results];
        }""",
        [page.url + "api.js", wire],
    )
    assert [json.loads(events) for events in found] == [["one", "two\nlines", "é", "last"]]


def test_a_stream_that_is_none(page: Page) -> None:
    for raw in ["data: {oops\\n\\n", "data: {}\\n\\n", ": only a comment\\n\\n"]:
        page.get_by_role("button", name="New conversation").first.click()
        send(page, f"/raw {raw}")
        expect(page.locator("article .error")).to_be_visible()


# --- for everyone ---


def test_by_keyboard_alone(page: Page, server: Serving) -> None:
    expect(page.locator("#model")).to_be_visible()
    for _ in range(8):  # backwards from the message box to the page's beginning
        page.keyboard.press("Shift+Tab")
        if page.evaluate("document.activeElement.className") == "skip":
            break
    expect(page.get_by_text("Skip to the message box")).to_be_focused()
    expect(page.get_by_text("Skip to the message box")).to_be_in_viewport()
    page.keyboard.press("Enter")
    expect(page.locator("#prompt")).to_be_focused()
    page.keyboard.type("/answer one")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("two")
    page.keyboard.press("Enter")
    expect(answers(page)).to_have_text(["onetwo"])
    assert contents(bodies(server)[0]) == [("user", "/answer one\ntwo")]
    page.keyboard.press("Control+Home")
    seen = []
    for _ in range(20):
        page.keyboard.press("Tab")
        seen.append(page.evaluate(FOCUSED))
        if seen[-1][0] == "prompt":
            break
    names = [name for name, _ in seen]
    assert all(is_visible for _, is_visible in seen), seen
    for name in ["menu", "theme", "settings", "new", "open", "delete", "edit", "copy", "again"]:
        assert name in names, f"{name} is not reached: {names}"
    page.locator("header [data-act=settings]").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_label("System prompt")).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.locator("header [data-act=settings]")).to_be_focused()


FOCUSED = """() => {
  const node = document.activeElement;
  const style = getComputedStyle(node);
  const box = getComputedStyle(node.parentElement);
  const isVisible = style.outlineStyle !== "none" || box.boxShadow !== "none";
  if (node === document.body) return ["", true]; // past the end, before the beginning
  return [node.dataset.act ?? node.id, isVisible && style.opacity === "1"];
}"""


def test_an_answer_is_spoken_by_sentences(page: Page) -> None:
    ask(page, "It is **Paris**. It has been so for long. And")
    spoken = page.locator("#live p").all_text_contents()
    assert " ".join(spoken) == "It is Paris. It has been so for long. And"
    assert page.locator("#live").get_attribute("aria-live") == "polite"


def test_every_control_has_a_name(page: Page) -> None:
    ask(page, "x")
    page.get_by_label("Settings").first.click()
    nameless = page.evaluate(
        """() => [...document.querySelectorAll("button, input, textarea, select")].filter((node) =>
          !node.ariaLabel && !node.textContent.trim() && !node.labels?.length
        ).map((node) => node.outerHTML)"""
    )
    assert nameless == []


def test_a_phone(open_page: Any) -> None:
    page = open_page(viewport={"width": 360, "height": 640}, has_touch=True, is_mobile=True)
    ask(page, f"{'long' * 60}\n```\n{'wide ' * 60}\n```\n|{'cell|' * 20}\n|{'---|' * 20}\n|a|")
    widths = (
        "[document.documentElement.scrollWidth, document.querySelector('#scroller').scrollWidth]"
    )
    assert page.evaluate(widths) == [360, 360]
    expect(page.get_by_label("Send", exact=True)).to_be_in_viewport(ratio=1)
    sizes = page.evaluate(
        """() => [...document.querySelectorAll("header button, article button, #send")]
          .map((node) => node.getBoundingClientRect()).filter((box) => box.width)
          .map((box) => Math.min(box.width, box.height))"""
    )
    assert min(sizes) >= 32
    fonts = page.evaluate(
        "parseFloat(getComputedStyle(document.querySelector('#prompt')).fontSize)"
    )
    assert fonts >= 16  # below it Safari zooms in
    page.locator("#menu").tap()
    expect(page.locator("#chats .chat")).to_be_in_viewport()
    page.keyboard.press("Escape")
    expect(page.locator("#chats .chat")).to_be_hidden()
    page.get_by_label("Settings").first.tap()
    assert page.locator("dialog").bounding_box()["width"] == 360  # type: ignore[index]
    page.set_viewport_size({"width": 360, "height": 320})  # a keyboard comes up
    expect(page.get_by_role("button", name="Done")).to_be_in_viewport(ratio=1)
    page.keyboard.press("Escape")
    expect(page.locator("#prompt")).to_be_in_viewport(ratio=1)


LUMINANCES = """() => {
  const context = document.createElement("canvas").getContext("2d");
  const luminance = (colour) => {
    context.fillStyle = colour;
    context.fillRect(0, 0, 1, 1);
    const parts = [...context.getImageData(0, 0, 1, 1).data].slice(0, 3).map((part) => {
      const share = part / 255;
      return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2];
  };
  const probe = document.body.appendChild(document.createElement("i"));
  const of = (name) => {
    probe.style.color = `var(--${name})`;
    return luminance(getComputedStyle(probe).color);
  };
  const names = ["page", "side", "raised", "bubble", "code", "text", "muted", "accent",
    "on-accent", "danger", "danger-soft"];
  return Object.fromEntries(names.map((name) => [name, of(name)]));
}"""
PAIRS = [(ink, paper) for ink in ("text", "muted") for paper in ("page", "side", "raised", "code")]
PAIRS += [("on-accent", "accent"), ("accent", "page"), ("danger", "danger-soft")]
PAIRS += [("text", "bubble"), ("muted", "danger-soft"), ("danger", "raised")]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark(open_page: Any, scheme: str) -> None:
    page = open_page(color_scheme=scheme)
    light_of = page.evaluate(LUMINANCES)
    assert (light_of["page"] > 0.5) == (scheme == "light")
    for ink, paper in PAIRS:
        bright, dim = sorted([light_of[ink], light_of[paper]], reverse=True)
        assert (bright + 0.05) / (dim + 0.05) >= 4.5, f"{ink} on {paper}"  # WCAG 2.2, AA
    page.get_by_label("Switch between light and dark").click()
    page.reload()
    assert (page.evaluate(LUMINANCES)["page"] > 0.5) == (scheme == "dark")
    page.get_by_label("Settings").first.click()
    page.get_by_label("As the system").check()
    assert (page.evaluate(LUMINANCES)["page"] > 0.5) == (scheme == "light")


# --- markdown ---

HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "[click](javascript:alert(1))",
    "[click](JaVaScRiPt:alert(1))",
    "[click](java\tscript:alert(1))",
    "[click](data:text/html,<script>alert(1)</script>)",
    "[click](//evil.example/x)",
    "[click](vbscript:x)",
    "![x](https://evil.example/pixel.png)",
    '[a](https://x.example/"onmouseover="alert(1))',
    "<a href='javascript:alert(1)'>x</a>",
    "```html\n</code></pre><script>alert(1)</script>\n```",
    "```<script>alert(1)</script>\ntext\n```",
    "| <img src=x onerror=alert(1)> | b |\n|---|---|\n| <svg onload=alert(1)> | d |",
    "# <iframe src=javascript:alert(1)>",
    "> <style>*{display:none}</style>",
    "1. <b onclick=alert(1)>x</b>",
    "`<script>alert(1)</script>`",
    "**<script>alert(1)</script>**",
    "https://x.example/<script>alert(1)</script>",
    "<think><img src=x onerror=alert(1)></think><img src=x onerror=alert(1)>",
]
FOUND = """(root) => ({
  tags: [...new Set([...root.querySelectorAll("*")].map((node) => node.localName))],
  attributes: [...new Set([...root.querySelectorAll("*")].flatMap((n) => n.getAttributeNames()))],
  links: [...root.querySelectorAll("a")].map((a) => [a.protocol, a.rel, a.target]),
})"""
TAGS = "p br h3 h4 h5 h6 ul ol li pre code div span button strong em del a blockquote hr table"
TAGS += " thead tbody tr th td"
ATTRIBUTES = {"class", "type", "data-act", "tabindex", "start", "href", "title", "target", "rel"}


def test_no_text_of_a_model_becomes_more_than_text(page: Page) -> None:
    # Through the whole page for all of them at once, then each alone.
    shown = ask(page, "\n\n".join(HOSTILE))
    expect(shown).to_contain_text("<script>alert(1)</script>")
    found = [shown.evaluate(FOUND)]
    render = """async ([url, text]) => {
      const { render } = await import(url);
      const root = document.querySelector(".answer");
      render(root, text);
    }"""
    for text in HOSTILE:
        page.evaluate(render, [page.url + "markdown.js", text])
        found.append(shown.evaluate(FOUND))
    for parts in found:
        assert set(parts["tags"]) <= set(TAGS.split())
        assert set(parts["attributes"]) <= ATTRIBUTES
        for link in parts["links"]:
            assert link == ["https:", "noopener noreferrer", "_blank"]


RENDERED = [
    ("a\nb\n\nc", "<p>a<br>b</p><p>c</p>"),
    ("# One\n###### Six #", "<h3>One</h3><h6>Six</h6>"),
    (
        "**b** *i* _i_ ~~s~~ `c`",
        "<p><strong>b</strong> <em>i</em> <em>i</em> <del>s</del> <code>c</code></p>",
    ),
    (
        "***both*** and **a *b* c**",
        "<p><strong><em>both</em></strong> and <strong>a <em>b</em> c</strong></p>",
    ),
    ("2 * 3 * 4, snake_case_name, \\*no\\*", "<p>2 * 3 * 4, snake_case_name, *no*</p>"),
    ("- a\n- b\n  - c\n\n- d", "<ul><li>a</li><li>b<ul><li>c</li></ul></li><li>d</li></ul>"),
    ("3. a\n4. b", '<ol start="3"><li>a</li><li>b</li></ol>'),
    ("* a\n\ntext", "<ul><li>a</li></ul><p>text</p>"),
    ("> a\n> - b", "<blockquote><p>a</p><ul><li>b</li></ul></blockquote>"),
    ("a\n\n---\nb", "<p>a</p><hr><p>b</p>"),
    (
        "|a|b|\n|-|:-:|\n|1|x \\| `y`|",
        '<div class="table" tabindex="0"><table><thead><tr><th>a</th><th>b</th></tr></thead>'
        "<tbody><tr><td>1</td><td>x | <code>y</code></td></tr></tbody></table></div>",
    ),
    ("``` py\n**no**\n\n# no\n```\nyes", "CODE(py|**no**\n\n# no)<p>yes</p>"),
    ("~~~\nopen", "CODE(|open)"),
    (
        "[a](mailto:a@b.example)",
        '<p><a href="mailto:a@b.example" title="mailto:a@b.example" target="_blank" '
        'rel="noopener noreferrer">a</a></p>',
    ),
]
CODE = re.compile(
    r'<div class="code"><div class="code-head"><span>(.*?)</span><button [^>]*>Copy</button></div>'
    r'<pre tabindex="0"><code>(.*?)</code></pre></div>',
    re.DOTALL,
)


def test_markdown_that_models_write(page: Page) -> None:
    for text, want in RENDERED:
        html = page.evaluate(
            """async ([url, text]) => {
              const { render, element } = await import(url);
              const root = element("div");
              render(root, text);
              return root.innerHTML;
            }""",
            [page.url + "markdown.js", text],
        )
        assert CODE.sub(r"CODE(\1|\2)", html) == want, text


def test_a_stream_is_rendered_as_the_whole(page: Page) -> None:
    text = "\n\n".join([text for text, _ in RENDERED] + HOSTILE[:6])
    wrong = page.evaluate(
        """async ([url, text]) => {
          const { render, element } = await import(url);
          const grown = element("div");
          for (let end = 0; end <= text.length; end += 1) {
            render(grown, text.slice(0, end));
            const whole = element("div");
            render(whole, text.slice(0, end));
            if (grown.innerHTML !== whole.innerHTML) return text.slice(0, end);
          }
          return "";
        }""",
        [page.url + "markdown.js", text],
    )
    assert wrong == ""


def test_no_text_makes_the_page_slow(page: Page) -> None:
    """20,000 characters of what makes naive patterns quadratic, or nest too deeply."""
    for unit in ["[", "[a](", ">", "*", "**a", "_a", "`", "- ", "|", "~~", "<", "a\n", "  - a\n"]:
        ms = page.evaluate(
            """async ([url, text]) => {
              const { render, element } = await import(url);
              const start = performance.now();
              render(element("div"), text);
              return performance.now() - start;
            }""",
            [page.url + "markdown.js", unit * (20_000 // len(unit))],
        )
        assert ms < 2000, unit


# --- the files ---


def test_nothing_comes_from_elsewhere() -> None:
    for path in PAGE.iterdir():
        text = path.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"""(src|href|url|from|import)\W{1,3}https?://""", text), path.name
        assert "innerHTML" not in text, path.name
        assert not re.search(r"<[^>]* (style|on\w+)=", text), path.name
        assert text.count("\n") <= 300, path.name
