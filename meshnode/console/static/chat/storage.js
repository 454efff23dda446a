// Conversations in this browser (IndexedDB) and nowhere else, up to LIMIT_BYTES in all.

export const LIMIT_BYTES = 64 << 20;
const NAME = "meshnode-chat";

/** There is no room for what was to be kept. */
export class Full extends Error {}

let opened;
const database = () => (opened ??= new Promise((resolve, reject) => {
  const request = indexedDB.open(NAME, 1);
  request.onupgradeneeded = () => {
    request.result.createObjectStore("entries", { keyPath: "id" });
    request.result.createObjectStore("conversations", { keyPath: "id" });
  };
  request.onsuccess = () => resolve(request.result);
  request.onerror = () => reject(request.error);
}));

const result = (request) => new Promise((resolve, reject) => {
  request.onsuccess = () => resolve(request.result);
  request.onerror = () => reject(request.error);
});

async function change(act) {
  const transaction = (await database()).transaction(["entries", "conversations"], "readwrite");
  const ended = new Promise((resolve, reject) => {
    transaction.oncomplete = resolve;
    transaction.onabort = transaction.onerror = () => {
      const { error } = transaction;
      reject(error?.name === "QuotaExceededError" ? new Full() : error);
    };
  });
  act(transaction.objectStore("entries"), transaction.objectStore("conversations"));
  transaction.commit(); // left to itself it commits a turn later, and a page that is reloaded before loses it
  return ended;
}

/** All conversations without their messages, newest first: {id, title, model, updated, size}. */
export async function entries() {
  const found = await result((await database()).transaction("entries").objectStore("entries").getAll());
  return found.sort((a, b) => b.updated - a.updated);
}

/** One conversation; undefined when it is not kept. */
export const load = async (id) =>
  result((await database()).transaction("conversations").objectStore("conversations").get(id));

/** All conversations. */
export const loadAll = async () =>
  result((await database()).transaction("conversations").objectStore("conversations").getAll());

/** Keeps a conversation. Raises Full when it has no room beside `others` (entries). */
export async function save(conversation, title, others) {
  const size = JSON.stringify(conversation).length;
  const { id, model, updated } = conversation;
  if (others.reduce((sum, entry) => sum + (entry.id === id ? 0 : entry.size), size) > LIMIT_BYTES) throw new Full();
  const entry = { id, title, model, updated, size };
  await change((list, texts) => {
    list.put(entry);
    texts.put(conversation);
  });
  return entry;
}

/** Forgets a conversation. */
export const remove = (id) => change((list, texts) => {
  list.delete(id);
  texts.delete(id);
});

/** Forgets them all. */
export const clear = () => change((list, texts) => {
  list.clear();
  texts.clear();
});
