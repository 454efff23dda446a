// A question before something that cannot be taken back. The shell shows it once.
import { html, signal } from "../lib.js";
import { Button } from "./button.js";
import { Dialog } from "./dialog.js";

const asked = signal(null);

/** Resolves to true when the person agrees. `action` is the word on the button: "Remove". */
export const ask = ({ title, text, action = "Go on", danger = false }) =>
  new Promise((resolve) => {
    asked.value?.resolve(false);
    asked.value = { title, text, action, danger, resolve };
  });

const answer = (yes) => {
  const { resolve } = asked.value;
  asked.value = null;
  resolve(yes);
};

/** Where the question appears. */
export const Confirmation = () => {
  const now = asked.value;
  return now && html`
    <${Dialog} open title=${now.title} onClose=${() => answer(false)} actions=${html`
      <${Button} onClick=${() => answer(false)} autofocus=${now.danger}>Cancel<//>
      <${Button} kind=${now.danger ? "danger" : "primary"} onClick=${() => answer(true)} autofocus=${!now.danger}>${now.action}<//>
    `}>
      <p>${now.text}</p>
    <//>
  `;
};
