// The polite live region: sentences for people who do not see the page change. The shell shows it once.
import { html, signal } from "../lib.js";

const said = signal("");
let turn = false;

/** Say a sentence when the reader is free. The same sentence twice is said twice. */
export const announce = (text) => {
  turn = !turn;
  said.value = text ? `${text}${turn ? "" : "\u00a0"}` : "";
};

/** The region itself. */
export const LiveRegion = () => html`<div class="unseen" role="status" aria-live="polite">${said}</div>`;
