"""A person at the web page: real Chromium, real server, the demo model on the CPU backend."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from page_support import Server, Visitor, chromium

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Route

HELLO_ZH = "你好！我是 chatglm3:demo，一个很小的演示模型。"
HELLO_EN = "Hello! I am chatglm3:demo, a very small demo model."
LONG = "请使用C++写一段冒泡排序算法。"
KEY = "a-key-for-the-tests-of-the-page"
LAST = ".message.assistant:last-child"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def home(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the first server puts the bundle, and the others find it. Not made where there is no browser."""
    return tmp_path_factory.mktemp("page")


@pytest.fixture(scope="module")
def server(home: Path) -> Iterator[Server]:
    with Server(home, home / "server.log", "--port", "0") as running:
        yield running


@pytest.fixture
def english(browser: Browser, server: Server) -> Iterator[Visitor]:
    visitor = Visitor(browser, server.url, locale="en-GB")
    yield visitor
    visitor.close()


def test_a_conversation_from_greeting_to_deletion(english: Visitor) -> None:
    page = english.page
    pieces: list[str] = []
    page.expose_function("tell", lambda text: pieces.append(text))  # noqa: PLW0108 - it must take attributes
    page.evaluate(
        "new MutationObserver(() => { const body = document.querySelector('.prose'); if (body) tell(body.innerText); })"
        ".observe(document.body, {subtree: true, childList: true, characterData: true})"
    )
    assert english.ask("Hello") == HELLO_EN
    grown = [text for text in dict.fromkeys(piece.strip() for piece in pieces) if text]
    assert len(grown) > 1, "the answer came in one piece"
    assert all(HELLO_EN.startswith(text) for text in grown)
    stats = page.inner_text(f"{LAST} .stats")
    assert "tokens/s" in stats and "first token" in stats and "out" in stats

    page.hover(LAST)
    page.click(f"{LAST} [aria-label='Answer again']")
    page.wait_for_selector(f"{LAST} .versions")
    assert english.answer() == HELLO_EN
    assert page.inner_text(f"{LAST} .versions").split() == ["2/2"]
    page.click(f"{LAST} [aria-label='Previous version']")
    page.wait_for_selector(f"{LAST} .versions :text('1/2')")

    page.hover(".message.user")
    page.click(".message.user [aria-label='Edit']")
    page.fill(".edit-text", "What is tpudeploy?")
    page.press(".edit-text", "Enter")
    page.wait_for_selector(".bubble:has-text('tpudeploy')")
    assert english.answer().startswith("tpudeploy takes a language model")
    assert english.texts(".bubble") == ["What is tpudeploy?"]

    page.reload()
    page.wait_for_selector(".bubble")
    assert english.texts(".bubble") == ["What is tpudeploy?"]
    assert english.answer().startswith("tpudeploy takes a language model")

    page.hover(".message.user")
    page.click(".message.user [aria-label^='Delete']")
    page.wait_for_selector(".bubble:has-text('Hello')")
    page.click(".notice :text('Undo')")
    page.wait_for_selector(".bubble:has-text('tpudeploy')")


def test_stop_keeps_what_came_and_frees_the_model(english: Visitor, server: Server) -> None:
    page = english.page
    for stop in (lambda: page.click(".send.stop"), lambda: page.keyboard.press("Escape")):
        page.fill(".composer-text", LONG)
        with server.slowly():
            page.press(".composer-text", "Enter")
            page.wait_for_selector(f"{LAST}[aria-busy=true] .prose :text('C++')")
            stop()
        answer = english.answer()
        assert "C++" in answer and "Stopped." in page.inner_text(LAST)
        assert not answer.rstrip().endswith("}"), "the whole program came: nothing was stopped"
    assert english.ask("Hello") == HELLO_EN
    # A fenced block that never ended is shown as code all the same; a whole one has colours and a label.
    english.start_new()
    english.ask(LONG)
    assert page.inner_text(f"{LAST} .code-language") == "cpp"
    assert page.locator(f"{LAST} .hljs-keyword").count() > 0
    english.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.click(f"{LAST} .code-copy")
    page.wait_for_selector(".code-copy:text('Copied')")
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied == page.evaluate("document.querySelector('.code pre').textContent")
    assert "bubble_sort" in copied


def test_keys_and_input_methods(english: Visitor) -> None:
    page = english.page
    field = page.locator(".composer-text")
    assert page.evaluate("document.activeElement.className") == "composer-text"
    page.keyboard.type("one")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("two")
    assert field.input_value() == "one\ntwo"
    field.fill("nihao")
    composing = "{key: 'Enter', code: 'Enter', isComposing: true, bubbles: true, cancelable: true}"
    sent = f"document.activeElement.dispatchEvent(new KeyboardEvent('keydown', {composing}))"
    assert page.evaluate(sent), "the page took the Enter that belongs to the input method"
    late = "{key: 'Enter', keyCode: 229, bubbles: true, cancelable: true}"
    assert page.evaluate(f"document.activeElement.dispatchEvent(new KeyboardEvent('keydown', {late}))")
    assert english.texts(".bubble") == []
    field.fill("Hello")
    page.keyboard.press("Enter")
    english.answer()
    assert english.texts(".bubble") == ["Hello"]
    page.keyboard.press("ArrowUp")
    page.wait_for_selector(".edit-text")
    page.keyboard.press("Escape")
    page.wait_for_selector(".edit-text", state="detached")
    english.start_new()
    page.locator(".title").click()
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.className") == "composer-text"
    page.keyboard.press("Shift+Tab")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"


def test_conversations_are_named_found_exported_and_imported(english: Visitor, tmp_path: Path) -> None:
    page = english.page
    english.ask("Hello")
    page.click(".new-chat")
    page.wait_for_selector(".welcome")
    english.ask("Thank you")
    assert english.texts(".entry-title") == ["Thank you", "Hello"]
    page.hover(".entry:has-text('Hello')")
    page.click(".entry:has-text('Hello') [aria-label='Rename']")
    page.fill(".rename", "Greeting")
    page.keyboard.press("Enter")
    page.fill(".search input", "demo model")
    page.wait_for_selector(".entry:has-text('Thank you')", state="detached")
    assert english.texts(".entry-title") == ["Greeting"]
    page.fill(".search input", "")

    page.click(".settings-button")
    with page.expect_download() as download:
        page.click("text=Export all")
    file = tmp_path / "all.json"
    download.value.save_as(file)
    exported = json.loads(file.read_text(encoding="utf-8"))
    assert [one["title"] for one in exported["conversations"]] == ["Thank you", "Greeting"]
    page.on("dialog", lambda dialog: dialog.accept())
    page.click("text=Delete all")
    page.wait_for_selector(".list-empty")
    page.set_input_files(".file-button input", file)
    page.wait_for_selector(".entry:has-text('Greeting')")
    page.keyboard.press("Escape")
    page.click(".entry-title:has-text('Greeting')")
    page.wait_for_selector(".bubble:has-text('Hello')")
    assert english.answer() == HELLO_EN
    page.reload()
    page.wait_for_selector(".entry:has-text('Greeting')")
    page.hover(".entry:has-text('Greeting')")
    page.click(".entry:has-text('Greeting') [aria-label='Delete conversation']")
    page.wait_for_selector(".entry:has-text('Greeting')", state="detached")
    page.reload()
    page.wait_for_selector(".entry")
    assert english.texts(".entry-title") == ["Thank you"]


def test_another_tab_sees_it_and_a_full_disk_is_told(english: Visitor) -> None:
    page = english.page
    other = english.open()
    english.ask("Hello")
    other.wait_for_selector(".entry:has-text('Hello')")
    put = "IDBObjectStore.prototype.put"
    page.evaluate(f"window.kept = {put}; {put} = () => {{ throw new DOMException('', 'QuotaExceededError') }}; 0")
    assert english.ask("Thank you") == "You are welcome!"
    page.wait_for_selector(".banner:has-text('storage is full')")
    page.evaluate(f"{put} = window.kept; 0")
    english.ask("Goodbye")
    page.wait_for_selector(".banner", state="detached")
    other.click(".entry-title")
    other.wait_for_selector(".bubble:has-text('Goodbye')")


def test_a_file_that_is_no_conversation_is_refused(english: Visitor, tmp_path: Path) -> None:
    page = english.page
    page.click(".settings-button")
    for index, text in enumerate(('{"a": 1', "[1]", '{"format": "tpudeploy-conversations", "conversations": [{}]}')):
        file = tmp_path / f"wrong{index}.json"
        file.write_text(text, encoding="utf-8")
        page.set_input_files(".file-button input", file)
        page.wait_for_selector(f".notice:has-text('wrong{index}.json')")
    assert page.locator(".entry").count() == 0


def test_chinese_and_dark_by_the_system_and_by_choice(browser: Browser, server: Server) -> None:
    visitor = Visitor(browser, server.url, locale="zh-CN", color_scheme="dark")
    page = visitor.page
    background = "getComputedStyle(document.body).backgroundColor"
    assert page.get_attribute(".composer-text", "placeholder") == "输入消息"
    assert page.get_attribute("html", "lang") == "zh-Hans"
    dark = page.evaluate(background)
    assert visitor.ask("你好") == HELLO_ZH
    page.click(".theme-button")
    visitor.wait_for(f"{background} !== '{dark}'")
    page.click(".language-button")
    page.wait_for_selector("[placeholder='Write a message']")
    page.reload()
    page.wait_for_selector("[placeholder='Write a message']")
    assert page.evaluate(background) != dark
    page.click(".settings-button")
    page.click(".choices button:text('System')")
    visitor.wait_for(f"{background} === '{dark}'")
    visitor.close()


def test_settings_reach_the_server(english: Visitor) -> None:
    page = english.page
    sent: list[dict[str, object]] = []
    page.on("request", lambda request: sent.append(request.post_data_json) if request.method == "POST" else None)
    page.click(".settings-button")
    page.fill(".system-prompt", "Answer in one word.")
    page.fill("[name=max_tokens]", "5")
    page.fill("[name=temperature]", "9")
    page.wait_for_selector(".field-error:text('from 0 to 2')")
    page.fill("[name=temperature]", "0")
    page.fill("[name=seed]", "7")
    page.click("text=Use for new chats")
    page.wait_for_selector("dialog .notice")
    page.keyboard.press("Escape")
    english.ask("Hello")
    assert "The limit of tokens was reached" in page.inner_text(LAST)
    english.start_new()
    english.ask("What is the capital of France?")
    assert len(sent) == 2
    assert sent[0]["messages"] == [
        {"role": "system", "content": "Answer in one word."},
        {"role": "user", "content": "Hello"},
    ]
    for body in sent:
        assert body["stream_options"] == {"include_usage": True}
        assert {name: body[name] for name in ("temperature", "max_tokens", "seed")} == {
            "temperature": 0,
            "max_tokens": 5,
            "seed": 7,
        }
        assert "top_p" not in body, "what the user left empty is the server's business"


def test_a_tool_call_its_result_by_hand_and_the_answer(english: Visitor) -> None:
    page = english.page
    page.click(".settings-button")
    page.click(".tools-field summary")
    page.fill(".tools-text", "[{]")
    page.wait_for_selector(".tools-field .field-error:text('not JSON')")
    page.click("text=Insert an example")
    page.keyboard.press("Escape")
    page.fill(".composer-text", "What is the weather in London today?")
    page.press(".composer-text", "Enter")
    page.wait_for_selector(".tool-result")
    assert page.inner_text(".tool-name") == "get_weather"
    assert json.loads(page.inner_text(".tool pre")) == {"city": "London", "days": 1}
    page.click(".tool summary")
    page.wait_for_selector(".tool-result", state="hidden")
    page.click(".tool summary")
    page.fill(".tool-result textarea", '{"city": "London", "weather": "rain", "temperature": 15}')
    page.click(".tool-result button")
    page.wait_for_selector(".message.assistant:nth-child(3)")
    assert english.answer() == "London today: rain, 15 degrees."
    page.click(".tool-bar :text('Edit')")
    page.fill(".tool-result textarea", '{"city": "London", "weather": "sunny", "temperature": 21}')
    page.click(".tool-result button")
    page.wait_for_selector(".tool-bar .versions:has-text('2/2')")
    assert english.answer() == "London today: sunny, 21 degrees."
    page.reload()
    page.wait_for_selector(".tool")
    assert page.locator(".tool pre").count() == 2


def test_refusals_are_told_where_they_happen(english: Visitor) -> None:
    page = english.page
    replies: list[dict[str, object]] = [
        {"status": 429, "headers": {"Retry-After": "2"}, "json": {"error": {"message": "Queue full."}}},
        {"status": 400, "json": {"error": {"message": "Too long.", "code": "context_length_exceeded"}}},
        {"status": 500, "json": {"error": {"message": "The device failed."}}},
        {},
    ]

    def refuse(route: Route) -> None:
        if not replies:
            route.continue_()
        elif reply := replies.pop(0):
            route.fulfill(**reply)  # type: ignore[arg-type]
        else:
            route.abort("internetdisconnected")

    page.route("**/v1/chat/completions", refuse)
    page.fill(".composer-text", "Hello")
    page.press(".composer-text", "Enter")
    page.wait_for_selector(".countdown:text('Trying again in')")
    page.wait_for_selector(".error:has-text('longer than the model can read')")
    page.click(".error :text('Try again')")
    page.wait_for_selector(".error:has-text('The device failed. (500)')")
    page.click(".error :text('Try again')")
    page.wait_for_selector(".error:has-text('cannot be reached')")
    page.click(".error :text('Try again')")
    page.wait_for_selector(".prose:has-text('Hello!')")
    assert english.answer() == HELLO_EN
    assert page.locator(".message").count() == 2, "failed attempts with nothing in them leave nothing behind"
    english.complaints[:] = [text for text in english.complaints if "Failed to load resource" not in text]


def test_a_server_with_a_key_that_dies_in_the_middle(browser: Browser, home: Path, server: Server) -> None:
    with Server(home, home / "locked.log", "--port", "0", "--api-key", KEY) as locked:
        visitor = Visitor(browser, locked.url, locale="en-GB")
        page = visitor.page
        page.wait_for_selector(".error:has-text('needs an API key')")
        page.fill(".composer-text", "Hello")
        page.press(".composer-text", "Enter")
        page.wait_for_selector(".message .error .key-form")
        page.fill(".message [name=key]", "wrong-key-wrong-key-wrong")
        page.keyboard.press("Enter")
        page.wait_for_selector(".message .error-detail:has-text('Incorrect API key')")
        page.fill(".message [name=key]", KEY)
        page.keyboard.press("Enter")
        page.wait_for_selector(f"{LAST} .prose:has-text('Hello!')")
        assert visitor.answer() == HELLO_EN
        page.reload()
        page.wait_for_selector(".bubble")
        assert visitor.ask("Thank you") == "You are welcome!"
        assert page.evaluate("localStorage.getItem('tpudeploy.api-key')") is None, "the key outlives the tab"
        other = visitor.open()
        other.wait_for_selector(".error:has-text('needs an API key')")

        page.fill(".composer-text", LONG)
        with locked.slowly():
            page.press(".composer-text", "Enter")
            page.wait_for_selector(f"{LAST}[aria-busy=true] .prose :text('C++')")
            locked.kill()
        page.wait_for_selector(f"{LAST} .error:has-text('connection was lost')")
        assert "C++" in visitor.answer()
        page.fill(".composer-text", "Hello")
        page.press(".composer-text", "Enter")
        page.wait_for_selector(f"{LAST} .error:has-text('cannot be reached')")
    visitor.close("401", "ERR_CONNECTION", "ERR_INCOMPLETE", "ERR_SOCKET", "ERR_NETWORK")


def test_a_reload_in_the_middle_keeps_what_came(english: Visitor, server: Server) -> None:
    page = english.page
    page.fill(".composer-text", LONG)
    with server.slowly():
        page.press(".composer-text", "Enter")
        page.wait_for_selector(f"{LAST}[aria-busy=true] .code")
        page.reload()
    page.wait_for_selector(f"{LAST} .error:has-text('closed in the middle')")
    assert english.texts(".bubble") == [LONG]


def test_a_phone(browser: Browser, server: Server, tmp_path: Path) -> None:
    visitor = Visitor(browser, server.url, width=360, locale="zh-CN", has_touch=True, is_mobile=True)
    page = visitor.page
    widths = "[document.documentElement, document.querySelector('.scroll')].map((e) => e.scrollWidth)"
    file = tmp_path / "wide.json"
    file.write_text(json.dumps([{"role": "user", "content": "w" * 300}, {"role": "assistant", "content": WIDE}]))
    assert visitor.ask("你好") == HELLO_ZH
    assert page.evaluate(widths) == [360, 360]
    page.click(".menu-button")
    page.click(".entry-title")
    page.wait_for_selector(".with-menu", state="detached")
    page.click(".settings-button")
    page.wait_for_selector("dialog[open]")
    assert page.evaluate("document.querySelector('dialog').scrollWidth") <= 360
    page.set_input_files(".file-button input", file)
    page.wait_for_selector("table", state="attached")
    page.click("dialog [aria-label='关闭']")
    assert page.evaluate(widths) == [360, 360], "a wide table or line widens the page"
    visitor.close()


WIDE = "\n".join(
    (
        f"|{' a-rather-long-heading |' * 9}",
        f"|{'---|' * 9}",
        f"|{' cell |' * 9}",
        "",
        "```",
        "x" * 400,
        "```",
        "u" * 400,
    )
)
