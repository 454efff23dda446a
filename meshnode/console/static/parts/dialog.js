// A modal dialog. The browser keeps the focus inside and closes it with Escape; the focus goes back where it was.
import { html, useLayoutEffect, useRef } from "../lib.js";
import { Button } from "./button.js";

let made = 0;

/** `onClose` is called when the person closes it; whoever shows it then passes `open` as false. */
export const Dialog = ({ open, title, onClose, children, actions }) => {
  const box = useRef(null);
  const id = useRef(null);
  id.current ??= `dialog-${(made += 1)}`;
  useLayoutEffect(() => {
    if (!open) return undefined;
    const before = document.activeElement;
    const dialog = box.current;
    dialog.showModal();
    return () => {
      if (dialog.open) dialog.close();
      if (before?.isConnected) before.focus();
    };
  }, [open]);
  if (!open) return null;
  const cancel = (event) => {
    event.preventDefault();
    onClose();
  };
  return html`
    <dialog ref=${box} aria-labelledby=${id.current} onCancel=${cancel} onClick=${(event) => event.target === box.current && onClose()}>
      <div class="dialog-body">
        <header class="card-head">
          <h2 id=${id.current} class="card-title">${title}</h2>
          <${Button} icon="cross" label="Close" onClick=${onClose} />
        </header>
        ${children}
        ${actions && html`<footer class="dialog-actions">${actions}</footer>`}
      </div>
    </dialog>
  `;
};
