// A state in one or two words, with a drawing of its own for each kind, so that colour is never all there is.
import { Icon } from "../icons.js";
import { html } from "../lib.js";

/** kind: "good", "warn", "bad", "busy" or "off". */
export const Badge = ({ kind = "off", children }) =>
  html`<span class=${`badge ${kind}`}><${Icon} name=${kind} size=${14} /><span>${children}</span></span>`;

const KINDS = {
  ready: "good", alive: "good", done: "good", joined: "good",
  failed: "bad", dead: "bad",
  unreachable: "warn", suspect: "warn", waiting: "warn", stopping: "warn",
  left: "off", stopped: "off", unloaded: "off",
};

/** The state of a model, a peer or a download, in the node's own word for it; an unknown one counts as under way. */
export const StateBadge = ({ state }) => html`<${Badge} kind=${KINDS[state] ?? "busy"}>${state}<//>`;
