/** Where the user writes. */
import { html } from "../vendor/lit-html/lit-html.js";
import { live } from "../vendor/lit-html/directives/live.js";
import { composing } from "./keys.js";
import { iconButton } from "./icons.js";
import { t } from "./i18n.js";

export function composer(app) {
  const running = app.answers.running(app.current);
  const draft = app.draft();
  return html`<form class="composer" @submit=${(event) => submit(app, event)}>
    <textarea
      class="composer-text"
      rows="1"
      enterkeyhint="send"
      placeholder=${t("writeHere")}
      aria-label=${t("yourMessage")}
      .value=${live(draft)}
      @input=${(event) => {
        app.setDraft(event.target.value);
        fit(event.target);
      }}
      @keydown=${(event) => key(app, event)}
    ></textarea>
    ${running
      ? iconButton("stop", t("stop"), () => app.answers.stop(), { className: "send stop" })
      : iconButton("send", t("send"), () => app.send(), { className: "send", disabled: !draft.trim() })}
  </form>`;
}

function submit(app, event) {
  event.preventDefault();
  app.send();
}

function key(app, event) {
  if (composing(event)) return;
  if (event.key === "Enter" && !event.shiftKey) {
    event.preventDefault();
    app.send();
  } else if (event.key === "ArrowUp" && !event.target.value && !app.answers.running(app.current)) {
    const last = app.conversations.path.findLast((node) => node.role === "user");
    if (!last) return;
    event.preventDefault();
    startEditing(app, last);
  }
}

export function startEditing(app, node) {
  app.editing = node.id;
  app.changed(() => {
    const field = document.querySelector(".edit-text");
    if (!field) return;
    fit(field);
    field.focus();
    field.setSelectionRange(field.value.length, field.value.length);
  });
}

/** Make a text field as high as its text; the style sheet says where that ends. */
export function fit(field) {
  field.dataset.fitted = field.value;
  field.style.height = "auto";
  field.style.height = `${field.scrollHeight}px`;
}
