/** Going back and forth between the versions of a message. */
import { html, nothing } from "../vendor/lit-html/lit-html.js";
import { versions } from "./conversation.js";
import { iconButton } from "./icons.js";
import { t } from "./i18n.js";

/** Nothing, where a message has one version. */
export function versionSwitch(app, node) {
  const { index, count, show } = versions(app.current, node);
  if (count < 2) return nothing;
  const step = (by) => () => {
    show(by);
    app.conversations.save(app.current);
    app.changed();
  };
  return html`<span class="versions" role="group" aria-label=${t("versions")}>
    ${iconButton("left", t("previousVersion"), step(-1), { disabled: busy(app) })}
    <span>${index + 1}/${count}</span>
    ${iconButton("right", t("nextVersion"), step(1), { disabled: busy(app) })}
  </span>`;
}

/** Whether the shown conversation is being answered: until then it stays as it is. */
export function busy(app) {
  return app.answers.running(app.current) !== null;
}
