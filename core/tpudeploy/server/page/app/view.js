/** The page as a whole: conversations at the left, the shown one beside them, settings in a dialog. */
import { html, nothing } from "../vendor/lit-html/lit-html.js";
import { composer } from "./view_composer.js";
import { errorBox } from "./view_errors.js";
import { icon, iconButton } from "./icons.js";
import { messages } from "./view_messages.js";
import { notice } from "./view_notice.js";
import { openSettings, settings } from "./view_settings.js";
import { sidebar } from "./view_sidebar.js";
import { t } from "./i18n.js";

export const narrow = matchMedia("(max-width: 800px)");
const dark = matchMedia("(prefers-color-scheme: dark)");

export function page(app) {
  const menu = narrow.matches ? app.menuOpen : app.preferences.sidebar;
  return html`
    <div class="page ${menu ? "with-menu" : ""}">
      ${sidebar(app, menu)}
      <div class="scrim" @click=${() => toggleMenu(app)}></div>
      <main class="main" ?inert=${narrow.matches && menu}>
        ${header(app, menu)} ${storageWarning(app)}
        <div class="scroll" tabindex="-1">
          <div class="column">${app.conversations.path.length ? messages(app) : welcome(app)}</div>
          <div class="bottom">
            <button type="button" class="to-end" hidden title=${t("toEnd")} aria-label=${t("toEnd")}>${icon("down")}</button>
            ${app.serverError && !failedBecause(app) ? errorBox(app, app.serverError, () => app.findModels()) : nothing}
            ${composer(app)}
          </div>
        </div>
      </main>
    </div>
    ${settings(app)} ${app.settingsOpen ? nothing : notice(app)}
    <div class="offscreen" role="status">${app.status}</div>
  `;
}

/** Whether the last answer says already what the page would say about the server. */
function failedBecause(app) {
  return app.conversations.path.at(-1)?.error?.kind === app.serverError.kind;
}

export function toggleMenu(app) {
  if (narrow.matches) {
    app.menuOpen = !app.menuOpen;
  } else {
    app.preferences.sidebar = !app.preferences.sidebar;
    app.preferences.save();
  }
  app.changed();
}

function header(app, menu) {
  const other = app.language === "zh" ? "en" : "zh";
  return html`<header class="header">
    ${iconButton("menu", menu ? t("hideMenu") : t("showMenu"), () => toggleMenu(app), { className: "menu-button", expanded: menu })}
    ${iconButton("write", t("newChat"), () => app.conversations.startNew(), { className: menu && !narrow.matches ? "gone" : "" })}
    <h1 class="title">${app.current.title || t("newChat")}</h1>
    <button
      type="button"
      class="text-button language-button"
      lang=${other === "zh" ? "zh-Hans" : "en"}
      title=${other === "zh" ? "中文界面" : "English interface"}
      @click=${() => app.setLanguage(other)}
    >
      ${other === "zh" ? "中文" : "EN"}
    </button>
    ${isDark(app)
      ? iconButton("sun", t("lightTheme"), () => app.setTheme("light"), { className: "theme-button" })
      : iconButton("moon", t("darkTheme"), () => app.setTheme("dark"), { className: "theme-button" })}
    ${iconButton("sliders", t("settings"), () => openSettings(app), { className: "settings-button" })}
  </header>`;
}

function isDark(app) {
  return app.preferences.theme ? app.preferences.theme === "dark" : dark.matches;
}

function storageWarning(app) {
  const key = { off: "storageOff", full: "storageFull", failed: "storageFailed" }[app.conversations.storage];
  return key ? html`<p class="banner" role="alert">${icon("warning")}<span>${t(key)}</span></p>` : nothing;
}

function welcome(app) {
  const ask = (text) => {
    app.setDraft(text);
    app.send();
  };
  return html`<section class="welcome">
    <span class="welcome-mark">${icon("chip")}</span>
    <h2>${t("welcome")}</h2>
    <p>${app.model ? t("welcomeModel", { model: app.model }) : t("welcomeLocal")}</p>
    <div class="suggestions">
      ${["suggestion1", "suggestion2", "suggestion3"].map(
        (key) => html`<button type="button" class="suggestion" @click=${() => ask(t(key))}>${t(key)}</button>`,
      )}
    </div>
  </section>`;
}
