/** What the user chose for this browser: language, theme, defaults of new conversations; and the API key. */
const PREFERENCES = "tpudeploy.preferences";
const KEY = "tpudeploy.api-key";

export class Preferences {
  constructor() {
    const stored = parsed(read(localStorageOrNull(), PREFERENCES));
    this.language = stored.language ?? null;
    this.theme = stored.theme ?? null;
    this.sidebar = stored.sidebar ?? true;
    this.defaults = stored.defaults ?? {};
    this.current = stored.current ?? null;
  }

  save() {
    const { language, theme, sidebar, defaults, current } = this;
    write(localStorageOrNull(), PREFERENCES, JSON.stringify({ language, theme, sidebar, defaults, current }));
  }
}

let keyOfPage = "";

/** The API key: of this tab, or of this browser if the user asked for that. */
export function apiKey() {
  return read(sessionStorageOrNull(), KEY) ?? read(localStorageOrNull(), KEY) ?? keyOfPage;
}

export function keepApiKey(key, remember) {
  // For browsers that store nothing at all.
  keyOfPage = key;
  write(sessionStorageOrNull(), KEY, key || null);
  write(localStorageOrNull(), KEY, remember && key ? key : null);
}

export function apiKeyRemembered() {
  return read(localStorageOrNull(), KEY) !== null;
}

function localStorageOrNull() {
  try {
    return window.localStorage;
  } catch {
    return null;
  }
}

function sessionStorageOrNull() {
  try {
    return window.sessionStorage;
  } catch {
    return null;
  }
}

function read(storage, name) {
  return storage?.getItem(name) ?? null;
}

function write(storage, name, value) {
  try {
    if (value === null) storage?.removeItem(name);
    else storage?.setItem(name, value);
  } catch {
    // Full or read-only storage: the choice then lasts as long as the page.
  }
}

function parsed(text) {
  try {
    const value = JSON.parse(text ?? "{}");
    return value && typeof value === "object" ? value : {};
  } catch {
    return {};
  }
}
