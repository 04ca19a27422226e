/** The list of conversations: search, open, rename, delete. */
import { html, nothing } from "../vendor/lit-html/lit-html.js";
import { repeat } from "../vendor/lit-html/directives/repeat.js";
import { matches } from "./conversation.js";
import { icon, iconButton } from "./icons.js";
import { composing } from "./keys.js";
import { t } from "./i18n.js";

const DAY = 24 * 3600 * 1000;

export function sidebar(app, open) {
  const { conversations } = app;
  const found = app.search.trim() ? conversations.all.filter((one) => matches(one, app.search)) : conversations.all;
  return html`<nav class="sidebar" aria-label=${t("conversations")} ?inert=${!open}>
    <div class="sidebar-top">
      <button type="button" class="new-chat" title=${t("newChatKey")} @click=${() => conversations.startNew()}>
        ${icon("write")}<span>${t("newChat")}</span>
      </button>
      <label class="search">
        ${icon("search")}
        <input
          type="search"
          placeholder=${t("search")}
          aria-label=${t("search")}
          .value=${app.search}
          @input=${(event) => {
            app.search = event.target.value;
            app.changed();
          }}
        />
      </label>
    </div>
    <div class="list">
      ${groups(found).map(
        ([name, members]) => html`<h2 class="list-heading">${t(name)}</h2>
          <ul>
            ${repeat(
              members,
              (one) => one.id,
              (one) => entry(app, one),
            )}
          </ul>`,
      )}
      ${found.length ? nothing : html`<p class="list-empty">${t(app.search.trim() ? "nothingFound" : "nothingYet")}</p>`}
    </div>
  </nav>`;
}

function entry(app, conversation) {
  const { conversations } = app;
  if (app.renaming === conversation.id) return html`<li>${renameField(app, conversation)}</li>`;
  const shown = conversation === app.current;
  const open = () => {
    app.menuOpen = false;
    conversations.show(conversation);
  };
  const rename = () => {
    app.renaming = conversation.id;
    app.changed(() => document.querySelector(".rename")?.select());
  };
  return html`<li class="entry ${shown ? "shown" : ""}">
    <button type="button" class="entry-title" aria-current=${shown ? "true" : "false"} @click=${open} @dblclick=${rename}>
      ${app.answers.running(conversation) ? html`<span class="dot" title=${t("answering")}></span>` : nothing}
      <span>${conversation.title || t("untitled")}</span>
    </button>
    ${iconButton("edit", t("rename"), rename)}
    ${iconButton("trash", t("deleteConversation"), () => conversations.remove(conversation))}
  </li>`;
}

function renameField(app, conversation) {
  const done = (event) => app.renaming === conversation.id && app.conversations.rename(conversation, event.target.value);
  const key = (event) => {
    if (composing(event)) return;
    if (event.key === "Enter") done(event);
    if (event.key !== "Escape") return;
    event.stopPropagation();
    app.renaming = null;
    app.changed();
  };
  return html`<input
    class="rename"
    maxlength="200"
    aria-label=${t("rename")}
    .value=${conversation.title}
    @keydown=${key}
    @blur=${done}
  />`;
}

/** Conversations by age: [name of the group, its members], newest first, without empty groups. */
function groups(conversations) {
  const midnight = new Date().setHours(0, 0, 0, 0);
  const named = { today: [], yesterday: [], week: [], older: [] };
  for (const one of conversations) {
    const age = midnight - one.updated;
    named[age <= 0 ? "today" : age <= DAY ? "yesterday" : age <= 7 * DAY ? "week" : "older"].push(one);
  }
  return Object.entries(named).filter(([, members]) => members.length);
}
