// Text of a model -> nodes of the page. Three walls: marked is told to write neither raw HTML nor images nor links that
// are not plainly web or mail addresses; DOMPurify lets pass a short list of elements; the node's CSP runs and loads
// nothing. A growing text is cut into blocks: those that are over are parsed once, only the last one is parsed again.
import { Lexer, Marked } from "../vendor/marked.js";
import { html, render as mount } from "../lib.js";
import { CopyButton } from "../parts/button.js";
import DOMPurify from "../vendor/purify.js";

const WINDOW_CHARS = 64 << 10;
const LIST_CHARS = 32 << 10; // lists, tables, quotations; above it a block is shown as it was written
const INLINE_CHARS = 16 << 10; // a paragraph: emphasis costs the square of its length (0.3 s for the worst 16 kB)
const PIECE_CHARS = 8 << 10;
const RUN_CHARS = 16 << 10; // of finished blocks that are parsed together
const SLICE_MS = 30; // then the page gets its turn
const PAUSE = 8; // a block that grows is parsed again after eight times as long as that took
const LARGE = new Set(["list", "table", "blockquote"]);
const HARMLESS_TAG = /^<\/?(?:br|sub|sup|kbd|mark|b|i|u|s)\s*\/?>$/i;
const ADDRESS = /^(?:https?:\/\/|mailto:)[^\s]+$/i;
const FENCE = /^(`{3,}|~{3,})([^\n]*)\n/;
const PURIFY = {
  ALLOWED_TAGS: (
    "a b blockquote br code del em h1 h2 h3 h4 h5 h6 hr i kbd li mark ol p pre s strong sub sup table tbody td th thead tr u ul"
  ).split(" "),
  ALLOWED_ATTR: ["href", "class", "start", "align"],
  ALLOWED_URI_REGEXP: ADDRESS,
  ADD_URI_SAFE_ATTR: ["start", "align"], // or their values would have to be addresses
  ALLOW_DATA_ATTR: false,
  ALLOW_ARIA_ATTR: false,
  RETURN_DOM_FRAGMENT: true,
};

const escaped = (text) => text.replace(/[&<>"']/g, (sign) => `&#${sign.charCodeAt(0)};`);
const link = (href, inner) => (ADDRESS.test(href) ? `<a href="${escaped(href)}">${inner}</a>` : inner);

const marked = new Marked({
  gfm: true,
  renderer: {
    html: ({ text, block }) => (HARMLESS_TAG.test(text.trim()) ? text : block ? `<p>${escaped(text)}</p>` : escaped(text)),
    image: ({ href, text }) => link(href, `Image: ${escaped(text || href)}`),
    link({ href, tokens }) {
      return link(href, this.parser.parseInline(tokens));
    },
    code: ({ text, lang }) => `<pre><code class="language-${languageOf(lang)}">${escaped(text)}</code></pre>`,
    checkbox: ({ checked }) => (checked ? "☑ " : "☐ "),
  },
});

const languageOf = (info) => /^[\w+#.-]{1,24}/.exec(info ?? "")?.[0] ?? "";

function element(name, className, ...children) {
  const made = document.createElement(name);
  if (className) made.className = className;
  made.append(...children);
  return made;
}

/** A frame for text that is scrolled sideways, and reached by keyboard for that. */
function scrolled(made, label) {
  made.tabIndex = 0;
  made.setAttribute("role", "group");
  made.setAttribute("aria-label", label);
  return made;
}

/** Text that grows, in pieces cut at line ends: only the last one is laid out anew. */
class Pieces {
  constructor(into) {
    this.into = into;
    this.cut = 0;
  }

  write(text) {
    this.text = text;
    for (;;) {
      const large = text.length - this.cut > PIECE_CHARS;
      let to = large ? text.lastIndexOf("\n", this.cut + PIECE_CHARS) + 1 : text.length;
      if (to <= this.cut) to = Math.min(text.length, this.cut + PIECE_CHARS);
      if (large && /[\ud800-\udbff]/.test(text[to - 1])) to -= 1;
      this.last ??= this.into.appendChild(element("span", "chat-piece", ""));
      this.last.firstChild.data = text.slice(this.cut, to);
      if (!large) return;
      this.last = null;
      this.cut = to;
    }
  }
}

/** A block of code with its language and a button that copies it; `pieces` takes the text. */
function codeBlock(language) {
  const label = language || "code";
  const code = element("code");
  const head = element("figcaption");
  const block = element("figure", "code chat-code", head, scrolled(element("pre", "", code), label));
  block.pieces = new Pieces(code);
  mount(html`<span>${label}</span><${CopyButton} text=${() => block.pieces.text} label=${`Copy ${label}`} />`, head);
  return block;
}

function plainBlock() {
  const block = element("div", "chat-plain");
  block.pieces = new Pieces(block);
  return block;
}

/** What DOMPurify let pass, with what only we may add: frames, buttons, and where links open. */
function dressed(fragment) {
  for (const pre of fragment.querySelectorAll("pre")) {
    const code = pre.querySelector("code");
    const block = codeBlock(languageOf(code?.className.replace("language-", "")));
    block.pieces.write(pre.textContent.replace(/\n$/, ""));
    pre.replaceWith(block);
  }
  for (const table of fragment.querySelectorAll("table")) {
    const frame = scrolled(element("div", "chat-table"), "Table");
    table.replaceWith(frame);
    frame.append(table);
  }
  for (const anchor of fragment.querySelectorAll("a[href]")) {
    Object.assign(anchor, { target: "_blank", rel: "noopener noreferrer", title: anchor.href });
  }
  return fragment;
}

const tooLarge = ({ raw, type }) => raw.length > (LARGE.has(type) ? LIST_CHARS : INLINE_CHARS) && type !== "code";

/** Markdown -> DocumentFragment, for a text of moderate size. `links`: definitions from elsewhere. */
export function render(source, links = {}) {
  const lexer = new Lexer(marked.defaults);
  Object.assign(lexer.tokens.links, links);
  const markup = marked.parser(lexer.lex(source));
  return dressed(DOMPurify.sanitize(markup, PURIFY));
}

/** Shows a text that grows inside of an element, which must be empty and belongs to it from then on. */
export class Growing {
  constructor(into) {
    this.into = into;
    this.restart();
  }

  restart() {
    this.into.replaceChildren();
    this.links = Object.create(null);
    this.offset = 0; // up to here all blocks are over, and shown
    this.open = []; // nodes of the block that is not
    this.mode = null; // or it is code, or too large to parse: {block, from, scan, end}
    this.parsed = true; // nothing was too large
    this.dueAt = 0;
  }

  /** Show `text`, which begins with what was written before. With `done` it is whole, and all of it will be shown. */
  write(text, done) {
    this.text = text.includes("\r") ? text.replace(/\r\n?/g, "\n") : text;
    this.done = done;
    this.go();
  }

  /** Show nothing more. */
  stop() {
    clearTimeout(this.timer);
  }

  go() {
    const { text, done } = this;
    const begun = performance.now();
    const wait = (ms) => (this.timer = setTimeout(() => this.go(), ms));
    this.stop();
    if (!done && begun < this.dueAt) return wait(this.dueAt - begun);
    while (this.offset < text.length && (this.mode ? this.follow(text, done) : this.step(text, done)))
      if (performance.now() - begun > SLICE_MS) return wait(0);
    if (done && this.parsed && text.length < WINDOW_CHARS && Object.keys(this.links).length) {
      this.into.replaceChildren(); // references that stood before their definitions are found now
      this.show(this.render(text));
    }
    this.dueAt = performance.now() + PAUSE * (performance.now() - begun);
  }

  /** Go on with a block of code, or one that is shown as written; whether it is over. */
  follow(text, done) {
    const { block, from, end } = this.mode;
    end.lastIndex = this.mode.scan;
    const match = end.exec(text);
    const found = match && (done || match[0].endsWith("\n")) ? match : null; // a line that still grows ends no code
    const to = found ? found.index : text.length;
    const body = text.slice(from, to);
    block.pieces.write(found ? body : body.replace(/\n[`~]*$/, "")); // which may be the beginning of the end
    if (found || done) {
      this.offset = found ? end.lastIndex : text.length;
      this.mode = null;
      return true;
    }
    this.mode.scan = Math.max(from, text.lastIndexOf("\n", to - 2) - 1);
    return false;
  }

  begin(block, from, end) {
    this.show([block]);
    this.open = [];
    this.mode = { block, from, end, scan: from - 1 };
    return true;
  }

  asWritten() {
    this.parsed = false;
    return this.begin(plainBlock(), this.offset, /\n[ \t]*\n/g);
  }

  /** Show the next blocks that are over, and the one that is not; whether there is more. */
  step(text, done) {
    this.offset += /^(?:[ \t]*\n)*/.exec(text.slice(this.offset, this.offset + WINDOW_CHARS))[0].length;
    const tail = text.slice(this.offset, this.offset + WINDOW_CHARS);
    const fence = FENCE.exec(tail);
    if (fence && !(fence[1][0] === "`" && fence[2].includes("`"))) {
      const end = new RegExp(`\\n {0,3}${fence[1]}${fence[1][0]}*[ \\t]*(?:\\n|$)`, "g");
      return this.begin(codeBlock(languageOf(fence[2].trim())), this.offset + fence[0].length, end);
    }
    const tokens = blocksOf(tail);
    if (!tokens) return this.asWritten();
    const atEnd = this.offset + tail.length >= text.length;
    let over = tokens.length;
    if (!(done && atEnd)) while (over > 0 && tokens[--over].type === "space");
    if (over === 0 && !atEnd) return this.asWritten();
    let run = "";
    for (const token of tokens.slice(0, over)) {
      if (tooLarge(token)) {
        this.settle(run);
        return this.asWritten();
      }
      if (run.length > RUN_CHARS) {
        this.settle(run);
        return true;
      }
      if (token.type === "def") this.links[token.tag] ??= { href: token.href, title: token.title };
      run += token.raw;
    }
    this.settle(run);
    if (!atEnd) return true;
    const last = tokens[over];
    if (last && tooLarge(last)) return this.asWritten();
    if (last) this.show(this.render(last.raw));
    return false;
  }

  settle(run) {
    if (!run) return;
    this.show(this.render(run));
    this.open = [];
    this.offset += run.length;
  }

  render(source) {
    try {
      return [...render(source, this.links).childNodes];
    } catch {
      const block = plainBlock(); // marked gives up on what is nested too deeply
      block.pieces.write(source);
      return [block];
    }
  }

  show(nodes) {
    this.open.forEach((node) => node.remove());
    this.into.append(...nodes);
    this.open = nodes;
  }
}

const UNKNOWN = new Proxy({}, { get: () => undefined, set: () => true });

/** The blocks of a text, or null where marked gives up or does not account for every character. */
function blocksOf(source) {
  const lexer = new Lexer(marked.defaults);
  lexer.tokens.links = UNKNOWN; // a definition that is there twice would not be among the blocks
  try {
    lexer.blockTokens(source, lexer.tokens);
  } catch {
    return null;
  }
  const length = lexer.tokens.reduce((sum, { raw }) => sum + raw.length, 0);
  return length === source.length ? lexer.tokens : null;
}
