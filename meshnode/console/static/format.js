// Numbers, times and foreign names as people read them. Everything here is a pure function of its arguments.

const DASH = "–";
const known = (value) => typeof value === "number" && Number.isFinite(value);
const plain = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });

const scaled = (value, step, names) => {
  let at = 0;
  while (Math.abs(value) >= step * 0.9995 && at < names.length - 1) {
    value /= step;
    at += 1;
  }
  return [at === 0 ? plain.format(value) : value.toFixed(value < 9.995 ? 2 : value < 99.95 ? 1 : 0), names[at]];
};

/** "1.50 GB"; decimal units, as the command line has them. */
export const bytes = (n) => (known(n) ? scaled(n, 1000, ["B", "kB", "MB", "GB", "TB", "PB"]).join(" ") : DASH);

/** "12,345" */
export const count = (n) => (known(n) ? plain.format(n) : DASH);

/** A length of time: "0.4 s", "12 s", "3 min 20 s", "2 h 5 min", "3 d 4 h". */
export const seconds = (s) => {
  if (!known(s)) return DASH;
  if (s < 10) return `${s.toFixed(s < 0.0995 && s > 0 ? 2 : 1)} s`;
  const whole = Math.round(s);
  if (whole < 60) return `${whole} s`;
  const [large, small, names] =
    whole < 3600 ? [Math.floor(whole / 60), whole % 60, ["min", "s"]]
    : whole < 86400 ? [Math.floor(whole / 3600), Math.floor((whole % 3600) / 60), ["h", "min"]]
    : [Math.floor(whole / 86400), Math.floor((whole % 86400) / 3600), ["d", "h"]];
  return small ? `${large} ${names[0]} ${small} ${names[1]}` : `${large} ${names[0]}`;
};

/** "0.8 ms", "24 ms", "1.2 s"; takes milliseconds. */
export const milliseconds = (ms) =>
  !known(ms) ? DASH : ms >= 1000 ? seconds(ms / 1000) : `${ms < 9.95 ? ms.toFixed(1) : Math.round(ms)} ms`;

/** Tokens per second without the unit: "0", "3.4", "120". */
export const rate = (n) => (known(n) ? (n === 0 ? "0" : n < 9.95 ? n.toFixed(1) : plain.format(n)) : DASH);

/** Micro-dollars exactly, in no more digits than it takes: "$0.00", "$1.50", "$0.000012". */
export const usd = (micros) => {
  if (!Number.isSafeInteger(micros)) return DASH;
  const whole = Math.abs(micros);
  const cents = String(whole % 1_000_000).padStart(6, "0").replace(/(?<=^\d\d+?)0+$/, "");
  return `${micros < 0 ? "-" : ""}$${plain.format(Math.floor(whole / 1_000_000))}.${cents}`;
};

/** How long ago a wall time (seconds) was: "now", "12 s ago", "3 min ago", "2 d ago". */
export const ago = (wall_s, now_ms = Date.now()) => {
  if (!known(wall_s) || wall_s <= 0) return DASH;
  const past = now_ms / 1000 - wall_s;
  if (past < 2) return "now";
  const [size, name] = past < 60 ? [1, "s"] : past < 3600 ? [60, "min"] : past < 86400 ? [3600, "h"] : [86400, "d"];
  return `${Math.floor(past / size)} ${name} ago`;
};

/** The time of day of a wall time (seconds), with the date when it is not today's. */
export const clock = (wall_s) => {
  if (!known(wall_s)) return DASH;
  const at = new Date(wall_s * 1000);
  const time = at.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit", hour12: false });
  const day = (date) => date.toLocaleDateString("sv"); // the Swedish form of a date is that of ISO 8601
  return day(at) === day(new Date()) ? time : `${day(at)} ${time}`;
};

/** "42 %"; never "100 %" before it is all, never "0 %" when there is some. */
export const percent = (part, whole) => {
  if (!known(part) || !known(whole) || whole <= 0) return DASH;
  const share = (100 * part) / whole;
  return `${part > 0 && part < whole ? Math.min(99, Math.max(1, Math.round(share))) : Math.round(share)} %`;
};

/** The first ten digits of a node's id, as the command line shows it. */
export const short = (id) => String(id ?? "").slice(0, 10);

// Controls, what turns the direction of text, what has no width, tag characters, and lone surrogates.
const UNSEEN =
  /[\u0000-\u001f\u007f-\u009f\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]|[\u{e0000}-\u{e007f}]|\p{Cs}/gu;

/** A foreign name for the eyes of people: nothing unseen, no stacks of accents, at most `most` characters. */
export const clean = (text, most = 200) => {
  const start = String(text ?? "").slice(0, most * 16);
  const seen = Array.from(start.replace(UNSEEN, " ").replace(/(\p{M}{2})\p{M}+/gu, "$1").replace(/\s+/g, " ").trim());
  return seen.length > most ? `${seen.slice(0, most - 1).join("")}…` : seen.join("");
};

/** Words of the node as a sentence of a page: "no model is served" -> "No model is served." */
export const sentence = (text, most = 400) => {
  const words = clean(text, most);
  return words && `${words[0].toUpperCase()}${words.slice(1)}${/[.!?…:]$/.test(words) ? "" : "."}`;
};

/** What a table of this page has under a word that may be anybody's: `__proto__` and its like are in none. */
export const own = (table, word) => (Object.hasOwn(table, word) ? table[word] : undefined);
