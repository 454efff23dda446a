// The system prompt and the sampling parameters of the open conversation, and ways to take conversations elsewhere.
import { html, useSignal } from "../lib.js";
import { Button } from "../parts/button.js";
import { Dialog } from "../parts/dialog.js";
import { Field, Select, TextArea, TextInput } from "../parts/field.js";
import { PLAINLY, RADII, named, usual } from "../radius.js";
import { address } from "../store.js";
import { PARAMETERS, asJson, asMarkdown, faultOf, titleOf, withParameter } from "./conversation.js";
import { change, current, exported } from "./session.js";

/** How far the open conversation may go. */
function Reach() {
  const { radius = "" } = current.value;
  const chosen = named(radius);
  const nameOf = (each) => RADII[each][0].toLowerCase();
  const options = [
    { value: "", label: `as the node says: ${nameOf(usual.value)}` },
    ...Object.keys(RADII).map((value) => ({ value, label: nameOf(value) })),
  ];
  const hint = html`${RADII[chosen || usual.value][1]}${(chosen || usual.value) === "public" && ` ${PLAINLY}`}
    ${" "}<a href=${address("public")}>What the node says is changed under Public</a>.`;
  return html`<${Field} label="How far it may go" hint=${hint}>
    <${Select} value=${chosen} options=${options} onChange=${(value) => change((conversation) => ({ ...conversation, radius: value }))} />
  <//>`;
}

/** What the open conversation is asked with. Changes hold from the next answer on. */
export function Options({ onClose }) {
  const { system, parameters } = current.value;
  const typed = useSignal({});
  const set = (key, value) => change((conversation) => withParameter(conversation, key, value));
  const number = (parameter, words) => {
    const fault = faultOf(parameter, words);
    typed.value = { ...typed.value, [parameter.key]: fault && { words, fault } };
    if (!fault) set(parameter.key, words === "" ? "" : Number(words));
  };
  const reset = () => {
    typed.value = {};
    change((conversation) => ({ ...conversation, parameters: {} }));
  };
  return html`<${Dialog} open title="Options of this conversation" onClose=${onClose}
    actions=${html`<${Button} onClick=${reset}>Defaults<//><${Button} kind="primary" onClick=${onClose}>Done<//>`}>
    <${Field} label="System prompt" hint="What the model is told before everything else">
      <${TextArea} rows="4" value=${system} onInput=${(words) => change((conversation) => ({ ...conversation, system: words }))} />
    <//>
    <${Reach} />
    <div class="chat-fields">
      ${PARAMETERS.map((parameter) => {
        const { key, label, hint } = parameter;
        const wrong = typed.value[key];
        return html`<${Field} key=${key} label=${label} hint=${hint} error=${wrong?.fault}>
          <${TextInput} inputmode="decimal" placeholder="default" value=${wrong ? wrong.words : parameters[key] ?? ""} onInput=${(words) => number(parameter, words.trim())} />
        <//>`;
      })}
    </div>
    <${Field} label="Stop at" hint="The answer ends before any of these texts, one a line">
      <${TextArea} rows="2" placeholder="default" value=${(parameters.stop ?? []).join("\n")} onInput=${(words) => set("stop", words.split("\n").filter(Boolean))} />
    <//>
  <//>`;
}

function download(text, name, type) {
  const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(new Blob([text], { type })), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

/** Conversations as files. */
export function Export({ onClose }) {
  const one = current.value;
  const name = titleOf(one).replace(/[^\p{L}\p{N}]+/gu, "-").slice(0, 40) || "conversation";
  const json = "application/json";
  return html`<${Dialog} open title="Export" onClose=${onClose}>
    <p>Files are written by this browser; nothing is sent anywhere.</p>
    <div class="column">
      <${Button} icon="download" disabled=${!one.messages.length} onClick=${() => download(asMarkdown(one), `${name}.md`, "text/markdown")}>This conversation, Markdown<//>
      <${Button} icon="download" disabled=${!one.messages.length} onClick=${() => download(asJson([one]), `${name}.json`, json)}>This conversation, JSON<//>
      <${Button} icon="download" onClick=${async () => download(await exported(), "meshnode-conversations.json", json)}>All conversations, JSON<//>
    </div>
  <//>`;
}
