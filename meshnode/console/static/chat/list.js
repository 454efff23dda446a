// The conversations that are kept in this browser.
import { ago } from "../format.js";
import { html, useSignal } from "../lib.js";
import { Button } from "../parts/button.js";
import { ask } from "../parts/confirm.js";
import { TextInput } from "../parts/field.js";
import { Loading } from "../parts/notice.js";
import { address } from "../store.js";
import { focused } from "./focus.js";
import { current, entries, forget, rename, runs } from "./session.js";

function Entry({ entry, onOpen }) {
  const words = useSignal(null);
  const { id, title, updated } = entry;
  const done = () => {
    if (words.value?.trim() && words.value !== title) rename(id, words.value.trim().slice(0, 100));
    words.value = null;
  };
  const keys = (event) => {
    if (event.key === "Escape") words.value = null;
    else if (event.key !== "Enter") return;
    event.stopPropagation();
    done();
  };
  const drop = async () => {
    const sure = await ask({ title: "Delete this conversation?", text: `“${title}” is kept nowhere else.`, action: "Delete", danger: true });
    if (sure) forget(id);
  };
  if (words.value !== null)
    return html`<li ref=${focused}><${TextInput} aria-label="Title" value=${words.value} onInput=${(text) => (words.value = text)} onKeyDown=${keys} onBlur=${done} /></li>`;
  return html`<li>
    <a href=${address("chat", id)} aria-current=${id === current.value.id ? "page" : undefined} onClick=${onOpen}>
      <span class="chat-title" dir="auto">${title}</span><small>${runs.value[id] ? "answering" : ago(updated / 1000)}</small>
    </a>
    <${Button} icon="edit" label=${`Rename ${title}`} onClick=${() => (words.value = title)} />
    <${Button} icon="trash" label=${`Delete ${title}`} onClick=${drop} />
  </li>`;
}

/** The list, with what concerns all of them. */
export function List({ onOpen, onExport }) {
  const known = entries.value;
  const dropAll = async () => {
    const text = `${known.length} conversations are kept nowhere else.`;
    if (await ask({ title: "Delete all conversations?", text, action: "Delete all", danger: true })) forget();
  };
  return html`<div class="chat-list" role="navigation" aria-label="Conversations">
    <a class="button" href=${address("chat", "new")} onClick=${onOpen}>New conversation</a>
    ${known === null ? html`<${Loading} what="Reading" />` : html`<ul>${known.map((entry) => html`<${Entry} key=${entry.id} entry=${entry} onOpen=${onOpen} />`)}</ul>`}
    <p class="muted">Kept in this browser only.</p>
    ${known?.length > 0 && html`<div class="chat-acts">
      <${Button} icon="download" onClick=${onExport}>Export<//>
      <${Button} icon="trash" onClick=${dropAll}>Delete all<//>
    </div>`}
  </div>`;
}
