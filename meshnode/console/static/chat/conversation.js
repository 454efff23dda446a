// Conversations as plain values: every function gives a new one. Nothing here knows of pages, clocks or nodes.

/** What a reader may set; all are left to the engine where empty. `key` is the name in the request. */
export const PARAMETERS = [
  { key: "temperature", label: "Temperature", hint: "0 always takes the likeliest token", least: 0, most: 5, step: 0.1 },
  { key: "top_p", label: "Top p", hint: "Only the likeliest tokens that make up this share", least: 0, most: 1, step: 0.05 },
  { key: "max_tokens", label: "Most tokens", hint: "The answer ends there", least: 1, most: 1e6, step: 1 },
  { key: "seed", label: "Seed", hint: "The same seed gives the same answer", least: 0, most: 4294967295, step: 1 },
];

/** An empty conversation. */
export const fresh = (id, model, now) => ({
  id, title: "", model, system: "", parameters: {}, radius: "", messages: [], created: now, updated: now,
});

/** Its title: as given, or the beginning of what was asked first. */
export function titleOf({ title, messages }) {
  const asked = messages.find((message) => message.role === "user");
  return title || asked?.content.trim().slice(0, 60) || (asked ? "Image" : "New conversation");
}

/** With a message at its end. */
export const added = (conversation, message) => ({ ...conversation, messages: [...conversation.messages, message] });

/** What comes before a message. */
export function before(conversation, id) {
  const at = conversation.messages.findIndex((message) => message.id === id);
  return { ...conversation, messages: conversation.messages.slice(0, at < 0 ? undefined : at) };
}

/** With another text in a message of the user, and nothing after it. */
export function edited(conversation, id, content) {
  const message = conversation.messages.find((one) => one.id === id);
  return message ? added(before(conversation, id), { ...message, content }) : conversation;
}

/** Without what follows the last question, which can then be asked again; null when there is none. */
export function unanswered(conversation) {
  const at = conversation.messages.findLastIndex((message) => message.role === "user");
  return at < 0 ? null : { ...conversation, messages: conversation.messages.slice(0, at + 1) };
}

/** With a parameter set, or left to the engine when the value is empty. */
export function withParameter(conversation, key, value) {
  const { [key]: _, ...others } = conversation.parameters;
  const empty = value === "" || value === null || value === undefined || value.length === 0;
  return { ...conversation, parameters: empty ? others : { ...others, [key]: value } };
}

/** What is wrong with a value that was typed for a parameter; empty when nothing is. */
export function faultOf({ least, most, step }, value) {
  const number = Number(value);
  if (value === "") return "";
  if (!Number.isFinite(number) || number < least || number > most) return `A number from ${least} to ${most}`;
  return step === 1 && !Number.isInteger(number) ? "A whole number" : "";
}

/** The body of the request for the next answer. */
export function requestBody(conversation, seesImages) {
  const { model, system, parameters, messages } = conversation;
  const said = messages.filter(({ role, content, images }) => role === "user" || content || images?.length);
  return {
    model,
    messages: [
      ...(system.trim() ? [{ role: "system", content: system }] : []),
      ...said.map(({ role, content, images }) => ({ role, content: parts(content, seesImages ? images : []) })),
    ],
    ...parameters,
    stream: true,
    stream_options: { include_usage: true },
  };
}

const parts = (content, images) =>
  images?.length
    ? [...(content ? [{ type: "text", text: content }] : []), ...images.map((url) => ({ type: "image_url", image_url: { url } }))]
    : content;

/** Conversations as text that other programs read. */
export const asJson = (conversations) => JSON.stringify({ format: "meshnode-chat", version: 1, conversations }, null, 2);

/** A conversation as text that people read. */
export function asMarkdown(conversation) {
  const { system, messages } = conversation;
  const turns = messages.map((message) => {
    const who = message.role === "user" ? "You" : `${message.model}${message.node ? ` (node ${message.node})` : ""}`;
    const images = message.images?.length ? `\n\n*(${message.images.length} images)*` : "";
    return `## ${who}\n\n${message.content}${images}${note(message)}`;
  });
  return [`# ${titleOf(conversation)}`, ...(system.trim() ? [`## System\n\n${system}`] : []), ...turns].join("\n\n") + "\n";
}

function note({ state, resumed, error }) {
  if (error) return `\n\n*(broken off: ${error.message})*`;
  if (state === "stopped") return "\n\n*(stopped)*";
  return resumed ? "\n\n*(continued by another node)*" : "";
}
