// One answer while it comes: a plain object that items of the stream are added to. No clock: `now` is handed in (ms).
import { clean } from "../format.js";

/** An answer that has been asked for. `state` becomes done, stopped or failed. */
export const begin = (id, model, now) => ({
  id, role: "assistant", model, content: "", reasoning: "", state: "waiting", asked: now, first: 0, last: 0, pieces: 0,
  thought: 0, node: "", radius: "", resumed: 0, finish: "", usage: null, speed: 0, error: null, ended: false,
});

/** Adds one item (stream.js) to the answer, in place. */
export function take(answer, item, now) {
  if (item.resumed) answer.resumed = item.resumed;
  if (item.radius) answer.radius = item.radius;
  if (item.end) answer.ended = true;
  if (item.error) answer.error = errorOf(item.error);
  if (item.content || item.reasoning) {
    answer.first ||= now;
    answer.last = now;
    answer.pieces += 1;
    answer.state = "running";
    if (item.content && answer.reasoning && !answer.thought) answer.thought = now - answer.first;
    answer.reasoning += item.reasoning;
    answer.content += item.content;
  }
  if (item.finish) answer.finish = item.finish;
  if (item.usage) answer.usage = { prompt: item.usage.prompt_tokens, completion: item.usage.completion_tokens };
  // The engine's own figure tells only of what its node made.
  if (item.timings && !answer.resumed) answer.speed = Number(item.timings.predicted_per_second) || 0;
}

/** The answer at its end. `error` is what broke it off (null: the stream ended), `stopped`: the reader ended it. */
export function finish(answer, now, { error = null, stopped = false } = {}) {
  const whole = answer.ended || answer.finish;
  const found = answer.error ?? error ?? (whole || stopped ? null : LOST);
  const speed = answer.speed || speedOf(answer);
  const thought = answer.thought || (answer.reasoning ? now - answer.first : 0);
  return { ...answer, error: stopped ? null : found, state: stopped ? "stopped" : found ? "failed" : "done", speed, thought };
}

/** Tokens a second as seen from here, 0 while unknown. */
export function speedOf({ usage, pieces, first, last }) {
  const count = Math.max(usage?.completion ?? 0, pieces);
  return count > 1 && last > first ? ((count - 1) * 1000) / (last - first) : 0;
}

/** An error of a stream, or of a call, as it is kept and shown. */
export const errorOf = ({ code, message, fix, status }) => ({
  code: String(code ?? status ?? "error").replaceAll("_", "-"),
  message: clean(message || "the node gave no reason", 600),
  fix: clean(fix, 600),
});

/** A connection that ended too early. */
export const LOST = {
  code: "connection-lost",
  message: "The connection to the node ended before the answer was complete",
  fix: "What came is kept. Try again when the node is back.",
};

/** The whole sentences of a text from `from` on, for a screen reader: {say, upto}. With `all` the rest too. */
export function sentences(text, from, all) {
  const fresh = text.slice(from);
  const ends = [...fresh.matchAll(/[.!?。！？](?=\s)|\n/g)];
  const upto = all ? fresh.length : ends.length ? ends.at(-1).index + 1 : 0;
  const say = fresh.slice(0, upto).replace(/[*_#`|~>]+/g, " ").replace(/\s+/g, " ").trim();
  return { say: say.length > 600 ? `${say.slice(0, 600)} ...` : say, upto: from + upto };
}
