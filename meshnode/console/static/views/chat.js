// Chat: a conversation with a model of the mesh. What is said stays in this browser and at the node that answers.
import { Composer } from "../chat/composer.js";
import { List } from "../chat/list.js";
import { Export, Options } from "../chat/options.js";
import { beyond, choose, current, model, radius, running, show, stop, talkers, trouble } from "../chat/session.js";
import { Answer, Question } from "../chat/turn.js";
import { clean, count } from "../format.js";
import { html, useEffect, useLayoutEffect, useRef, useSignal } from "../lib.js";
import { Button } from "../parts/button.js";
import { Dialog } from "../parts/dialog.js";
import { Select } from "../parts/field.js";
import { Empty, Loading, Notice } from "../parts/notice.js";
import { RADII } from "../radius.js";
import { address, peers, route, status, strangers } from "../store.js";

const NEAR_PX = 48;

/** Where a model runs, in words. */
function placeOf({ id, where, split }) {
  const others = [...peers.value, ...strangers.value].filter(({ models = [] }) => models.some((offer) => offer.id === id && offer.state === "ready"));
  const names = others.slice(0, 3).map(({ name, short }) => clean(name || short, 30));
  if (others.length > 3) names.push(`${others.length - 3} more`);
  if (where === "here") names.unshift(split ? "this node, with others" : "this node");
  return names.length ? `on ${names.join(", ")}` : where;
}

function Picker() {
  const known = talkers.value;
  const chosen = known.find(({ id }) => id === model.value);
  const options = known.map((one) => ({
    value: one.id,
    label: [clean(one.id, 60), placeOf(one), one.context_length > 0 && `${count(one.context_length)} tokens`, one.state !== "ready" && one.state, beyond(one) && "too far"]
      .filter(Boolean).join(" · "),
  }));
  if (model.value && !chosen) options.unshift({ value: model.value, label: `${clean(model.value, 60)} · not served now` });
  return html`<${Select} aria-label="Model" value=${model.value} options=${options} onChange=${choose} />`;
}

/** The chosen model is served, but nowhere that this conversation may go. */
function TooFar() {
  const chosen = talkers.value.find(({ id }) => id === model.value);
  if (!chosen || !beyond(chosen)) return null;
  const who = chosen.radius === "public" ? "strangers" : "friends";
  return html`<${Notice} kind="info" title=${`Only ${who} serve ${clean(chosen.id, 60)}`}>
    This conversation goes no further than: ${RADII[radius.value][0].toLowerCase()}. Under
    ${" "}<a href=${address("public")}>Public</a> you say how far requests may go.
  <//>`;
}

/** The answer under way: the only thing that is drawn anew with each piece of it. */
const Live = () => running.value && html`<${Answer} answer=${running.value.answer.value} live />`;

/** The messages. They follow the answer as long as the reader is at their end. */
function Log() {
  const box = useRef(null);
  const at = useRef({ follows: true, top: 0 });
  const away = useSignal(false);
  const { id, messages } = current.value;
  const toEnd = () => {
    if (!box.current) return;
    at.current.follows = true;
    away.value = false;
    box.current.scrollTop = box.current.scrollHeight;
  };
  const scrolled = () => {
    if (!box.current) return;
    const { scrollTop, scrollHeight, clientHeight } = box.current;
    const near = scrollHeight - scrollTop - clientHeight < NEAR_PX;
    if (near) at.current.follows = true;
    else if (scrollTop < at.current.top - 1) at.current.follows = false; // what merely grew has not been left
    at.current.top = scrollTop;
    away.value = !near && !at.current.follows;
  };
  useLayoutEffect(toEnd, [id, messages.length]);
  useEffect(() => {
    const observer = new ResizeObserver(() => at.current.follows && toEnd());
    observer.observe(box.current.firstChild);
    observer.observe(box.current);
    return () => observer.disconnect();
  }, []);
  const busy = !!running.value;
  return html`<div class="chat-log" ref=${box} onScroll=${scrolled} role="log" aria-live="off" aria-label="Conversation" tabindex="0">
      <div class="chat-turns">
        ${messages.length === 0 && html`<${Empty} title="A new conversation">
          Ask anything. What is said is kept in this browser only, and seen by the node that answers.
        <//>`}
        ${messages.map((message, index) =>
          message.role === "user"
            ? html`<${Question} key=${message.id} message=${message} busy=${busy} />`
            : html`<${Answer} key=${message.id} answer=${message} last=${!busy && index === messages.length - 1} />`)}
        <${Live} key="live" />
      </div>
    </div>
    ${away.value && html`<${Button} class="button quiet chat-end" icon="down" onClick=${toEnd}>To the end<//>`}`;
}

export default function View() {
  const dialog = useSignal("");
  const [id] = route.value.rest;
  useEffect(() => void show(id), [id]);
  useEffect(() => {
    const keys = (event) => event.key === "Escape" && !document.querySelector("dialog[open]") && stop();
    addEventListener("keydown", keys);
    return () => removeEventListener("keydown", keys);
  }, []);
  const close = () => (dialog.value = "");
  const { system, parameters, radius: chosen } = current.value;
  const set = Object.keys(parameters).length + !!system.trim() + !!chosen;
  const open = (name) => () => (dialog.value = name);
  if (!status.value) return html`<${Loading} what="Asking the node for its models" />`;
  return html`<div class="chat">
    <h1 class="unseen">Chat</h1>
    <div class="chat-side"><${List} onExport=${open("export")} /></div>
    <section class="chat-main" aria-label="Conversation">
      <header class="chat-head">
        <${Button} class="button quiet chat-narrow" onClick=${open("list")}>Conversations<//>
        <${Picker} />
        <${Button} icon="settings" label="System prompt and parameters" onClick=${open("options")}>${set > 0 && `${set} set`}<//>
        <${Button} icon="download" label="Export" onClick=${open("export")} />
      </header>
      ${trouble.value && html`<${Notice} kind="warn" title=${trouble.value.title}>${trouble.value.text}<//>`}
      <${TooFar} />
      ${!talkers.value.length && html`<${Empty} title="No model answers now">
        <a href=${address("models")}>Load a model</a>, or join a mesh that has one.
      <//>`}
      <${Log} />
      <${Composer} />
    </section>
    ${dialog.value === "options" && html`<${Options} onClose=${close} />`}
    ${dialog.value === "export" && html`<${Export} onClose=${close} />`}
    ${dialog.value === "list" && html`<${Dialog} open title="Conversations" onClose=${close}><${List} onOpen=${close} onExport=${open("export")} /><//>`}
  </div>`;
}
