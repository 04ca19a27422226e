/**
 * Markdown of a model, which may have been told to attack the page, as safe DOM.
 *
 * Tags other than a few of text are shown as the text they are; DOMPurify then decides what may stay. Images become
 * links: the page loads nothing from other hosts, and its Content-Security-Policy would not allow it.
 */
import { Marked } from "../vendor/marked/marked.esm.js";
import DOMPurify from "../vendor/dompurify/purify.es.mjs";
import { dressCode } from "./code.js";

const TEXT_TAG = /^<\/?(b|i|u|s|em|strong|del|ins|mark|sub|sup|kbd|br|small)\s*\/?>$/i;
const PURIFY = {
  RETURN_DOM_FRAGMENT: true,
  ALLOWED_TAGS: (
    "a b blockquote br code del em h1 h2 h3 h4 h5 h6 hr i ins kbd li mark ol p pre s small strong sub sup " +
    "table tbody td th thead tr u ul"
  ).split(" "),
  ALLOWED_ATTR: ["href", "title", "align", "start", "class"],
  ADD_URI_SAFE_ATTR: ["align", "start"],
  ALLOWED_URI_REGEXP: /^(?:https?:|mailto:)/i,
  ALLOW_DATA_ATTR: false,
  ALLOW_ARIA_ATTR: false,
};

const marked = new Marked({
  gfm: true,
  breaks: true,
  // No blocks of HTML: a line that begins with a tag is a paragraph like any other, with its Markdown.
  tokenizer: { html: () => undefined },
  renderer: {
    html({ text }) {
      return text
        .split(/(<[^<>]*>)/)
        .map((part) => (TEXT_TAG.test(part) ? part : escaped(part)))
        .join("");
    },
    image({ href, text }) {
      return `<a href="${escaped(href)}">${escaped(text || href)}</a>`;
    },
    checkbox({ checked }) {
      return checked ? "☑ " : "☐ ";
    },
  },
});

function escaped(text) {
  return text.replace(/[&<>"']/g, (letter) => `&#${letter.charCodeAt(0)};`);
}

/** Top-level blocks of a text: [{raw, ...}]; their `raw` parts make up the text. */
export function blocks(text) {
  return marked.lexer(text);
}

/** A text as a DocumentFragment. */
export function rendered(text) {
  const fragment = DOMPurify.sanitize(marked.parse(text), PURIFY);
  for (const link of fragment.querySelectorAll("a")) dressLink(link);
  for (const table of fragment.querySelectorAll("table")) wrapTable(table);
  for (const code of fragment.querySelectorAll("pre > code")) dressCode(code);
  // The one class that a model's text may bring is a code block's language, which dressCode has read by now.
  return fragment;
}

function dressLink(link) {
  if (!link.hasAttribute("href")) {
    link.replaceWith(...link.childNodes);
    return;
  }
  link.target = "_blank";
  link.rel = "noopener noreferrer nofollow";
}

/** Wide tables scroll by themselves, so that a phone's page doesn't. */
function wrapTable(table) {
  const box = document.createElement("div");
  box.className = "table";
  box.tabIndex = 0;
  table.replaceWith(box);
  box.append(table);
}
