/** All conversations of this browser: which one is shown, what is stored, and what other tabs do to them. */
import { newConversation, newId, path } from "./conversation.js";
import { exported, imported } from "./exchange.js";
import { Store } from "./store.js";
import { saveFile } from "./clipboard.js";
import { t } from "./i18n.js";

export class Conversations {
  #all = new Map();
  #store = new Store();
  #saving = new Map();
  #tabs = "BroadcastChannel" in window ? new BroadcastChannel("tpudeploy") : null;

  constructor(app) {
    this.app = app;
    this.current = newConversation(app.preferences.defaults);
    this.storage = "opening";
    if (this.#tabs) this.#tabs.onmessage = ({ data }) => this.#changedElsewhere(data);
  }

  /** Newest first. */
  get all() {
    return [...this.#all.values()].sort((one, other) => other.updated - one.updated);
  }

  get path() {
    return path(this.current);
  }

  async load() {
    this.storage = (await this.#store.open()) ? "kept" : "off";
    try {
      for (const conversation of await this.#store.all()) this.#all.set(conversation.id, mended(conversation));
    } catch {
      this.storage = "off";
    }
    const last = this.#all.get(this.app.preferences.current);
    if (last && !this.current.nodes.length) this.current = last;
    this.app.changed(() => this.app.followEnd?.());
  }

  /** Put a conversation on the list: one that nobody has written in yet is on none. */
  keep(conversation) {
    this.#all.set(conversation.id, conversation);
    if (conversation === this.current) this.#remember();
  }

  show(conversation) {
    this.current = conversation;
    this.app.editing = null;
    this.app.renaming = null;
    this.#remember();
    this.app.changed(() => this.app.followEnd?.());
  }

  startNew() {
    if (this.current.nodes.length) this.show(newConversation(this.app.preferences.defaults));
    this.app.menuOpen = false;
    this.app.changed(() => this.app.focusComposer?.());
  }

  /** Store a conversation, one write at a time; the last state wins. Says so if the browser has no room. */
  async save(conversation) {
    if (!this.#all.has(conversation.id)) return;
    if (this.#saving.has(conversation.id)) {
      this.#saving.set(conversation.id, true);
      return;
    }
    this.#saving.set(conversation.id, false);
    try {
      await this.#store.put(conversation);
      if (this.storage === "full" || this.storage === "failed") {
        this.storage = "kept";
        this.app.changed();
      }
      this.#tabs?.postMessage(conversation.id);
    } catch (error) {
      this.storage = error.name === "QuotaExceededError" ? "full" : "failed";
      this.app.changed();
    }
    const again = this.#saving.get(conversation.id);
    this.#saving.delete(conversation.id);
    if (again) await this.save(conversation);
  }

  rename(conversation, title) {
    this.app.renaming = null;
    if (title.trim()) {
      conversation.title = title.trim().slice(0, 200);
      conversation.named = true;
      this.save(conversation);
    }
    this.app.changed();
  }

  /** Delete a conversation; for some seconds it can be had back. */
  async remove(conversation) {
    this.app.answers.stop(conversation);
    this.#all.delete(conversation.id);
    if (conversation === this.current) this.show(newConversation(this.app.preferences.defaults));
    const run = () => {
      this.keep(conversation);
      this.save(conversation);
      this.show(conversation);
      this.app.notify(null);
    };
    this.app.notify({ text: t("conversationDeleted"), action: t("undo"), run });
    await this.#delete(conversation.id);
  }

  async removeAll() {
    const gone = this.all;
    for (const conversation of gone) this.app.answers.stop(conversation);
    this.#all.clear();
    this.show(newConversation(this.app.preferences.defaults));
    const run = () => {
      for (const conversation of gone) {
        this.keep(conversation);
        this.save(conversation);
      }
      this.app.notify(null);
    };
    this.app.notify({ text: t("allDeleted", { count: gone.length }), action: t("undo"), run });
    for (const { id } of gone) await this.#delete(id);
  }

  export(conversations, name) {
    saveFile(`${name.replace(/[\\/:*?"<>|\s]+/g, "-").slice(0, 60) || "conversation"}.json`, exported(conversations));
  }

  /** Take in a file of conversations, and show the first. */
  async import(file) {
    let found;
    try {
      found = imported(await file.text());
    } catch (error) {
      this.app.notify({ text: t("importFailed", { name: file.name, detail: error.message }) });
      return;
    }
    for (const conversation of found) {
      conversation.id = newId();
      this.keep(conversation);
      await this.save(conversation);
    }
    if (found.length) this.show(found[0]);
    this.app.notify({ text: t("importedCount", { count: found.length }) });
  }

  async #delete(id) {
    try {
      await this.#store.remove(id);
      this.#tabs?.postMessage(id);
    } catch {
      this.storage = "failed";
      this.app.changed();
    }
  }

  #remember() {
    this.app.preferences.current = this.current.id;
    this.app.preferences.save();
  }

  async #changedElsewhere(id) {
    const mine = this.#all.get(id);
    if (mine && this.app.answers.running(mine)) return;
    const stored = await this.#store.get(id).catch(() => undefined);
    if (stored) this.#all.set(id, stored);
    else this.#all.delete(id);
    if (this.current.id === id) this.current = stored ?? newConversation(this.app.preferences.defaults);
    this.app.changed();
  }
}

/** A conversation whose page was closed in the middle of an answer has that answer as far as it came. */
function mended(conversation) {
  for (const node of conversation.nodes) {
    if (node.status !== "streaming") continue;
    node.status = "failed";
    node.error = { kind: "closed", message: "", status: null, code: null, retryAfter: null };
  }
  return conversation;
}
