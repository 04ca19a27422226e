/** The keyboard: what each key does, wherever the focus is. */

/** Whether a key belongs to an input method: the Enter that takes a Chinese candidate must send nothing. */
export function composing(event) {
  // Safari ends the composition before it reports the key, and marks that key with 229.
  return event.isComposing || event.keyCode === 229;
}

/** Keys of the whole page. */
export function listen(app) {
  document.addEventListener("keydown", (event) => {
    if (composing(event) || event.defaultPrevented) return;
    const command = (event.ctrlKey || event.metaKey) && !event.altKey && !event.shiftKey;
    if (event.key === "Escape") escape(app, event);
    else if (command && event.key.toLowerCase() === "k") act(event, () => app.conversations.startNew());
    else if (event.key === "/" && !inField(event.target)) act(event, () => app.focusComposer());
  });
}

function act(event, run) {
  event.preventDefault();
  document.querySelector("dialog[open]")?.close();
  run();
}

function escape(app, event) {
  // A dialog closes itself on Escape.
  if (document.querySelector("dialog[open]")) return;
  if (app.menuOpen) app.menuOpen = false;
  else if (app.editing) app.editing = null;
  else if (app.answers.running(app.current)) app.answers.stop();
  else return;
  event.preventDefault();
  app.changed();
}

function inField(element) {
  return element.closest("input, textarea, select, [contenteditable]") !== null;
}
