// One message of a conversation: what was asked, or an answer with what is known of how it came about.
import { clean, count, milliseconds, rate, seconds } from "../format.js";
import { html, signal, useEffect, useLayoutEffect, useRef, useState } from "../lib.js";
import { Badge } from "../parts/badge.js";
import { Button, CopyButton } from "../parts/button.js";
import { TextArea } from "../parts/field.js";
import { Failure } from "../parts/notice.js";
import { now } from "../store.js";
import { speedOf } from "./answer.js";
import { focused, toComposer } from "./focus.js";
import { again, resend } from "./session.js";

// Half of what the chat takes over the wire, and of no use before there is an answer.
const renderer = signal(null);
let loading = null;
const load = () => (loading ??= import("./markdown.js").then((module) => (renderer.value = module), () => (loading = null)));

/** Markdown that may still grow; as it was written until its renderer is there. */
function Markdown({ text, done }) {
  const box = useRef(null);
  const growing = useRef(null);
  const { Growing } = renderer.value ?? {};
  useLayoutEffect(() => {
    if (!Growing) return void load();
    growing.current ??= new Growing(box.current);
    growing.current.write(text, done);
  }, [text, done, Growing]);
  useEffect(() => () => growing.current?.stop(), []);
  return Growing
    ? html`<div key="drawn" class="chat-text" dir="auto" ref=${box}></div>`
    : html`<div key="plain" class="chat-text chat-plain" dir="auto">${text}</div>`;
}

/** What the model thought before it answered, folded. */
function Thoughts({ answer, live }) {
  const [open, setOpen] = useState(false);
  const { reasoning, thought, first } = answer;
  if (!reasoning) return null;
  const words = live && !thought ? `Thinking, ${seconds(Math.max(0, now.value - first) / 1000)}` : `Thought for ${milliseconds(thought)}`;
  return html`<details class="chat-thoughts" onToggle=${(event) => setOpen(event.currentTarget.open)}>
    <summary>${words}</summary>
    ${open && html`<div class="chat-plain" dir="auto">${reasoning}</div>`}
  </details>`;
}

/** An answer; `live` while it comes, `last` when it may be asked for again. */
export function Answer({ answer, live, last }) {
  const { content, state, error, finish, radius, resumed, node, where, asked, first, usage, model, pieces } = answer;
  const name = clean(model, 80);
  const speed = answer.speed || speedOf(answer);
  const facts = [
    node && html`<span title=${`Node ${node}`}>${where ? `${where} (${node})` : `node ${node}`}</span>`,
    first > 0 && html`<span>first token after ${milliseconds(first - asked)}</span>`,
    speed > 0 && html`<span>${rate(speed)} tokens/s</span>`,
    usage
      ? html`<span>${count(usage.prompt)} tokens read, ${count(usage.completion)} written</span>`
      : pieces > 0 && html`<span>${count(pieces)} ${pieces > 1 ? "tokens" : "token"}</span>`,
  ];
  return html`<article class="chat-turn chat-answer" aria-label=${`Answer of ${name}`} aria-busy=${live}>
    <header class="chat-who">${name}</header>
    <${Thoughts} answer=${answer} live=${live} />
    ${live && !pieces && html`<p class="loading">Waiting for the first token, ${seconds(Math.max(0, now.value - asked) / 1000)}</p>`}
    ${content && html`<${Markdown} text=${content} done=${!live} />`}
    <${Failure} error=${error} />
    <footer class="chat-facts">
      ${radius === "public" && html`<${Badge} kind="warn">answered by a stranger<//>`}
      ${resumed > 0 && html`<${Badge} kind="good">continued by another node${resumed > 1 ? `, ${resumed} times` : ""}<//>`}
      ${finish === "length" && html`<${Badge} kind="warn">cut at the limit of tokens<//>`}
      ${state === "stopped" && html`<${Badge}>stopped<//>`}
      ${facts}
      ${!live && html`<span class="chat-acts">
        ${content && html`<${CopyButton} text=${content} label="Copy the answer" />`}
        ${last && html`<${Button} icon="again" label=${error ? undefined : "Answer again"} onClick=${() => (again(), toComposer())}>${error && "Try again"}<//>`}
      </span>`}
    </footer>
  </article>`;
}

/** What was asked; it can be put in other words while no answer is under way. */
export function Question({ message, busy }) {
  const [words, setWords] = useState(null);
  const { id, content, images } = message;
  const done = (text) => {
    setWords(null);
    toComposer();
    if (text?.trim()) resend(id, text);
  };
  const keys = (event) => {
    if (event.key === "Escape") done();
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    done(words);
  };
  return html`<article class="chat-turn chat-question" aria-label="You">
    ${images?.length > 0 && html`<div class="chat-images">${images.map((url, at) => html`<img src=${url} alt=${`Image ${at + 1}`} />`)}</div>`}
    ${words === null
      ? html`<div class="chat-plain" dir="auto">${content}</div>
          <footer class="chat-acts">
            <${CopyButton} text=${content} label="Copy the question" />
            <${Button} icon="edit" label="Edit and ask again" disabled=${busy} onClick=${() => setWords(content)} />
          </footer>`
      : html`<form class="chat-edit" ref=${focused} onSubmit=${(event) => (event.preventDefault(), done(words))}>
          <${TextArea} class="input chat-input" aria-label="The question" value=${words} onInput=${setWords} onKeyDown=${keys} />
          <footer class="chat-acts">
            <${Button} onClick=${() => done()}>Cancel<//>
            <${Button} kind="primary" type="submit" disabled=${busy}>Ask again<//>
          </footer>
        </form>`}
  </article>`;
}
