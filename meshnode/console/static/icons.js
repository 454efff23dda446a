// Small line drawings on a grid of 16, made for this page. They say nothing that words do not say as well.
import { html } from "./lib.js";

const SHAPES = {
  meshnode: "M8 2.2 2.5 12h11zM8 .9a1.3 1.3 0 1 0 0 2.6A1.3 1.3 0 0 0 8 .9M2.5 10.7a1.3 1.3 0 1 0 0 2.6 1.3 1.3 0 0 0 0-2.6M13.5 10.7a1.3 1.3 0 1 0 0 2.6 1.3 1.3 0 0 0 0-2.6",
  overview: "M2.5 9.5a5.5 5.5 0 0 1 11 0M8 9.5l2.5-3M2 12.5h12",
  mesh: "M8 2.6v4M6.4 9.4 3.8 11.6M9.6 9.4l2.6 2.2M8 6.4a1.9 1.9 0 1 0 0 3.8 1.9 1.9 0 0 0 0-3.8M8 1.4v1M2.6 12.6h1M12.4 12.6h1",
  memory: "M4 4h8v8H4zM6 1.8V4M10 1.8V4M6 12v2.2M10 12v2.2M1.8 6H4M1.8 10H4M12 6h2.2M12 10h2.2",
  models: "m8 1.8 5.5 3v6.4l-5.5 3-5.5-3V4.8zM2.7 4.9 8 7.8l5.3-2.9M8 7.8v6.2",
  chat: "M2.5 3h11v8h-6l-3 2.6V11h-2z",
  requests: "M2 4h2M6.5 4H14M2 8h2M6.5 8H14M2 12h2M6.5 12H14",
  invite: "M6.5 8a2.5 2.5 0 1 0 0-5 2.5 2.5 0 0 0 0 5M2 13.5c0-2.5 2-4 4.5-4 1 0 1.9.2 2.6.6M12 9v5M9.5 11.5h5",
  public: "M8 1.8a6.2 6.2 0 1 0 0 12.4A6.2 6.2 0 0 0 8 1.8M2 8h12M8 1.8c-4.4 3.7-4.4 8.7 0 12.4M8 1.8c4.4 3.7 4.4 8.7 0 12.4",
  agents: "m2.5 4 3.5 4-3.5 4M8 12.5h5.5",
  settings: "M2 4.5h6M12 4.5h2M2 11.5h2M8 11.5h6M10 2.7v3.6M6 9.7v3.6",
  spending: "M2 4.5h12v8H2zM2 7.3h12M4.5 10.2h2.5",
  copy: "M5.5 5.5h8v8h-8zM3.5 10.5h-1v-8h8v1",
  check: "m3 8.5 3.2 3.2L13 4.8",
  cross: "m4 4 8 8M12 4l-8 8",
  good: "M8 1.8a6.2 6.2 0 1 0 0 12.4A6.2 6.2 0 0 0 8 1.8M5.3 8.2l2 2 3.5-4",
  warn: "M8 2.2 14.3 13.5H1.7zM8 6.5v3.3M8 11.5v.2",
  bad: "M5.5 1.9h5l3.6 3.6v5l-3.6 3.6h-5l-3.6-3.6v-5zM6 6l4 4M10 6l-4 4",
  info: "M8 1.8a6.2 6.2 0 1 0 0 12.4A6.2 6.2 0 0 0 8 1.8M8 7.3v3.9M8 4.8v.2",
  busy: "M8 1.8a6.2 6.2 0 1 1-6.2 6.2",
  off: "M8 1.8a6.2 6.2 0 1 0 0 12.4A6.2 6.2 0 0 0 8 1.8M5.5 8h5",
  up: "M8 13V3.5M4 7.3l4-4 4 4",
  down: "M8 3v9.5M4 8.7l4 4 4-4",
  right: "m6 3.5 4.5 4.5L6 12.5",
  link: "M6.5 9.5l3-3M7 4.5l1.5-1.5a3 3 0 0 1 4.5 4.5L11.5 9M9 11.5 7.5 13A3 3 0 0 1 3 8.5L4.5 7",
  search: "M7 2.5a4.5 4.5 0 1 0 0 9 4.5 4.5 0 0 0 0-9M10.3 10.3l3.4 3.4",
  sun: "M8 5.2a2.8 2.8 0 1 0 0 5.6 2.8 2.8 0 0 0 0-5.6M8 1.5v1.3M8 13.2v1.3M1.5 8h1.3M13.2 8h1.3M3.4 3.4l.9.9M11.7 11.7l.9.9M12.6 3.4l-.9.9M4.3 11.7l-.9.9",
  moon: "M13.5 9.8A6 6 0 1 1 6.2 2.5a4.8 4.8 0 0 0 7.3 7.3",
  half: "M8 1.8a6.2 6.2 0 1 0 0 12.4A6.2 6.2 0 0 0 8 1.8M8 1.8v12.4M10 4v8M12 5.5v5",
  stop: "M4 4h8v8H4z",
  again: "M13 8a5 5 0 1 1-1.5-3.6M13 2.5v2.8h-2.8",
  edit: "m3 13 .7-3L10.5 3.2l2.3 2.3L6 12.3zM9 4.7 11.3 7",
  trash: "M2.5 4.5h11M6 4.5v-2h4v2M4 4.5l.7 9h6.6l.7-9",
  plus: "M8 3v10M3 8h10",
  download: "M8 2v8M4.5 7 8 10.5 11.5 7M2.5 13.5h11",
};

/** A drawing of the list above; hidden from screen readers, as words stand beside it. */
export const Icon = ({ name, size = 16 }) => html`
  <svg class=${`icon icon-${name}`} width=${size} height=${size} viewBox="0 0 16 16" aria-hidden="true" focusable="false">
    <path d=${SHAPES[name] ?? SHAPES.info} />
  </svg>
`;
