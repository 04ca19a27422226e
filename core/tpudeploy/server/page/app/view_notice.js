/** A line at the bottom that says what was done, and undoes it. */
import { html, nothing } from "../vendor/lit-html/lit-html.js";
import { iconButton } from "./icons.js";
import { t } from "./i18n.js";

/** Drawn inside the settings while they are open: an open dialog covers what is outside. */
export function notice(app) {
  const shown = app.notice;
  return html`<div class="notices" role="status">
    ${shown
      ? html`<div class="notice">
          <span>${shown.text}</span>
          ${shown.action ? html`<button type="button" class="text-button" @click=${shown.run}>${shown.action}</button>` : nothing}
          ${iconButton("close", t("close"), () => app.notify(null))}
        </div>`
      : nothing}
  </div>`;
}
