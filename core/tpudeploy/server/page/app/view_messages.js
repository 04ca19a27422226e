/** The messages of the shown conversation. */
import { html, nothing } from "../vendor/lit-html/lit-html.js";
import { repeat } from "../vendor/lit-html/directives/repeat.js";
import { bodyOf } from "./answer_body.js";
import { copyText } from "./clipboard.js";
import { removeNode } from "./conversation.js";
import { iconButton } from "./icons.js";
import { composing } from "./keys.js";
import { errorBox } from "./view_errors.js";
import { fit, startEditing } from "./view_composer.js";
import { looseResult, toolCalls } from "./view_tools.js";
import { busy, versionSwitch } from "./view_versions.js";
import { t } from "./i18n.js";

/** Long conversations show their end; a button shows this many earlier messages. */
const PAGE = 60;

export function messages(app) {
  const shown = app.conversations.path;
  const first = Math.max(0, shown.length - (app.current.id === app.earlier?.id ? app.earlier.count : PAGE));
  const more = () => {
    app.earlier = { id: app.current.id, count: shown.length - first + PAGE };
    app.changed();
  };
  return html`
    ${first
      ? html`<button type="button" class="text-button earlier" @click=${more}>${t("earlier", { count: first })}</button>`
      : nothing}
    <div class="messages" role="log" aria-live="off" aria-label=${t("messages")}>
      ${repeat(
        shown.slice(first),
        (node) => node.id,
        (node) => message(app, node, shown),
      )}
    </div>
  `;
}

function message(app, node, shown) {
  if (node.role === "user") return userMessage(app, node, shown);
  if (node.role === "assistant") return answer(app, node, shown);
  return looseResult(app, node, shown);
}

function userMessage(app, node, shown) {
  if (app.editing === node.id) return editor(app, node);
  const last = node === shown.at(-1) && !app.answers.running(app.current);
  return html`<article class="message user" aria-label=${t("you")} data-id=${node.id}>
    <div class="bubble">${node.content}</div>
    <div class="actions">
      ${versionSwitch(app, node)} ${iconButton("copy", t("copyMessage"), () => copy(app, node.content))}
      ${iconButton("edit", t("edit"), () => startEditing(app, node), { disabled: busy(app) })}
      ${last ? iconButton("again", t("answerThis"), () => app.answers.answer(node)) : nothing}
      ${iconButton("trash", t("deleteMessage"), () => remove(app, node), { disabled: busy(app) })}
    </div>
  </article>`;
}

function editor(app, node) {
  const send = () => {
    const text = document.querySelector(".edit-text").value;
    if (text.trim()) app.answers.edit(node, text);
  };
  const cancel = () => {
    app.editing = null;
    app.changed(() => app.focusComposer());
  };
  const key = (event) => {
    if (composing(event)) return;
    if (event.key === "Enter" && !event.shiftKey) {
      event.preventDefault();
      send();
    } else if (event.key === "Escape") {
      event.preventDefault();
      cancel();
    }
  };
  return html`<article class="message user editing" aria-label=${t("edit")} data-id=${node.id}>
    <textarea
      class="edit-text"
      aria-label=${t("edit")}
      .value=${node.content}
      @input=${(event) => fit(event.target)}
      @keydown=${key}
    ></textarea>
    <div class="editing-buttons">
      <button type="button" class="button" @click=${cancel}>${t("cancel")}</button>
      <button type="button" class="button primary" @click=${send}>${t("send")}</button>
    </div>
  </article>`;
}

function answer(app, node, shown) {
  const streaming = node.status === "streaming";
  const again = () => app.answers.again(node);
  return html`<article class="message assistant" aria-label=${node.model || t("assistant")} aria-busy=${streaming} data-id=${node.id}>
    ${bodyOf(node).element} ${streaming && !node.content && !node.toolCalls?.length ? waiting(app) : nothing}
    ${toolCalls(app, node, shown)} ${node.error ? errorBox(app, node.error, again, node) : nothing}
    ${node.status === "stopped" ? html`<p class="note">${t("stopped")}</p>` : nothing}
    ${node.status === "done" && !node.content && !node.toolCalls?.length ? html`<p class="note">${t("emptyAnswer")}</p>` : nothing}
    ${node.finish === "length" ? html`<p class="note">${t("lengthReached")}</p>` : nothing}
    <div class="actions" ?hidden=${streaming}>
      ${versionSwitch(app, node)}
      ${node.content ? iconButton("copy", t("copyAnswer"), () => copy(app, node.content)) : nothing}
      ${iconButton("again", t("again"), again, { disabled: busy(app) })}
      ${iconButton("trash", t("deleteMessage"), () => remove(app, node), { disabled: busy(app) })} ${stats(node)}
    </div>
  </article>`;
}

function waiting(app) {
  const running = app.answers.running(app.current);
  const seconds = running ? Math.floor((performance.now() - running.started) / 1000) : 0;
  return html`<p class="waiting">
    <span class="pulse" aria-hidden="true"></span>${seconds > 2 ? t("waitingSeconds", { seconds }) : t("waiting")}
  </p>`;
}

/** What an answer cost: speed, first token, tokens in and out. */
function stats(node) {
  const { rate, first, prompt, completion } = node.stats ?? {};
  const parts = [];
  if (rate !== undefined) parts.push(t("rate", { rate: rate < 10 ? rate.toFixed(1) : rate.toFixed(0) }));
  if (first !== undefined) parts.push(t("firstToken", { seconds: (first / 1000).toFixed(2) }));
  if (completion !== undefined) parts.push(t("tokens", { prompt, completion }));
  return html`<span class="stats">${parts.map((part) => html`<span>${part}</span>`)}</span>`;
}

async function copy(app, text) {
  app.copied(await copyText(text));
}

function remove(app, node) {
  const conversation = app.current;
  const before = { nodes: [...conversation.nodes], chosen: { ...conversation.chosen } };
  app.answers.giveUp(node);
  removeNode(conversation, node);
  app.conversations.save(conversation);
  const run = () => {
    Object.assign(conversation, before);
    app.conversations.save(conversation);
    app.notify(null);
  };
  app.notify({ text: t("messageDeleted"), action: t("undo"), run });
}
