// Buttons, and the one that copies a text.
import { Icon } from "../icons.js";
import { html, useEffect, useState } from "../lib.js";
import { announce } from "./announce.js";

/** A button. `label` names it for screen readers where the children are a drawing; a busy one does nothing. */
export const Button = ({ kind = "quiet", busy = false, disabled, onClick, label, icon, children, type = "button", ...rest }) => html`
  <button
    type=${type} class=${`button ${kind} ${children ? "" : "bare"}`} disabled=${disabled} aria-busy=${busy || undefined}
    aria-label=${label} title=${children ? undefined : label} onClick=${busy ? undefined : onClick} ...${rest}
  >
    ${busy ? html`<${Icon} name="busy" />` : icon && html`<${Icon} name=${icon} />`}${children}
  </button>
`;

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // Not a secure context, as when the page is opened by the name of a machine: the old way still works there.
    const area = Object.assign(document.createElement("textarea"), { value: text, className: "unseen" });
    (document.querySelector("dialog[open]") ?? document.body).append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    if (!done) throw new Error("the browser does not let the page copy");
  }
}

/** Copies `text`, a string or a function that makes it; `label` says what it is: "Copy the API address". */
export const CopyButton = ({ text, label = "Copy", children }) => {
  const [state, setState] = useState("");
  useEffect(() => {
    const timer = state && setTimeout(() => setState(""), 1600);
    return () => clearTimeout(timer);
  }, [state]);
  const run = async () => {
    try {
      await copy(typeof text === "function" ? text() : text);
      setState("check");
      announce("Copied");
    } catch {
      setState("cross");
      announce("Not copied: the browser does not let the page copy");
    }
  };
  return html`<${Button} icon=${state || "copy"} label=${label} onClick=${run} data-state=${state}>${children}<//>`;
};
