// What the chat view shows and does: the conversations, the one that is open, and the answers that are under way.
// Answers go on while the reader looks at another view or conversation.
import { open as call } from "../api.js";
import { clean } from "../format.js";
import { batch, computed, signal } from "../lib.js";
import { announce } from "../parts/announce.js";
import { named, radiusIn, reaches, usual } from "../radius.js";
import { address, go, models, node, peers, route, strangers } from "../store.js";
import { LOST, begin, errorOf, finish, sentences, take } from "./answer.js";
import * as talk from "./conversation.js";
import { Full, LIMIT_BYTES, clear, entries as readEntries, load, loadAll, remove, save } from "./storage.js";
import { readStream } from "./stream.js";

const SPEAK_MS = 4000;
const KEEP_MS = 3000;
const MODEL = "meshnode.chat.model";
const CUT_OFF = { code: "page-closed", message: "The page was closed before the answer was complete", fix: "" };

// Leaving the page ends its answers like a lost connection does, and there is still time to keep them.
let leaving = false;
addEventListener("pagehide", () => (leaving = true));
addEventListener("pageshow", () => (leaving = false));

/** Conversations without their messages, newest first; null before they were read. */
export const entries = signal(null);
/** The conversation that is open. */
export const current = signal(talk.fresh(newId(), "", Date.now()));
/** Answers under way: conversation id -> {answer (signal), conversation, stop}. */
export const runs = signal({});
/** What is being written: {text, images}. */
export const draft = signal({ text: "", images: [] });
/** Why conversations are not kept, or null: {title, text}. */
export const trouble = signal(null);
/** The run of the open conversation. */
export const running = computed(() => runs.value[current.value.id]);

/** How far the open conversation goes. */
export const radius = computed(() => named(current.value.radius) || usual.value);

/** Whether only nodes beyond that serve a model. */
export const beyond = ({ radius: nearest }) => !reaches(radius.value, radiusIn(nearest) || "local");

/** Models that answer in words: those that the open conversation gets to, and of these that are ready, first. */
export const talkers = computed(() =>
  models.value
    .filter(({ capabilities = [] }) => !capabilities.length || capabilities.some((one) => one === "chat" || one === "completion"))
    .sort((a, b) => beyond(a) - beyond(b) || (b.state === "ready") - (a.state === "ready")),
);

/** The model that the open conversation goes to: its own, or the one last used, or the first. */
export const model = computed(() => {
  const own = current.value.model;
  if (own) return own;
  const last = remembered();
  return (talkers.value.find(({ id }) => id === last) ?? talkers.value[0])?.id ?? "";
});

/** Whether that model takes images. */
export const sees = computed(() => !!talkers.value.find(({ id }) => id === model.value)?.capabilities?.includes("vision"));

function newId() {
  return Array.from(crypto.getRandomValues(new Uint8Array(8)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

function remembered() {
  try {
    return localStorage.getItem(MODEL);
  } catch {
    return null;
  }
}

// --- what is kept ----------------------------------------------------------------------------------------------------

function failed(reason) {
  const text =
    reason instanceof Full
      ? `Conversations take ${LIMIT_BYTES >> 20} MB in this browser, or it has no more room. Delete some, after exporting what you need.`
      : "This browser keeps nothing for this page, as in a private window. Export what you need before you close it.";
  trouble.value = { title: "This conversation is not kept", text };
}

async function keep(conversation) {
  try {
    const others = entries.value ?? (await readEntries());
    const entry = await save(conversation, talk.titleOf(conversation), others);
    const left = (entries.value ?? others).filter(({ id }) => id !== entry.id);
    entries.value = [entry, ...left].sort((a, b) => b.updated - a.updated);
    trouble.value = null;
    news?.postMessage(entry.id);
  } catch (reason) {
    failed(reason);
  }
}

const news = "BroadcastChannel" in self ? new BroadcastChannel("meshnode-chat") : null;
if (news)
  news.onmessage = async ({ data }) => {
    await refresh(); // another tab has changed something
    const kept = data === current.value.id && !running.value && (await load(data).catch(() => null));
    if (kept) current.value = whole(kept);
  };

async function refresh() {
  try {
    entries.value = await readEntries();
  } catch (reason) {
    entries.value = [];
    failed(reason);
  }
}

/** Show a conversation; "new" begins one. Without an id the one that is open stays. */
export async function show(id) {
  if (!entries.value) await refresh();
  if (route.value.view !== "chat") return;
  if (!id && current.value.messages.length) return location.replace(address("chat", current.value.id));
  if (!id || id === current.value.id) return;
  const kept = runs.value[id]?.conversation ?? (await load(id).catch(() => null));
  if (route.value.rest[0] !== id) return; // the reader has gone on
  current.value = kept ? whole(kept) : talk.fresh(newId(), "", Date.now());
}

const whole = (kept) => ({ ...kept, messages: kept.messages.map(mended) });
const mended = (message) =>
  ["waiting", "running"].includes(message.state) ? { ...message, state: "failed", error: message.error ?? CUT_OFF } : message;

/** Change the open conversation by a function, and keep it if anything was said in it. */
export function change(by) {
  const changed = by(current.value);
  const run = runs.value[changed.id];
  if (run) run.conversation = by(run.conversation);
  current.value = changed;
  if (changed.messages.length && !run) keep(changed);
}

/** Another model for the open conversation, and for those that begin after it. */
export function choose(id) {
  change((conversation) => ({ ...conversation, model: id }));
  try {
    localStorage.setItem(MODEL, id);
  } catch {
    // then only for this conversation
  }
}

/** Give a kept conversation a name. */
export async function rename(id, title) {
  if (id === current.value.id) return change((conversation) => ({ ...conversation, title }));
  const kept = await load(id);
  if (kept) await keep({ ...kept, title });
}

/** Forget one conversation, or all without an id. */
export async function forget(id) {
  for (const [key, run] of Object.entries(runs.value)) if (!id || key === id) run.drop();
  await (id ? remove(id) : clear()).catch(failed);
  news?.postMessage(id ?? "");
  await refresh();
  if (!id || id === current.value.id) go("chat", "new");
}

/** Everything that is kept, as JSON. */
export const exported = async () => talk.asJson(await loadAll());

// --- answers ---------------------------------------------------------------------------------------------------------

/** Ask something in the open conversation. */
export const send = (text, images = []) =>
  answer(talk.added(current.value, { id: newId(), role: "user", content: text, images }));

/** Ask the last question again. */
export const again = () => answer(talk.unanswered(current.value));

/** Put a question in other words: what came after it goes. */
export const resend = (id, text) => answer(talk.edited(current.value, id, text));

/** End the answer under way. */
export const stop = () => running.value?.stop();

async function answer(asked) {
  if (!asked || running.value || !model.value) return;
  const conversation = { ...asked, model: model.value, updated: Date.now() };
  const { id } = conversation;
  const draft = begin(newId(), conversation.model, Date.now());
  const abort = new AbortController();
  const run = { conversation, answer: signal({ ...draft }), stop: () => abort.abort(), dropped: false };
  run.drop = () => {
    run.dropped = true;
    abort.abort();
  };
  batch(() => {
    current.value = conversation;
    runs.value = { ...runs.value, [id]: run };
  });
  go("chat", id);
  keep(conversation);

  let frame = 0;
  const soon = () => {
    frame ||= requestAnimationFrame(() => {
      frame = 0;
      run.answer.value = { ...draft };
    });
  };
  let spoken = 0;
  const speak = (end) => {
    const { say, upto } = sentences(draft.content, spoken, end !== undefined);
    spoken = upto;
    if ((say || end) && current.value.id === id) announce(`${say} ${end ?? ""}`.trim());
  };
  const timers = [
    setInterval(() => speak(), SPEAK_MS),
    setInterval(() => draft.pieces && !run.dropped && keep(talk.added(run.conversation, { ...draft })), KEEP_MS),
  ];
  let error = null;
  try {
    const furthest = named(conversation.radius);
    const headers = furthest ? { "x-meshnode-radius": furthest } : {};
    const body = talk.requestBody(conversation, sees.value);
    const response = await call("v1/chat/completions", body, { signal: abort.signal, headers });
    draft.node = response.headers.get("x-meshnode-node") ?? "";
    draft.radius = radiusIn(response.headers.get("x-meshnode-radius"));
    draft.where = nameOf(draft.node);
    await readStream(response.body, (items) => {
      const now = Date.now();
      for (const item of items) take(draft, item, now);
      soon();
    });
  } catch (reason) {
    error = reason.code ? errorOf(reason) : leaving ? CUT_OFF : LOST;
  }
  timers.forEach(clearInterval);
  cancelAnimationFrame(frame);
  const ended = finish(draft, Date.now(), { error, stopped: abort.signal.aborted });
  const answered = { ...talk.added(run.conversation, ended), updated: Date.now() };
  const { [id]: _, ...others } = runs.value;
  batch(() => {
    if (current.value.id === id) current.value = answered;
    runs.value = others;
  });
  if (run.dropped) return;
  speak(ended.error ? "" : ended.state === "stopped" ? "Stopped." : "The answer is complete.");
  keep(answered);
}

/** The name of a node by the first ten digits of its id; empty when unknown. */
function nameOf(short) {
  if (short === node.value?.short) return clean(node.value.name, 40);
  const known = [...peers.value, ...strangers.value].find((peer) => peer.short === short);
  return clean(known?.name ?? "", 40);
}
