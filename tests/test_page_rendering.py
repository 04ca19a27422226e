"""What the page makes of a model's text: Markdown, the same while it grows as when it is complete, and never code."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
from starlette.applications import Starlette

from page_support import Visitor, chromium
from tpudeploy.server.listening import listen, url_of
from tpudeploy.server.page_routes import page_routes

if TYPE_CHECKING:
    from playwright.sync_api import Page

uvicorn = pytest.importorskip("uvicorn")

TEXTS = (
    "One paragraph.\nA second line.\n\nAnother, with `code` and **bold**.",
    "# Title\n\nText under it\n===\n\n- a\n- b\n\n  still b\n\n1. one\n2. two\n   - nested\n\nEnd.",
    "| a | b |\n|---|--:|\n| 1 | 2 |\n| 三 | 四 |\n\nAfter the table.\n\n> quoted\n> more\n\n---\n\nEnd",
    "Code:\n\n```python\ndef f(x):\n    return x < 1 and '''\n```\n\n~~~\nplain <b>\n\nblank line\n~~~\nEnd",
    "Unclosed:\n\n```cpp\nint main() {\n\n\n  return 0;\n",
    "Windows\r\nlines\r\n\r\n- [ ] open\r\n- [x] done\r\n\r\nand &amp; <i>tags</i> 2 < 3",
    '中文段落，第一行。\n第二行。\n\n* 列表一\n* 列表二\n\n```json\n{"键": [1, 2]}\n```\n结尾😀。',
)
GROW = """async ([module, text, cuts]) => {
  const { AnswerBody } = await import(module);
  const frame = () => new Promise((resolve) => setTimeout(() => requestAnimationFrame(resolve), 4));
  const body = new AnswerBody();
  for (const cut of cuts) { body.grow(text.slice(0, cut)); await frame(); }
  body.grow(text);
  while (body.pending) await frame();
  const grown = body.html();
  body.finish(text);
  const whole = new AnswerBody();
  whole.finish(text);
  return [grown, body.html(), whole.html()];
}"""
ATTACKS = (
    "<script>window.hit = 1</script>",
    "<img src=x onerror='window.hit = 2'>",
    "<svg onload='window.hit = 3'><animate onbegin='window.hit = 3'></svg>",
    "[click](javascript:window.hit=4) [two](JaVaScRiPt&colon;window.hit=4) [three](data:text/html,<b>x</b>)",
    '![pixel](https://other.example/pixel.png) ![x](x" onerror="window.hit=5)',
    "<iframe src='https://other.example/'></iframe><object data=x></object><embed src=x>",
    "<form action=https://other.example><input name=a><button formaction=javascript:alert(1)>x</button></form>",
    "<a href='javascript:window.hit=6' onclick='window.hit=6' style='position:fixed'>x</a>",
    "<style>body{background:url(https://other.example/x)}</style><link rel=stylesheet href=https://other.example/x.css>",
    "<b onclick='window.hit=7' id=app class=composer name=body>x</b><base href=https://other.example/>",
    "<math><mi//xlink:href='data:x,<script>window.hit=8</script>'></math><!--<img src=x onerror=window.hit=8>-->",
    "```html\" onmouseover=\"window.hit=9\n<img src=x onerror='window.hit = 9'>\n```",
    "```<img/src=x/onerror=window.hit=10>\nx\n```",
    "| <img src=x onerror=window.hit=11> | [x](vbscript:x) |\n|---|---|\n| <script>window.hit=11</script> | x |",
    "<details open ontoggle=window.hit=12>x</details><video src=https://other.example/v autoplay></video>",
    "<noscript><p title='</noscript><img src=x onerror=window.hit=13>'>",
    '[a]: javascript:window.hit=14\n\n[a] and <javascript:window.hit=14> and <https://ok.example/?q="onclick=x>',
)
EXAMINE = """async ([module, texts]) => {
  const { AnswerBody } = await import(module);
  const found = [];
  for (const text of texts) {
    const body = new AnswerBody();
    document.body.append(body.element);
    body.grow(text);
    await new Promise((resolve) => setTimeout(() => requestAnimationFrame(() => setTimeout(resolve, 20)), 20));
    body.finish(text);
    for (const element of body.element.querySelectorAll('*')) {
      for (const { name, value } of element.attributes) found.push([element.localName, name, value]);
      // What a link to another host does is its user's business; what its handlers do is ours.
      if (!(element.href ?? '').startsWith('http')) element.click();
    }
    body.element.remove();
  }
  return [window.hit ?? null, found];
}"""
ATTRIBUTES = {
    "a": {"href", "rel", "target", "title"},
    "button": {"type", "class", "aria-label"},
    "div": {"class", "tabindex"},
    "pre": {"tabindex"},
    "span": {"class"},
    "td": {"align"},
    "th": {"align"},
    "ol": {"start"},
}


@pytest.fixture(scope="module")
def visitor() -> Iterator[Visitor]:
    """The page without a model behind it."""
    with chromium() as browser, _served() as url:
        found = Visitor(browser, url, locale="en-GB")
        yield found
        found.close("404")


class _served:  # noqa: N801 - used like a function
    """The page's routes and nothing else, in a thread."""

    def __enter__(self) -> str:
        self._listener = listen("127.0.0.1", 0)
        config = uvicorn.Config(Starlette(routes=page_routes()), http="h11", ws="none", lifespan="off", log_config=None)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._listener]})
        self._thread.start()
        return url_of(self._listener)

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join()
        self._listener.close()


def module(page: Page, name: str) -> str:
    """The address of one of the page's modules."""
    main: str = page.evaluate("document.querySelector('script[type=module]').src")
    return main.replace("main.js", name)


@pytest.mark.parametrize("text", TEXTS)
def test_a_growing_answer_shows_what_the_complete_one_does(visitor: Visitor, text: str) -> None:
    for step in (1, 7):
        cuts = list(range(1, len(text), step))
        grown, finished, whole = visitor.page.evaluate(GROW, [module(visitor.page, "answer_body.js"), text, cuts])
        assert grown == whole
        assert finished == whole


def test_what_is_settled_is_not_drawn_again(visitor: Visitor) -> None:
    """A reader's selection in an earlier paragraph survives the rest of the answer."""
    kept = """async ([module]) => {
      const { AnswerBody } = await import(module);
      const body = new AnswerBody();
      const text = 'First paragraph.\\n\\nSecond';
      const grow = async (more) => {
        body.grow(text + more);
        while (body.pending) await new Promise(requestAnimationFrame);
      };
      await grow('');
      const first = body.element.firstElementChild;
      for (let n = 1; n < 9; n++) await grow(' grows\\n\\nand'.repeat(n));
      body.finish(text + ' grows\\n\\nand'.repeat(8));
      return [first === body.element.firstElementChild, first.textContent];
    }"""
    assert visitor.page.evaluate(kept, [module(visitor.page, "answer_body.js")]) == [True, "First paragraph."]


def test_nothing_in_an_answer_becomes_code(visitor: Visitor) -> None:
    asked = len(visitor.requests)
    hit, found = visitor.page.evaluate(EXAMINE, [module(visitor.page, "answer_body.js"), list(ATTACKS)])
    assert hit is None
    found_attributes: list[tuple[str, str, Any]] = [tuple(entry) for entry in found]
    assert found_attributes, "nothing was examined"
    for element, name, value in found_attributes:
        assert name in ATTRIBUTES.get(element, set()), (element, name, value)
        if name == "href":
            assert value.startswith(("https://", "http://", "mailto:"))
        if name == "rel":
            assert "noopener" in value
    assert [url for url in visitor.requests[asked:] if not url.endswith(".js")] == []


def test_the_policy_stops_code_that_got_in_all_the_same(visitor: Visitor) -> None:
    """Trusted Types: text that no library has looked at cannot become HTML, whoever writes such a line one day."""
    attempt = (
        "() => { try { document.body.innerHTML = '<img src=x>'; return null } catch (error) { return error.name } }"
    )
    assert visitor.page.evaluate(attempt) == "TypeError"
    visitor.complaints[:] = [text for text in visitor.complaints if "TrustedHTML" not in text]
