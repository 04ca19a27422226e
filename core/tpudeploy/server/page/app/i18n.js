/** The interface's words, in English and Chinese. */
import { english } from "../text/en.js";
import { chinese } from "../text/zh.js";

const LANGUAGES = { en: english, zh: chinese };
let words = english;

/** The first of the browser's languages that the page speaks. */
export function browserLanguage() {
  const spoken = (navigator.languages ?? [navigator.language]).map((tag) => tag.toLowerCase().split("-")[0]);
  return spoken.find((tag) => tag in LANGUAGES) ?? "en";
}

export function setLanguage(language) {
  words = LANGUAGES[language] ?? english;
  document.documentElement.lang = language === "zh" ? "zh-Hans" : "en";
}

/** The text of `key`, with {name} replaced by values.name. */
export function t(key, values = {}) {
  return words[key].replace(/\{(\w+)\}/g, (_, name) => String(values[name]));
}
