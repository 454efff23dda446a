// Where questions are written.
import { html, useEffect, useRef, useSignal } from "../lib.js";
import { announce } from "../parts/announce.js";
import { Button } from "../parts/button.js";
import { TextArea } from "../parts/field.js";
import { toComposer } from "./focus.js";
import { MOST_IMAGES, imagesIn, shrunk } from "./images.js";
import { current, draft, model, running, sees, send, stop } from "./session.js";

/** The text field with its images, and the button that sends or stops. */
export function Composer() {
  const { text, images } = draft.value;
  const fault = useSignal("");
  const file = useRef(null);
  const busy = !!running.value;
  useEffect(toComposer, [current.value.id]);

  const add = async (files) => {
    fault.value = "";
    for (const one of imagesIn(files)) {
      if (draft.value.images.length >= MOST_IMAGES) fault.value = `At most ${MOST_IMAGES} images`;
      else
        try {
          const url = await shrunk(one);
          draft.value = { ...draft.value, images: [...draft.value.images, url] };
          announce("Image added");
        } catch {
          fault.value = "This file is not an image that the browser can read";
        }
    }
  };
  const submit = (event) => {
    event?.preventDefault();
    if (busy || !model.value || !(text.trim() || images.length)) return;
    draft.value = { text: "", images: [] };
    send(text, images);
  };
  const keys = (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    submit();
  };
  const pasted = (event) => {
    if (!sees.value || !imagesIn(event.clipboardData?.files).length) return;
    event.preventDefault();
    add(event.clipboardData.files);
  };
  const dropped = (event) => {
    if (!sees.value || !event.dataTransfer?.types.includes("Files")) return;
    event.preventDefault();
    if (event.type === "drop") add(event.dataTransfer.files);
  };
  return html`<form class="chat-composer" onSubmit=${submit} onDragOver=${dropped} onDrop=${dropped}>
    ${fault.value && html`<p class="field-error" role="alert">${fault.value}</p>`}
    ${images.length > 0 && html`<ul class="chat-images">${images.map((url, at) => html`<li key=${url}>
      <img src=${url} alt=${`Image ${at + 1}`} />
      <${Button} icon="cross" label=${`Remove image ${at + 1}`} onClick=${() => (draft.value = { text, images: images.filter((_, other) => other !== at) })} />
    </li>`)}</ul>`}
    <${TextArea} class="input chat-input" rows="1" aria-label="Your message" placeholder=${model.value ? "Ask something" : "No model answers now"}
      value=${text} onInput=${(words) => (draft.value = { ...draft.value, text: words })} onKeyDown=${keys} onPaste=${pasted} />
    <div class="chat-acts">
      ${sees.value && html`<input ref=${file} type="file" accept="image/*" multiple hidden onChange=${(event) => (add(event.target.files), (event.target.value = ""))} />
        <${Button} icon="plus" label="Add images" onClick=${() => file.current.click()} />`}
      <span class="muted">Enter sends, Shift+Enter begins a line${busy ? ", Esc stops" : ""}</span>
      ${busy
        ? html`<${Button} kind="primary" icon="stop" onClick=${() => (stop(), toComposer())}>Stop<//>`
        : html`<${Button} kind="primary" icon="up" type="submit" disabled=${!model.value || !(text.trim() || images.length)}>Send<//>`}
    </div>
  </form>`;
}
