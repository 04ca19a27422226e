/** Asking, answering again, editing, results of tools: what makes the model speak, and when it fails, speak again. */
import { Answering } from "./answering.js";
import { bodyOf } from "./answer_body.js";
import { SETTINGS, addNode, apiMessages, openCalls, parentOf, path, removeNode } from "./conversation.js";
import { toolsOf } from "./tools.js";
import { t } from "./i18n.js";

/** While an answer grows, it is saved this often, in milliseconds: a reload keeps what was there. */
const SAVE_EVERY = 1000;
/** So much of an answer is told to those who listen; the rest they can go to. */
const SPOKEN_LETTERS = 500;
/** How often the page asks again by itself when the server is busy. */
const RETRIES = 5;

export class Answers {
  #running = new Map();
  #retries = new Map();
  #clock = null;

  constructor(app) {
    this.app = app;
  }

  running(conversation) {
    return this.#running.get(conversation.id) ?? null;
  }

  /** The time at which a message is sent again by itself, in milliseconds since 1970; null if it isn't. */
  retryAt(node) {
    return this.#retries.get(node.id)?.at ?? null;
  }

  ask(text) {
    const { conversations } = this.app;
    const last = conversations.path.at(-1);
    if (last) this.giveUp(last);
    const node = addNode(conversations.current, last, { role: "user", content: text });
    this.#answer(conversations.current, node);
  }

  stop(conversation = this.app.current) {
    this.running(conversation)?.stop();
  }

  /** Answer once more. An answer with nothing in it is replaced, any other stays as a version. */
  again(node) {
    const conversation = this.app.current;
    if (this.running(conversation)) return;
    this.giveUp(node);
    const parent = parentOf(conversation, node);
    if (!node.content && !node.toolCalls?.length) removeNode(conversation, node);
    this.#answer(conversation, parent);
  }

  /** Send another text in place of a user's message. */
  edit(node, text) {
    const conversation = this.app.current;
    if (this.running(conversation)) return;
    this.app.editing = null;
    const changed = addNode(conversation, parentOf(conversation, node), { role: "user", content: text.trim() });
    this.#answer(conversation, changed);
  }

  /** Answer a message that has no answer. */
  answer(node) {
    if (!this.running(this.app.current)) this.#answer(this.app.current, node);
  }

  /** Take a tool's result, or a better one; once every call of the answer has one, the model goes on. */
  giveResult(node, call, text, corrected = null) {
    const conversation = this.app.current;
    const parent = corrected ? parentOf(conversation, corrected) : this.app.conversations.path.at(-1);
    const fields = { role: "tool", callId: call.id, name: call.name, content: text };
    const added = addNode(conversation, parent, fields);
    this.app.toolDrafts.delete(call.id);
    this.app.editing = null;
    if (openCalls(conversation, node).length) {
      this.app.conversations.save(conversation);
      this.app.changed();
    } else {
      this.#answer(conversation, added);
    }
  }

  /** Don't send a message again by itself. */
  giveUp(node) {
    clearTimeout(this.#retries.get(node.id)?.timer);
    this.#retries.delete(node.id);
    this.app.changed();
  }

  #answer(conversation, last, retries = RETRIES) {
    const { app } = this;
    const tools = toolsOf(conversation.tools);
    const body = request(conversation, last, tools.value ?? []);
    const node = addNode(conversation, last, { role: "assistant", status: "streaming" });
    const prepare = async () => {
      node.model = body.model = await app.needModel();
      return { body, key: app.key };
    };
    let saved = performance.now();
    let begun = false;
    const answering = new Answering(node, (what) => {
      if (what === "end") return this.#ended(conversation, node, retries);
      bodyOf(node).grow(node.content);
      // The waiting line goes with the first token, and a call is drawn by the page; text draws itself.
      if (what === "calls" || !begun) app.changed();
      begun = true;
      if (performance.now() - saved > SAVE_EVERY) {
        saved = performance.now();
        app.conversations.save(conversation);
      }
      return undefined;
    });
    this.#running.set(conversation.id, answering);
    app.conversations.keep(conversation);
    app.conversations.save(conversation);
    app.announce(t("answering"));
    app.changed(() => app.followEnd?.());
    this.#tick();
    answering.run(prepare);
  }

  #ended(conversation, node, retries) {
    const { app } = this;
    this.#running.delete(conversation.id);
    bodyOf(node).finish(node.content);
    conversation.updated = Date.now();
    app.conversations.save(conversation);
    if (node.error?.kind === "busy" && retries > 0) this.#retryLater(conversation, node, retries - 1);
    // Once, when it is complete: a reader of the screen would choke on every token.
    const text = bodyOf(node).element.textContent.slice(0, SPOKEN_LETTERS);
    app.announce(`${node.error ? t("answerFailed") : t("answerReady")} ${text}`);
  }

  #retryLater(conversation, node, retries) {
    const seconds = node.error.retryAfter ?? 5;
    const timer = setTimeout(() => {
      this.#retries.delete(node.id);
      // Whoever has gone on in the meantime wants no second answer to this.
      if (this.running(conversation) || path(conversation).at(-1) !== node) return;
      const parent = parentOf(conversation, node);
      if (!node.content && !node.toolCalls?.length) removeNode(conversation, node);
      this.#answer(conversation, parent, retries);
    }, seconds * 1000);
    this.#retries.set(node.id, { at: Date.now() + seconds * 1000, timer });
    this.#tick();
  }

  /** Draw once a second while something counts seconds. */
  #tick() {
    clearTimeout(this.#clock);
    if (!this.#running.size && !this.#retries.size) return;
    this.#clock = setTimeout(() => {
      this.app.changed();
      this.#tick();
    }, 1000);
  }
}

/** The body of a chat request. Settings that the user left empty are the server's business. */
function request(conversation, last, tools) {
  const body = { messages: apiMessages(conversation, last), stream: true, stream_options: { include_usage: true } };
  for (const name of SETTINGS) {
    const value = conversation.settings[name];
    if (value !== null && value !== undefined) body[name] = value;
  }
  if (tools.length) {
    body.tools = tools;
    body.tool_choice = conversation.toolChoice;
  }
  return body;
}
