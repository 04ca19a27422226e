/**
 * The text of one answer on the page. While it grows, only its last block is parsed again: blocks before it are
 * settled, and their elements (with whatever the reader has selected in them) stay as they are.
 */
import { blocks, rendered } from "./markdown.js";

/** Parsing takes at most this share of the time, however long the last block (a long listing, say) has become. */
const SHARE = 0.2;

export class AnswerBody {
  #text = "";
  #settled = 0;
  #tail = document.createElement("div");
  #timer = null;
  #cost = 0;
  #lastDraw = -Infinity;

  constructor() {
    this.element = document.createElement("div");
    this.element.className = "prose";
    this.#tail.className = "tail";
    this.element.append(this.#tail);
  }

  /** Show a text that goes on growing: a later call's text begins with this one. */
  grow(text) {
    this.#text = normal(text);
    this.element.classList.add("growing");
    if (this.#timer !== null) return;
    const wait = Math.max(0, this.#lastDraw + this.#cost / SHARE - performance.now());
    this.#timer = setTimeout(() => requestAnimationFrame(() => this.#draw()), wait);
  }

  /** Whether something that grow was given is not shown yet. */
  get pending() {
    return this.#timer !== null && this.#timer !== -1;
  }

  /** Show a text that is complete. */
  finish(text) {
    clearTimeout(this.#timer);
    this.#timer = -1;
    this.element.classList.remove("growing");
    const whole = document.createElement("div");
    whole.append(rendered(normal(text)));
    // Only what comes later in a text can change an earlier block (a link's address): most texts are right already.
    if (whole.innerHTML !== this.html()) this.element.replaceChildren(...whole.childNodes);
  }

  /** What is shown, without the boxes of growing. */
  html() {
    return Array.from(this.element.childNodes, (node) =>
      node === this.#tail ? this.#tail.innerHTML : (node.outerHTML ?? node.data),
    ).join("");
  }

  #draw() {
    if (this.#timer === -1) return;
    this.#timer = null;
    const start = performance.now();
    const found = blocks(this.#text.slice(this.#settled));
    // A last block that is only space belongs to the one before it, which may go on.
    const last = found.findLastIndex((block) => block.type !== "space");
    const settled = found.slice(0, Math.max(last, 0)).map((block) => block.raw).join("");
    if (settled) {
      this.#tail.before(rendered(settled));
      this.#settled += settled.length;
    }
    this.#tail.replaceChildren(rendered(this.#text.slice(this.#settled)));
    this.#lastDraw = performance.now();
    this.#cost = this.#lastDraw - start;
  }
}

/** The line ends that the parser would make anyway, so that lengths of blocks are lengths of the text. */
function normal(text) {
  return text.replace(/\r\n|\r/g, "\n");
}

const bodies = new WeakMap();

/** The body of a message (a node of a conversation): made when it is first shown. */
export function bodyOf(node) {
  let body = bodies.get(node);
  if (!body) {
    body = new AnswerBody();
    bodies.set(node, body);
    if (node.status === "streaming") body.grow(node.content);
    else body.finish(node.content);
  }
  return body;
}

/** Make all bodies anew, in another language. */
export function forgetBodies(nodes) {
  for (const node of nodes) bodies.delete(node);
}
