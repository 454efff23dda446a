// Bars: what a whole consists of, and how far something has come.
import { bytes, count, percent } from "../format.js";
import { html } from "../lib.js";

/**
 * A whole and its parts, as a picture with its words and as a legend with numbers.
 * parts: [{kind, label, bytes}]; a kind is one of the memory kinds and gives the colour. Empty parts are not drawn.
 */
export const StackBar = ({ label, total, parts, format = bytes }) => {
  const shown = parts.filter((part) => part.bytes > 0);
  const words = shown.map((part) => `${part.label} ${format(part.bytes)}`).join(", ");
  return html`
    <div class="stack">
      <div class="stack-bar" role="img" aria-label=${`${label}: ${words || "nothing"} of ${format(total)}`}>
        ${shown.map((part) => html`
          <span key=${part.kind + part.label} class=${`stack-part kind-${part.kind}`} style=${{ flexGrow: part.bytes / (total || 1) }}
            title=${`${part.label}: ${format(part.bytes)} (${percent(part.bytes, total)})`}></span>
        `)}
      </div>
      <ul class="legend">
        ${shown.map((part) => html`
          <li key=${part.kind + part.label}>
            <span class=${`swatch kind-${part.kind}`}></span>
            <span class="legend-name">${part.label}</span> <span class="number">${format(part.bytes)}</span>
          </li>
        `)}
      </ul>
    </div>
  `;
};

/** How far something is; without a total it only says that it goes on. unit: "bytes", or what is counted. */
export const Progress = ({ label, done, total, unit = "", hint }) => {
  const known = typeof total === "number" && total > 0;
  const size = unit === "bytes" ? bytes : (n) => `${count(n)}${unit ? ` ${unit}` : ""}`;
  const amount = known ? `${size(done)} of ${size(total)}` : done ? size(done) : "";
  return html`
    <div class="progress">
      <div class="progress-words">
        <span>${label}</span>
        <span class="number muted">${[amount, known && percent(done, total), hint].filter(Boolean).join(" · ")}</span>
      </div>
      <div class=${`progress-track ${known ? "" : "endless"}`} role="progressbar" aria-label=${label} aria-valuemin="0"
        aria-valuemax=${known ? total : undefined} aria-valuenow=${known ? done : undefined} aria-valuetext=${amount || "under way"}>
        <span style=${{ width: known ? `${Math.min(100, (100 * done) / total)}%` : "30%" }}></span>
      </div>
    </div>
  `;
};
