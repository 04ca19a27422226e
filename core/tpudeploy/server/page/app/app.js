/** The page's state and what a user can do with it. Views read it; after a change it has itself drawn again. */
import { ApiError, listModels } from "./api.js";
import { Conversations } from "./conversations.js";
import { forgetBodies } from "./answer_body.js";
import { browserLanguage, setLanguage, t } from "./i18n.js";
import { Preferences, apiKey, keepApiKey } from "./preferences.js";
import { Answers } from "./answers.js";

export class App {
  constructor(draw) {
    this.draw = draw;
    this.preferences = new Preferences();
    this.conversations = new Conversations(this);
    this.answers = new Answers(this);
    this.models = [];
    this.serverError = null;
    this.search = "";
    this.renaming = null;
    this.editing = null;
    this.notice = null;
    this.menuOpen = false;
    this.drafts = new Map();
    this.toolDrafts = new Map();
    this.status = "";
    this.#frame = null;
    this.afterwards = [];
    setLanguage(this.language);
  }

  #frame;
  #noticeTimer;

  async start() {
    this.changed();
    await this.conversations.load();
    await this.findModels();
  }

  /** Have the page drawn in the next frame; `then` runs once it is drawn. */
  changed(then = null) {
    if (then) this.afterwards.push(then);
    this.#frame ??= requestAnimationFrame(() => {
      this.#frame = null;
      this.draw(this);
      for (const call of this.afterwards.splice(0)) call();
    });
  }

  get current() {
    return this.conversations.current;
  }

  get language() {
    return this.preferences.language ?? browserLanguage();
  }

  get key() {
    return apiKey();
  }

  get model() {
    const chosen = this.current.model;
    return this.models.includes(chosen) ? chosen : (this.models[0] ?? chosen);
  }

  /** The model to ask; where the server's are not known yet, they are asked for. Throws ApiError. */
  async needModel() {
    if (!this.models.length) {
      this.models = await listModels(this.key);
      this.serverError = null;
    }
    if (!this.model) throw new ApiError("server", t("noModel"));
    return this.model;
  }

  async findModels() {
    try {
      this.models = await listModels(this.key);
      this.serverError = null;
    } catch (error) {
      const { kind = "server", message, status = null, code = null } = error;
      this.serverError = { kind, message, status, code };
    }
    this.changed();
  }

  /** Use another API key, and take up what waits for it. */
  async useKey(key, remember) {
    keepApiKey(key.trim(), remember);
    await this.findModels();
    const last = this.conversations.path.at(-1);
    if (last?.error?.kind !== "unauthorized") return;
    // A wrong key is told where the key was typed.
    if (this.serverError) last.error = { ...this.serverError };
    else this.answers.again(last);
  }

  setLanguage(language) {
    this.preferences.language = language;
    this.preferences.save();
    setLanguage(language);
    for (const conversation of this.conversations.all) forgetBodies(conversation.nodes);
    this.changed();
  }

  setTheme(theme) {
    this.preferences.theme = theme;
    this.preferences.save();
    if (theme) document.documentElement.dataset.theme = theme;
    else delete document.documentElement.dataset.theme;
    this.changed();
  }

  /** A line at the bottom for some seconds, with something to do about it: {text, action, run}. */
  notify(notice, seconds = 8) {
    clearTimeout(this.#noticeTimer);
    this.notice = notice;
    this.changed();
    if (notice) this.#noticeTimer = setTimeout(() => this.notify(null), seconds * 1000);
  }

  /** Tell those who listen instead of looking; the line is not shown. */
  announce(text) {
    this.status = text;
    this.changed();
  }

  draft() {
    return this.drafts.get(this.current.id) ?? "";
  }

  setDraft(text) {
    this.drafts.set(this.current.id, text);
    this.changed();
  }

  /** Send what the user has written. */
  send() {
    const text = this.draft().trim();
    if (!text || this.answers.running(this.current)) return;
    this.drafts.delete(this.current.id);
    this.answers.ask(text);
  }

  copied(done) {
    this.notify({ text: t(done ? "copied" : "notCopied") }, 3);
  }
}
