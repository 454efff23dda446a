// What the page knows: the status of the node as it comes over /api/events, the route, and choices of the person.
//
// A `change` replaces whole members of the status. Whatever inside them is equal to what was there keeps its identity,
// so a computed signal that reads one member, or one peer of it, stops there when nothing of that changed.
import { open, renewToken } from "./api.js";
import { batch, computed, effect, signal } from "./lib.js";

/** The whole of /api/status, or null before the first snapshot. Prefer `member(name)`: it runs less often. */
export const status = signal(null);
/** "connecting", "live" or "lost". */
export const connection = signal("connecting");
/** When the node was lost (ms), null while it is there. */
export const lostSince = signal(null);
/** When the next attempt to reach the node is made (ms), null when none is due. */
export const retryAt = signal(null);
/** The time in ms; ticks once a second while the page is seen. */
export const now = signal(Date.now());

const members = new Map();
const NONE = [];

/** The signal of one top-level member of the status. */
export const member = (name) => {
  if (!members.has(name)) members.set(name, computed(() => status.value?.[name] ?? null));
  return members.get(name);
};

export const node = member("node");
export const models = computed(() => member("models").value ?? NONE);
export const peers = computed(() => member("mesh").value?.peers ?? NONE);
/** Members of the public mesh. */
export const strangers = computed(() => member("swarm").value?.peers ?? NONE);
export const problems = computed(() => member("problems").value ?? NONE);

/** `fresh`, with every part that equals its counterpart in `old` replaced by that. */
export const share = (old, fresh) => {
  if (old === fresh || !old || !fresh || typeof old !== "object" || typeof fresh !== "object") return fresh;
  if (Array.isArray(old) !== Array.isArray(fresh)) return fresh;
  const keys = Object.keys(fresh);
  let same = keys.length === Object.keys(old).length;
  for (const key of keys) {
    fresh[key] = share(old[key], fresh[key]);
    same &&= fresh[key] === old[key];
  }
  return same ? old : fresh;
};

// --- events ----------------------------------------------------------------------------------------------------------

const SILENCE_MS = 40_000; // the node says at least `: here` every 15 s
const STEADY_MS = 5000; // a stream that held this long was a good one
const PAUSES_MS = [1000, 2000, 3000, 5000];

let lastId = "";
let run = "";
let wake = () => {};

function receive(block) {
  let kind = "message";
  let id = "";
  const data = [];
  for (const line of block.split("\n")) {
    const at = line.indexOf(":");
    const value = line.slice(at + 1).replace(/^ /, "");
    if (line.startsWith("id:")) id = value;
    else if (line.startsWith("event:")) kind = value;
    else if (line.startsWith("data:")) data.push(value);
  }
  if (data.length === 0) return;
  lastId = id;
  const begun = id.slice(0, id.lastIndexOf("-") + 1);
  if (run && begun !== run) renewToken().catch(() => {}); // the node was started anew
  run = begun;
  const news = JSON.parse(data.join("\n"));
  if (kind === "snapshot") status.value = share(status.value, news);
  else if (kind === "change" && status.value) status.value = { ...status.value, ...share(pick(status.value, news), news) };
}

const pick = (from, like) => Object.fromEntries(Object.keys(like).map((key) => [key, from[key]]));

function reached() {
  if (connection.value === "live" || !status.value) return;
  batch(() => {
    connection.value = "live";
    lostSince.value = retryAt.value = null;
  });
}

// A fetch and no EventSource: that one hides the comments by which a silent node shows that it is there, and neither
// tells when it tries again nor can be told to.
async function listen() {
  const abort = new AbortController();
  let watchdog;
  const heard = () => {
    clearTimeout(watchdog);
    watchdog = setTimeout(() => abort.abort(), SILENCE_MS);
  };
  try {
    heard();
    const headers = lastId ? { "last-event-id": lastId } : {};
    const response = await open("api/events", undefined, { signal: abort.signal, headers });
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    reached();
    for (let part = await reader.read(); !part.done; part = await reader.read()) {
      heard();
      const blocks = (rest + part.value).split("\n\n");
      rest = blocks.pop();
      batch(() => {
        blocks.forEach(receive);
        reached();
      });
    }
  } finally {
    clearTimeout(watchdog);
    abort.abort();
  }
}

const pause = (ms) =>
  new Promise((resolve) => {
    const timer = setTimeout(resolve, ms);
    wake = () => {
      clearTimeout(timer);
      resolve();
    };
  });

/** Try to reach the node now, when it is lost. */
export const retry = () => wake();

/** Follow the node for as long as the page lives. */
export async function follow() {
  for (let failures = 0; ; ) {
    const begin = Date.now();
    await listen().catch(() => {}); // whatever it was, the next attempt tells
    failures = Date.now() - begin > STEADY_MS ? 1 : failures + 1;
    if (failures === 1 && connection.value === "live") continue; // a stream that merely ended is opened again at once
    const wait_ms = PAUSES_MS[Math.min(failures, PAUSES_MS.length) - 1];
    batch(() => {
      connection.value = "lost";
      lostSince.value ??= Date.now();
      now.value = Date.now();
      retryAt.value = Date.now() + wait_ms;
    });
    await pause(wait_ms);
    retryAt.value = null;
  }
}

// --- route -----------------------------------------------------------------------------------------------------------

const parse = () => {
  const [path, query] = location.hash.replace(/^#\/?/, "").split("?");
  const [view, ...rest] = path.split("/").map((part) => {
    try {
      return decodeURIComponent(part);
    } catch {
      return part;
    }
  });
  return { view: view || "overview", rest, query: new URLSearchParams(query ?? "") };
};

/** Where the person is: {view, rest, query}. */
export const route = signal(parse());
addEventListener("hashchange", () => (route.value = parse()));

/** The address of a view, for links. */
export const address = (view, ...rest) => `#/${[view, ...rest].map(encodeURIComponent).join("/")}`;

/** Go to a view. */
export const go = (view, ...rest) => {
  location.hash = address(view, ...rest);
};

// --- choices ---------------------------------------------------------------------------------------------------------

const THEME = "meshnode.theme";
const chosen = () => {
  try {
    return localStorage.getItem(THEME);
  } catch {
    return null; // a browser that keeps nothing
  }
};

/** "system", "light" or "dark". */
export const theme = signal(["light", "dark"].includes(chosen()) ? chosen() : "system");
effect(() => {
  if (theme.value === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme.value;
  try {
    if (theme.value === "system") localStorage.removeItem(THEME);
    else localStorage.setItem(THEME, theme.value);
  } catch {
    // then it holds for this page only
  }
});

const still = matchMedia("(prefers-reduced-motion: reduce)");
/** Whether the person wants things to stand still. */
export const reducedMotion = signal(still.matches);
still.addEventListener("change", () => (reducedMotion.value = still.matches));

setInterval(() => !document.hidden && (now.value = Date.now()), 1000);
addEventListener("online", retry);
document.addEventListener("visibilitychange", () => {
  if (document.hidden) return;
  now.value = Date.now();
  retry();
});
