/** Starts the page. */
import { render } from "../vendor/lit-html/lit-html.js";
import { App } from "./app.js";
import { copyText } from "./clipboard.js";
import { t } from "./i18n.js";
import { listen } from "./keys.js";
import { Follower } from "./scroll.js";
import { narrow, page } from "./view.js";
import { fit } from "./view_composer.js";

const root = document.getElementById("app");

function draw(app) {
  render(page(app), root);
  const field = root.querySelector(".composer-text");
  // A draft that was sent or put there by the page changes the field without an event.
  if (field.value !== field.dataset.fitted) fit(field);
  document.title = app.current.title ? `${app.current.title} · tpudeploy` : "tpudeploy";
}

const app = new App(draw);
draw(app);
const find = (selector) => root.querySelector(selector);
const follower = new Follower(find(".scroll"), find(".to-end"));
app.followEnd = () => follower.toEnd();
app.focusComposer = () => find(".composer-text").focus({ preventScroll: true });
listen(app);
narrow.addEventListener("change", () => app.changed());
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => app.changed());
window.addEventListener("online", () => app.serverError && app.findModels());
// Code blocks are not drawn by templates: one listener serves all their buttons.
root.addEventListener("click", async (event) => {
  const button = event.target.closest(".code-copy");
  if (!button) return;
  const done = await copyText(button.closest(".code").querySelector("pre").textContent);
  button.textContent = t(done ? "copied" : "notCopied");
  setTimeout(() => (button.textContent = t("copy")), 1500);
});
window.addEventListener("pagehide", () => {
  if (app.answers.running(app.current)) app.conversations.save(app.current);
});
await app.start();
// Not on phones: the keyboard would hide half of the page at once.
if (!narrow.matches) app.focusComposer();
