/** Tool calls of an answer. The page runs no tools: it shows what was asked, and the user types the result. */
import { html, nothing } from "../vendor/lit-html/lit-html.js";
import { icon } from "./icons.js";
import { readable } from "./tools.js";
import { t } from "./i18n.js";
import { busy, versionSwitch } from "./view_versions.js";

export function toolCalls(app, node, shown) {
  return (node.toolCalls ?? []).map((call) => toolCall(app, node, call, shown));
}

function toolCall(app, node, call, shown) {
  const result = shown.find((other) => other.role === "tool" && other.callId === call.id);
  const after = shown.slice(shown.indexOf(node) + 1);
  const waits = !result && node.status !== "streaming" && after.every((other) => other.role === "tool");
  const corrected = result && app.editing === result.id;
  return html`<details class="tool" open>
    <summary>${icon("tool")}<span class="tool-name">${call.name}</span><span class="tool-kind">${t("toolCall")}</span></summary>
    <div class="tool-part">${t("arguments")}</div>
    <pre tabindex="0">${readable(call.arguments)}</pre>
    ${result && !corrected ? resultShown(app, call, result) : nothing}
    ${waits || corrected ? resultForm(app, node, call, result) : nothing}
  </details>`;
}

function resultShown(app, call, result) {
  const correct = () => {
    app.toolDrafts.set(call.id, result.content);
    app.editing = result.id;
    app.changed(() => document.querySelector(".tool-result textarea")?.focus());
  };
  return html`<div class="tool-bar">
      <span class="tool-part">${t("result")}</span>
      ${versionSwitch(app, result)}
      <button type="button" class="text-button" ?disabled=${busy(app)} @click=${correct}>${t("edit")}</button>
    </div>
    <pre tabindex="0">${readable(result.content)}</pre>`;
}

function resultForm(app, node, call, corrected) {
  const draft = app.toolDrafts.get(call.id) ?? "";
  const give = (event) => {
    event.preventDefault();
    if (!app.answers.running(app.current)) app.answers.giveResult(node, call, draft, corrected ?? null);
  };
  return html`<form class="tool-result" @submit=${give}>
    <label>
      <span class="tool-part">${t("result")}</span>
      <textarea
        rows="2"
        placeholder=${t("resultHere")}
        .value=${draft}
        @input=${(event) => {
          app.toolDrafts.set(call.id, event.target.value);
          app.changed();
        }}
      ></textarea>
    </label>
    <button type="submit" class="button primary" ?disabled=${!draft.trim()}>${t("giveResult")}</button>
  </form>`;
}

/** A result whose call is not shown, as in conversations from elsewhere. */
export function looseResult(app, node, shown) {
  if (shown.some((other) => other.toolCalls?.some((call) => call.id === node.callId))) return nothing;
  return html`<article class="message assistant" data-id=${node.id}>
    <details class="tool" open>
      <summary>${icon("tool")}<span class="tool-name">${node.name}</span><span class="tool-kind">${t("result")}</span></summary>
      <pre tabindex="0">${readable(node.content)}</pre>
    </details>
  </article>`;
}
