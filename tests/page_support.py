"""The web page in a real Chromium, against the real server: ``tpudeploy serve`` with the demo model on the CPU."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest
from typing_extensions import Self

from cli_support import PROGRAM, environment

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

# No update, no telemetry, no sandbox (containers run tests as root), no graphics card.
CHROMIUM_ARGUMENTS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_URL = re.compile(r"http://127\.0\.0\.1:\d+")


def find_chromium() -> str:
    """The browser to test with, from TPUDEPLOY_TEST_CHROMIUM or PATH; skips without one."""
    named = os.environ.get("TPUDEPLOY_TEST_CHROMIUM")
    found = named or next(filter(None, map(shutil.which, _NAMES)), None)
    if not found:
        pytest.skip("no Chromium: install one, or name it in TPUDEPLOY_TEST_CHROMIUM")
    return found


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser with a profile of its own."""
    path = find_chromium()
    pytest.importorskip("playwright", reason="Playwright is not installed: pip install 'tpudeploy[dev]'")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(CHROMIUM_ARGUMENTS))
        yield browser
        browser.close()


class Server:
    """``tpudeploy serve`` in a process of its own, on a port that the system chooses or the test gives."""

    def __init__(self, home: Path, log: Path, *options: str) -> None:
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [*PROGRAM, "serve", "chatglm3:demo", "--quant", "int8", "--backend", "cpu", *options],
                stdout=subprocess.PIPE,
                stderr=output,
                env=environment(home),
            )
        assert self._process.stdout is not None
        for line in self._process.stdout:
            found = _URL.search(line.decode())
            if found:
                self.url = found.group()
                return
        pytest.fail(f"the server ended with {self._process.wait()}: {log.read_text(encoding='utf-8')[-2000:]}")

    @property
    def port(self) -> int:
        """Where it listens."""
        return urlsplit(self.url).port or 0

    def kill(self) -> None:
        """End it in the middle of whatever it does."""
        self._process.kill()
        self._process.wait()

    @contextmanager
    def slowly(self) -> Iterator[None]:
        """Let it run a tenth of the time: an answer takes long enough to do something in the middle of it."""
        ended = threading.Event()

        def pace() -> None:
            while not ended.wait(0.01):
                self._process.send_signal(signal.SIGSTOP)
                ended.wait(0.09)
                self._process.send_signal(signal.SIGCONT)

        thread = threading.Thread(target=pace)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # A second signal, so that an answer that a failed test left behind delays nothing.
        for _ in range(2):
            self._process.terminate()
        self._process.communicate(timeout=60)


class Visitor:
    """A page in a fresh profile, and everything that it asked for and complained about."""

    def __init__(self, browser: Browser, url: str, *, width: int = 1280, **options: object) -> None:
        self.context = browser.new_context(viewport={"width": width, "height": 800}, **options)  # type: ignore[arg-type]
        self.context.set_default_timeout(60_000)
        self.url = url
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.page = self.open()

    def open(self) -> Page:
        """One more tab of the same profile."""
        page = self.context.new_page()
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("console", lambda message: self._complain(message.type, message.text))
        page.on("pageerror", lambda error: self._complain("error", str(error)))
        page.goto(self.url)
        page.wait_for_selector(".composer-text")
        return page

    def _complain(self, kind: str, text: str) -> None:
        if kind in ("error", "warning"):
            self.complaints.append(text)

    def ask(self, text: str) -> str:
        """Send a message, wait for the whole answer, return its text."""
        before = self.page.locator(".message").count()
        self.page.fill(".composer-text", text)
        self.page.press(".composer-text", "Enter")
        self.page.wait_for_selector(f".message:nth-child({before + 2})")
        return self.answer()

    def start_new(self) -> None:
        """Begin another conversation with the keyboard."""
        self.page.keyboard.press("Control+k")
        self.page.wait_for_selector(".welcome")

    def answer(self) -> str:
        """The last answer, once it is complete."""
        self.page.wait_for_selector(".message.assistant:last-child[aria-busy=false]")
        return self.page.inner_text(".message.assistant:last-child .prose").strip()

    def texts(self, selector: str) -> Sequence[str]:
        """The texts of all elements."""
        return self.page.locator(selector).all_inner_texts()

    def wait_for(self, expression: str) -> None:
        """Wait until JavaScript finds this true. Not wait_for_function: the page's policy forbids its eval."""
        for _ in range(1200):
            if self.page.evaluate(expression):
                return
            self.page.wait_for_timeout(50)
        pytest.fail(f"never true: {expression}")

    def close(self, *expected: str) -> None:
        """Check that nothing was asked of another host, and that nothing went wrong but what the test expected."""
        self.context.close()
        own = f"{self.url}/"
        others = [url for url in self.requests if not url.startswith((own, "blob:", "data:"))]
        assert others == []
        assert [text for text in self.complaints if not any(sign in text for sign in expected)] == []
