// A titled area of a view, and a single figure.
import { html } from "../lib.js";

/** An area with its title (an h2, unless `level` says otherwise) and what can be done about all of it. */
export const Card = ({ title, actions, children, level = 2, class: extra = "" }) => html`
  <section class=${`card ${extra}`}>
    ${(title || actions) && html`
      <header class="card-head">
        ${title && html`<${`h${level}`} class="card-title">${title}<//>`}
        ${actions && html`<div class="card-actions">${actions}</div>`}
      </header>
    `}
    ${children}
  </section>
`;

/** One figure with what it counts; several stand in a `<dl class="stats">`. */
export const Stat = ({ label, value, hint }) => html`
  <div class="stat">
    <dt>${label}</dt>
    <dd><span class="stat-value">${value}</span>${hint && html`<span class="stat-hint">${hint}</span>`}</dd>
  </div>
`;
