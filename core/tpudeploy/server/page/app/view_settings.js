/** The settings dialog: this conversation's, this browser's, and the keys. */
import { html, nothing } from "../vendor/lit-html/lit-html.js";
import { live } from "../vendor/lit-html/directives/live.js";
import { apiKey, apiKeyRemembered } from "./preferences.js";
import { icon, iconButton } from "./icons.js";
import { notice } from "./view_notice.js";
import { EXAMPLE, toolsOf } from "./tools.js";
import { t } from "./i18n.js";

/** Sampling settings: least and greatest value, step. */
const RANGES = {
  temperature: [0, 2, 0.1],
  top_p: [0, 1, 0.05],
  max_tokens: [1, 1000000, 1],
  seed: [-(2 ** 53) + 1, 2 ** 53 - 1, 1],
  presence_penalty: [-2, 2, 0.1],
  frequency_penalty: [-2, 2, 0.1],
};

export function openSettings(app) {
  app.settingsOpen = true;
  app.changed(() => document.querySelector("dialog.settings").showModal());
}

export function settings(app) {
  const closed = () => {
    app.settingsOpen = false;
    app.changed(() => app.focusComposer());
  };
  const close = () => document.querySelector("dialog.settings").close();
  // A click on the dialog itself, not on what is in it, is one beside it.
  const beside = (event) => event.target === event.currentTarget && close();
  return html`<dialog class="settings" aria-label=${t("settings")} @close=${closed} @click=${beside}>
    ${app.settingsOpen
      ? html`<div class="settings-page">
          <header class="settings-header">
            <h2>${t("settings")}</h2>
            ${iconButton("close", t("close"), close)}
          </header>
          ${ofConversation(app)} ${ofBrowser(app)} ${keys()}
        </div>
        ${notice(app)}`
      : nothing}
  </dialog>`;
}

function ofConversation(app) {
  const conversation = app.current;
  const change = (fields) => {
    Object.assign(conversation, fields);
    app.conversations.save(conversation);
    app.changed();
  };
  return html`<section>
    <h3>${t("thisConversation")}</h3>
    ${models(app, change)}
    <label class="field">
      <span>${t("systemPrompt")}</span>
      <textarea
        class="system-prompt"
        rows="3"
        placeholder=${t("systemPromptHere")}
        .value=${live(conversation.system)}
        @input=${(event) => change({ system: event.target.value })}
      ></textarea>
    </label>
    <div class="numbers">${Object.keys(RANGES).map((name) => number(conversation, name, change))}</div>
    ${tools(conversation, change)}
    <div class="row">
      <button type="button" class="button" @click=${() => useForNew(app)}>${t("useForNew")}</button>
      <button type="button" class="button" @click=${() => change({ system: "", settings: {}, tools: "", toolChoice: "auto" })}>
        ${t("resetSettings")}
      </button>
    </div>
  </section>`;
}

function models(app, change) {
  if (app.models.length < 2) return app.model ? html`<p class="field"><span>${t("model")}</span><output>${app.model}</output></p>` : nothing;
  return html`<label class="field">
    <span>${t("model")}</span>
    <select @change=${(event) => change({ model: event.target.value })}>
      ${app.models.map((id) => html`<option value=${id} ?selected=${id === app.model}>${id}</option>`)}
    </select>
  </label>`;
}

function number(conversation, name, change) {
  const [least, greatest, step] = RANGES[name];
  const put = (event) => {
    const { value, valueAsNumber } = event.target;
    const whole = step !== 1 || Number.isInteger(valueAsNumber);
    const right = value === "" ? !event.target.validity.badInput : whole && valueAsNumber >= least && valueAsNumber <= greatest;
    event.target.setAttribute("aria-invalid", String(!right));
    const text = step === 1 ? t("wholeNumber", { least, greatest }) : t("numberBetween", { least, greatest });
    event.target.closest("label").querySelector(".field-error").textContent = right ? "" : text;
    if (right) change({ settings: { ...conversation.settings, [name]: value === "" ? null : valueAsNumber } });
  };
  return html`<label class="field" title=${t(`${name}_help`)}>
    <span>${t(name)}</span>
    <input
      type="number"
      name=${name}
      min=${least}
      max=${greatest}
      step=${step === 1 ? 1 : "any"}
      placeholder=${t("modelDefault")}
      .value=${String(conversation.settings[name] ?? "")}
      @input=${put}
    />
    <span class="field-error" role="alert"></span>
  </label>`;
}

function tools(conversation, change) {
  const { error, detail, value } = toolsOf(conversation.tools);
  return html`<details class="field tools-field" ?open=${conversation.tools !== ""}>
    <summary>${t("tools")}${value?.length ? html` <span class="count">${value.length}</span>` : nothing}</summary>
    <p class="help">${t("toolsHelp")}</p>
    <textarea
      class="tools-text"
      rows="6"
      spellcheck="false"
      aria-label=${t("tools")}
      aria-invalid=${error ? "true" : "false"}
      .value=${live(conversation.tools)}
      @input=${(event) => change({ tools: event.target.value })}
    ></textarea>
    ${error ? html`<p class="field-error" role="alert">${t(error, { detail })}</p>` : nothing}
    <div class="row">
      <button type="button" class="button" @click=${() => change({ tools: EXAMPLE })}>${t("toolsExample")}</button>
      <label class="inline">
        ${t("toolChoice")}
        <select @change=${(event) => change({ toolChoice: event.target.value })}>
          ${["auto", "none", "required"].map(
            (choice) => html`<option value=${choice} ?selected=${choice === conversation.toolChoice}>${t(`choice_${choice}`)}</option>`,
          )}
        </select>
      </label>
    </div>
  </details>`;
}

function useForNew(app) {
  const { model, system, settings: numbers, tools: schemas, toolChoice } = app.current;
  app.preferences.defaults = { model, system, settings: { ...numbers }, tools: schemas, toolChoice };
  app.preferences.save();
  app.notify({ text: t("usedForNew") }, 3);
}

function ofBrowser(app) {
  const { conversations, preferences } = app;
  return html`<section>
    <h3>${t("thisBrowser")}</h3>
    ${choices(t("language"), [["zh", "中文"], ["en", "English"]], app.language, (value) => app.setLanguage(value))}
    ${choices(
      t("theme"),
      [["", t("systemTheme")], ["light", t("lightTheme")], ["dark", t("darkTheme")]],
      preferences.theme ?? "",
      (value) => app.setTheme(value || null),
    )}
    ${keyField(app)}
    <div class="field">
      <span>${t("conversations")}</span>
      <div class="row">
        <button
          type="button"
          class="button"
          ?disabled=${!app.current.nodes.length}
          @click=${() => conversations.export([app.current], app.current.title)}
        >
          ${t("exportOne")}
        </button>
        <button
          type="button"
          class="button"
          ?disabled=${!conversations.all.length}
          @click=${() => conversations.export(conversations.all, "conversations")}
        >
          ${t("exportAll")}
        </button>
        <label class="button file-button">
          ${t("import")}
          <input
            type="file"
            accept=".json,application/json"
            @change=${(event) => {
              const [file] = event.target.files;
              event.target.value = "";
              if (file) conversations.import(file);
            }}
          />
        </label>
        <button
          type="button"
          class="button danger"
          ?disabled=${!conversations.all.length}
          @click=${() => confirm(t("deleteAllSure", { count: conversations.all.length })) && conversations.removeAll()}
        >
          ${t("deleteAll")}
        </button>
      </div>
    </div>
  </section>`;
}

function choices(label, options, chosen, choose) {
  return html`<div class="field" role="group" aria-label=${label}>
    <span>${label}</span>
    <div class="choices">
      ${options.map(
        ([value, text]) => html`<button
          type="button"
          aria-pressed=${value === chosen ? "true" : "false"}
          @click=${() => choose(value)}
        >
          ${text}
        </button>`,
      )}
    </div>
  </div>`;
}

function keyField(app) {
  const use = async (event) => {
    event.preventDefault();
    const { key, remember } = event.target.elements;
    await app.useKey(key.value, remember.checked);
    app.notify({ text: t(app.serverError?.kind === "unauthorized" ? "keyRefused" : "keyKept") }, 4);
  };
  return html`<form class="field" @submit=${use}>
    <span>${t("apiKey")}</span>
    <div class="key-form">
      <input name="key" type="password" autocomplete="off" spellcheck="false" aria-label=${t("apiKey")} .value=${apiKey()} />
      <button type="submit" class="button">${t("useKey")}</button>
      <label class="check"><input name="remember" type="checkbox" ?checked=${apiKeyRemembered()} />${t("rememberKey")}</label>
    </div>
    <p class="help">${t("keyHelp")}</p>
  </form>`;
}

function keys() {
  const all = [
    ["Enter", "keySend"],
    ["Shift Enter", "keyNewLine"],
    ["Esc", "keyStop"],
    ["Ctrl K", "keyNewChat"],
    ["↑", "keyEditLast"],
    ["/", "keyFocus"],
  ];
  return html`<section>
    <h3>${t("keyboard")}</h3>
    <dl class="keys">
      ${all.map(([names, key]) => html`<div><dt>${names.split(" ").map((name) => html`<kbd>${name}</kbd>`)}</dt><dd>${t(key)}</dd></div>`)}
    </dl>
    <p class="help">${icon("chip")} ${t("about")}</p>
  </section>`;
}
