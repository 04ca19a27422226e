/** Code blocks: a bar with the language and a copy button, colours where the language is known. */
import hljs from "../vendor/highlight/highlight.min.js";
import DOMPurify from "../vendor/dompurify/purify.es.mjs";
import { t } from "./i18n.js";

/** Past this many letters, colours would cost more than they are worth. */
const COLOURED_LETTERS = 60000;

/** Give a `pre > code` element its bar and colours. Its language is in a class that Markdown wrote: language-NAME. */
export function dressCode(code) {
  const name = /(?:^| )language-([^\s]+)/.exec(code.className)?.[1] ?? "";
  code.removeAttribute("class");
  colour(code, name);
  const pre = code.parentElement;
  pre.tabIndex = 0;
  const box = element("div", "code");
  pre.replaceWith(box);
  box.append(bar(name), pre);
}

function colour(code, name) {
  if (!hljs.getLanguage(name) || code.textContent.length > COLOURED_LETTERS) return;
  const html = hljs.highlight(code.textContent, { language: name, ignoreIllegals: true }).value;
  const options = { ALLOWED_TAGS: ["span"], ALLOWED_ATTR: ["class"], RETURN_DOM_FRAGMENT: true };
  code.replaceChildren(DOMPurify.sanitize(html, options));
}

function bar(name) {
  const label = element("span", "code-language");
  label.textContent = name || t("code");
  const button = element("button", "code-copy");
  button.type = "button";
  button.textContent = t("copy");
  button.setAttribute("aria-label", t("copyCode"));
  const row = element("div", "code-bar");
  row.append(label, button);
  return row;
}

function element(name, className) {
  const made = document.createElement(name);
  made.className = className;
  return made;
}
