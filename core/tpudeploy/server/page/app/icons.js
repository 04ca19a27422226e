/** The page's icons, drawn as lines on a grid of 24. */
import { html, nothing, svg } from "../vendor/lit-html/lit-html.js";

const SHAPES = {
  menu: svg`<rect x="3.5" y="4.5" width="17" height="15" rx="2.5"/><path d="M9.5 4.5v15"/>`,
  plus: svg`<path d="M12 5v14M5 12h14"/>`,
  write: svg`<path d="M12 20h8"/><path d="M16.2 4.3a1.9 1.9 0 0 1 2.7 0l.8.8a1.9 1.9 0 0 1 0 2.7L9 18.5 4.5 19.5l1-4.5z"/>`,
  search: svg`<circle cx="11" cy="11" r="6.5"/><path d="m16 16 4.5 4.5"/>`,
  sliders: svg`<path d="M4 7h9M19 7h1M4 17h1M11 17h9"/><circle cx="16" cy="7" r="2.6"/><circle cx="8" cy="17" r="2.6"/>`,
  sun: svg`<circle cx="12" cy="12" r="4"/><path d="M12 3v1.5M12 19.5V21M3 12h1.5M19.5 12H21M5.6 5.6l1.1 1.1M17.3 17.3l1.1 1.1M5.6 18.4l1.1-1.1M17.3 6.7l1.1-1.1"/>`,
  moon: svg`<path d="M20 14.2A8.2 8.2 0 0 1 9.8 4a8.2 8.2 0 1 0 10.2 10.2z"/>`,
  send: svg`<path d="M12 19V5.5M6 11l6-6 6 6"/>`,
  stop: svg`<rect x="7" y="7" width="10" height="10" rx="2" fill="currentColor" stroke="none"/>`,
  copy: svg`<rect x="9" y="9" width="11" height="11" rx="2.2"/><path d="M15 5.8A1.8 1.8 0 0 0 13.2 4H5.8A1.8 1.8 0 0 0 4 5.8v7.4A1.8 1.8 0 0 0 5.8 15"/>`,
  again: svg`<path d="M4.5 12a7.5 7.5 0 0 1 13-5.1L20 9.5"/><path d="M20 4.5v5h-5"/><path d="M19.5 12a7.5 7.5 0 0 1-13 5.1L4 14.5"/><path d="M4 19.5v-5h5"/>`,
  edit: svg`<path d="M15.2 5.3a2 2 0 0 1 2.8 0l.7.7a2 2 0 0 1 0 2.8L9 18.5 4.5 19.5l1-4.5z"/>`,
  trash: svg`<path d="M4.5 7h15M9.5 7V4.8h5V7M6.5 7l.8 12.2h9.4L17.5 7M10.2 11v4.500M13.8 11v4.5"/>`,
  close: svg`<path d="m6 6 12 12M18 6 6 18"/>`,
  left: svg`<path d="m14.5 6-6 6 6 6"/>`,
  right: svg`<path d="m9.5 6 6 6-6 6"/>`,
  down: svg`<path d="M12 5v13.500M6 13l6 6 6-6"/>`,
  tool: svg`<path d="M14.6 6.400a4 4 0 0 1 5-1l-2.8 2.8.2 1.8 1.8.2 1.9-1.900a4.2 4.2 0 0 1-5.9 4.600l-6.7 6.700a1.9 1.9 0 0 1-2.7-2.700l6.7-6.700a4.2 4.2 0 0 1 2.5-3.800z"/>`,
  warning: svg`<path d="M12 4 2.8 19.500h18.400z"/><path d="M12 10v4.200M12 16.800v.1"/>`,
  more: svg`<path d="M5.5 12h.01M12 12h.01M18.5 12h.01" stroke-width="2.6"/>`,
  chip: svg`<rect x="7" y="7" width="10" height="10" rx="2"/><path d="M10 3.500V7M14 3.500V7M10 17v3.500M14 17v3.500M3.5 10H7M3.5 14H7M17 10h3.500M17 14h3.5"/>`,
};

export function icon(name) {
  return html`<svg class="icon" viewBox="0 0 24 24" aria-hidden="true" focusable="false">${SHAPES[name]}</svg>`;
}

/** A button that is only an icon; `label` is what it is called, to eyes that hover and to those that listen. */
export function iconButton(name, label, run, { className = "", disabled = false, expanded = null } = {}) {
  return html`<button
    type="button"
    class="icon-button ${className}"
    title=${label}
    aria-label=${label}
    aria-expanded=${expanded ?? nothing}
    ?disabled=${disabled}
    @click=${run}
  >
    ${icon(name)}
  </button>`;
}
