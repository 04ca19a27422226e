/** What went wrong, where it happened, and what to do about it. */
import { html, nothing } from "../vendor/lit-html/lit-html.js";
import { icon } from "./icons.js";
import { t } from "./i18n.js";

const TEXTS = {
  unauthorized: "errorUnauthorized",
  busy: "errorBusy",
  context: "errorContext",
  network: "errorNetwork",
  interrupted: "errorInterrupted",
  closed: "errorClosed",
  request: "errorRequest",
  server: "errorServer",
};

/** `retry` does again what failed; `node` is the message that it failed in, if it was one. */
export function errorBox(app, error, retry, node = null) {
  const at = node && app.answers.retryAt(node);
  const seconds = at ? Math.max(0, Math.ceil((at - Date.now()) / 1000)) : 0;
  const text = t(TEXTS[error.kind] ?? "errorServer");
  return html`<div class="error" role="alert">
    ${icon("warning")}
    <div class="error-text">
      <p>${text}</p>
      ${error.message ? html`<p class="error-detail">${detail(error)}</p>` : nothing}
      ${error.kind === "unauthorized" ? keyForm(app) : nothing}
      <div class="error-buttons">
        ${at ? html`<span class="countdown" aria-live="off">${t("retryIn", { seconds })}</span>` : nothing}
        ${error.kind === "unauthorized"
          ? nothing
          : html`<button type="button" class="button" @click=${retry}>${at ? t("retryNow") : t("retry")}</button>`}
        ${at ? html`<button type="button" class="button" @click=${() => app.answers.giveUp(node)}>${t("cancel")}</button>` : nothing}
        ${error.kind === "context"
          ? html`<button type="button" class="button" @click=${() => app.conversations.startNew()}>${t("newChat")}</button>`
          : nothing}
      </div>
    </div>
  </div>`;
}

function detail(error) {
  return error.status ? `${error.message} (${error.status})` : error.message;
}

export function keyForm(app) {
  const use = (event) => {
    event.preventDefault();
    const { key, remember } = event.target.elements;
    app.useKey(key.value, remember.checked);
  };
  return html`<form class="key-form" @submit=${use}>
    <input name="key" type="password" autocomplete="off" spellcheck="false" placeholder=${t("apiKey")} aria-label=${t("apiKey")} />
    <button type="submit" class="button primary">${t("useKey")}</button>
    <label class="check"><input name="remember" type="checkbox" />${t("rememberKey")}</label>
  </form>`;
}
