// The stream of a chat completion: bytes in, items out. Events as in WHATWG HTML 9.2.6; comments matter here too.

const MAX_EVENT_CHARS = 8 << 20;
// Both tell the furthest radius of all nodes that took part so far; the first may do so.
const RESUMED = /^meshnode-resumed (\d+)(?: radius=(local|trusted|public))?$/;
const RADIUS = /^meshnode-radius (local|trusted|public)$/;

/** A function that takes text as it comes and gives the whole events in it: {data} or {comment}. */
export function eventReader() {
  let rest = "";
  let data = [];
  return (text) => {
    const events = [];
    const lines = (rest + text).split(/\r\n|\n|\r(?=[^])/); // a \r at the very end may be half of \r\n
    rest = lines.pop();
    if (rest.length > MAX_EVENT_CHARS) throw new Error("an event of the stream is too large");
    for (const line of lines) {
      if (line === "") {
        if (data.length) events.push({ data: data.join("\n") });
        data = [];
      } else if (line[0] === ":") events.push({ comment: line.slice(1).trim() });
      else if (line.startsWith("data:")) data.push(line.slice(line[5] === " " ? 6 : 5));
    }
    return events;
  };
}

/** What an event means: {delta...}, {error}, {resumed, radius}, {radius}, {end: true}, or null for what tells nothing. */
export function itemOf({ data, comment }) {
  if (comment !== undefined) {
    const [, radius] = RADIUS.exec(comment) ?? [];
    if (radius) return { radius };
    const found = RESUMED.exec(comment);
    return found && { resumed: Number(found[1]), radius: found[2] ?? "" };
  }
  if (data === "[DONE]") return { end: true };
  let chunk;
  try {
    chunk = JSON.parse(data);
  } catch {
    return null;
  }
  if (!chunk || typeof chunk !== "object") return null;
  const { error } = chunk;
  if (error) return { error: typeof error === "object" ? error : { message: String(error) } };
  const choice = chunk.choices?.[0];
  return {
    content: textOf(choice?.delta?.content),
    reasoning: textOf(choice?.delta?.reasoning_content ?? choice?.delta?.reasoning),
    finish: textOf(choice?.finish_reason),
    usage: chunk.usage,
    timings: chunk.timings,
  };
}

const textOf = (value) => (typeof value === "string" ? value : "");

/** Reads the body of a Response to its end; `take` gets the items of each read as an array. */
export async function readStream(body, take) {
  const reader = body.getReader();
  const decoder = new TextDecoder();
  const read = eventReader();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      const items = read(done ? decoder.decode() : decoder.decode(value, { stream: true })).map(itemOf).filter(Boolean);
      if (items.length) take(items);
      if (done) return;
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
