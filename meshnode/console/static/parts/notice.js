// What a view says where there is nothing else to show, or something to know first.
import { Icon } from "../icons.js";
import { sentence } from "../format.js";
import { html } from "../lib.js";

const ICONS = { info: "info", good: "good", warn: "warn", bad: "bad" };

/** A paragraph that stands out. kind: "info", "good", "warn" or "bad". */
export const Notice = ({ kind = "info", title, children, actions }) => html`
  <div class=${`notice ${kind}`}>
    <${Icon} name=${ICONS[kind]} />
    <div class="notice-words">${title && html`<strong>${title}</strong>`}${children && html`<div>${children}</div>`}</div>
    ${actions && html`<div class="notice-actions">${actions}</div>`}
  </div>
`;

/** Nothing is here, and why, and what would bring something. */
export const Empty = ({ title, children }) => html`
  <div class="empty"><p class="empty-title">${title}</p>${children && html`<div>${children}</div>`}</div>
`;

/** A call that failed, with what to do about it; nothing when there is no error. */
export const Failure = ({ error, title }) =>
  error && html`<div role="alert"><${Notice} kind="bad" title=${title ?? sentence(error.message)}>
    ${title && html`<p>${sentence(error.message)}</p>`}${error.fix && html`<p>${sentence(error.fix)}</p>`}
  <//></div>`;

/** Something is on its way. */
export const Loading = ({ what = "Loading" }) =>
  html`<p class="loading"><${Icon} name="busy" /> ${what}…</p>`;
