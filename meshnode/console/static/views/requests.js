// Requests: what was asked of this node, who answered, and what it cost in time. Never a prompt, never an answer.

import { html, useEffect, useSignal } from "../lib.js";
import { member, now, peers, strangers } from "../store.js";
import { get } from "../api.js";
import { clean, clock, count, milliseconds, own, rate, seconds, usd } from "../format.js";
import { announce } from "../parts/announce.js";
import { Badge } from "../parts/badge.js";
import { Button, CopyButton } from "../parts/button.js";
import { Card } from "../parts/card.js";
import { Dialog } from "../parts/dialog.js";
import { Field, Select, Switch, TextInput } from "../parts/field.js";
import { Empty, Loading } from "../parts/notice.js";
import { Table } from "../parts/table.js";
import { RADII } from "../radius.js";
import { bound, Faults, useActs } from "./acts.js";

const MOST = 500;
const NARROW = matchMedia("(max-width: 760px)");
const OUTCOMES = {
  ok: ["good", "answered"],
  left: ["off", "caller left"],
  refused: ["warn", "refused"],
  failed: ["bad", "failed"],
};

const dash = (value, words) => (value ? words(value) : "–");
const time = (row) => html`<time datetime=${new Date(row.at * 1e3).toISOString()}>${clock(row.at)}</time>`;
const model = (row) => clean(row.model || row.wanted || "–", 80);
const pace = (row) => {
  const span = row.total_s - (row.stream && row.first_byte_s != null ? row.first_byte_s : row.queued_s);
  return row.tokens_out > 1 && span > 0 ? row.tokens_out / span : 0;
};
const short = (span_s) => milliseconds(span_s * 1e3);
const paceWords = (row) => dash(pace(row), rate);

const radiusWords = (value) => own(RADII, value)?.[0].toLowerCase() ?? clean(value || "–", 20);
const radius = (row) => radiusWords(row.radius);

function nameOf(row) {
  if (!row.node && row.outcome !== "ok" && "outcome" in row) return "–";
  if (row.where === "here") return "this node";
  return clean([...peers.value, ...strangers.value].find((peer) => peer.id === row.node)?.name || row.where, 40);
}

function Outcome({ row }) {
  const [kind, words] = OUTCOMES[row.outcome] || ["off", clean(row.outcome, 20)];
  return html`<div class="marks">
    <${Badge} kind=${kind}>${words}${row.outcome !== "ok" && html`<span class="code"> (${row.status})</span>`}<//>
    ${row.resumed > 0 &&
    (row.resume_failed
      ? html`<${Badge} kind="bad">not resumed<//>`
      : html`<${Badge} kind="warn">resumed${row.resumed > 1 ? ` ${count(row.resumed)} times` : ""}<//>`)}
  </div>`;
}

const NUMBER = { align: "right" };
const shortId = (row) => row.id.slice(0, 12);
const cut = (words) => html`<span class="cut" title=${words}>${words}</span>`;
// On a narrow screen the first column that is left is the one that opens the details.
const COLUMNS = [
  { key: "id", title: "Request", wide: true, render: (row) => html`<code title=${row.id}>${shortId(row)}</code>` },
  {
    key: "copy",
    title: html`<span class="unseen">Copy</span>`,
    wide: true,
    render: (row) => html`<${CopyButton} text=${clean(row.id, 40)} label=${`Copy ${shortId(row)}`} />`,
  },
  { key: "at", title: "Time", render: time, sort: (row) => row.at },
  { key: "model", title: "Model", render: (row) => cut(model(row)), sort: model },
  { key: "outcome", title: "Outcome", render: (row) => html`<${Outcome} row=${row} />`, sort: (row) => row.outcome },
  { key: "node", title: "Node", wide: true, render: (row) => cut(nameOf(row)), sort: nameOf },
  { key: "radius", title: "Radius", wide: true, render: radius },
  { key: "in", title: "In", wide: true, ...NUMBER, render: (row) => dash(row.tokens_in, count), sort: (row) => row.tokens_in },
  { key: "out", title: "Out", wide: true, ...NUMBER, render: (row) => dash(row.tokens_out, count), sort: (row) => row.tokens_out },
  { key: "first", title: "First", wide: true, ...NUMBER, render: (row) => dash(row.first_byte_s, short), sort: (row) => row.first_byte_s },
  { key: "pace", title: "Tokens/s", wide: true, ...NUMBER, render: paceWords, sort: pace },
  { key: "total", title: "Total", ...NUMBER, render: (row) => short(row.total_s), sort: (row) => row.total_s },
];

function Details({ row, onClose }) {
  const facts = row && [
    ["Request", html`<code>${clean(row.id, 40)}</code> <${CopyButton} text=${clean(row.id, 40)} label="Copy the id" />`],
    ["Finished", time(row)],
    ["Endpoint", html`<code>${clean(row.endpoint, 80)}</code>${row.stream ? ", streamed" : ""}`],
    ["Model", model(row) + (row.wanted && !row.model ? " (nobody serves it)" : "")],
    ["Answered by", html`${nameOf(row)} ${row.node && html`<code>${clean(row.node, 10)}</code>`}`],
    ["Asked by", row.peer ? html`${strangers.value.some((peer) => peer.id === row.peer && peer.radius === "public") ? "a stranger" : "another node"} <code>${clean(row.peer, 10)}</code>` : "a program that uses this node"],
    ["Radius", radius(row)],
    ["Asked as far as", row.reached && row.reached !== row.radius && radiusWords(row.reached)],
    ["Hash of the answer", row.output_sha256 && html`<code>${clean(row.output_sha256, 64)}</code>`],
    ["Outcome", html`<${Outcome} row=${row} />`],
    ["Error", row.error && html`<code>${clean(row.error, 80)}</code>`],
    ["Tokens", `${count(row.tokens_in)} in, ${count(row.tokens_out)} out`],
    ["Cost", row.cost_micros > 0 && (row.peer ? `earned ${usd(row.cost_micros)}` : usd(row.cost_micros))],
    ["Waited for a slot", short(row.queued_s)],
    ["First token after", dash(row.first_byte_s, short)],
    ["Tokens per second", paceWords(row)],
    ["Total", short(row.total_s)],
    ["Hosts that failed before", row.retries > 0 && count(row.retries)],
    ["Went on elsewhere", row.resumed > 0 && `${count(row.resumed)} times${row.resume_failed ? ", the last time in vain" : ""}`],
  ];
  return html`<${Dialog} open=${Boolean(row)} title="One request" onClose=${onClose} actions=${html`<${Button} onClick=${onClose}>Close<//>`}>
    ${facts && html`<dl class="facts">${facts.map(([name, value]) => value && html`<div key=${name}><dt>${name}</dt><dd>${value}</dd></div>`)}</dl>`}
  <//>`;
}

function Running({ rows }) {
  if (!rows.length) return html`<p class="muted">No request is running.</p>`;
  return html`<ul class="running" aria-label="Running requests">
    ${rows.map(
      (row) => html`<li key=${row.id}>
        <${Badge} kind="busy">running<//>
        <b>${model(row)}</b>
        <span>on ${nameOf(row)}</span>
        <code title=${row.id}>${shortId(row)}</code>
        <span class="muted">
          ${seconds(Math.max(0, now.value / 1e3 - row.since))}, ${row.stream ? `${count(row.pieces)} pieces so far` : "not streamed"}
        </span>
      </li>`,
    )}
  </ul>`;
}

function save(rows) {
  const url = URL.createObjectURL(new Blob([JSON.stringify({ requests: rows }, null, 2)], { type: "application/json" }));
  const link = document.createElement("a");
  link.href = url;
  link.download = "meshnode-requests.json";
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
  announce(`${rows.length} requests saved`);
}

const choices = (first, values) => [{ value: "", label: first }, ...[...new Set(values)].sort().map((value) => ({ value, label: value }))];

export default function View() {
  const narrow = useSignal(NARROW.matches);
  const older = useSignal([]);
  const all = useSignal(false);
  const held = useSignal(null);
  const words = useSignal("");
  const wish = useSignal({ model: "", node: "", outcome: "" });
  const opened = useSignal(null);
  const acts = useActs();
  useEffect(() => {
    const change = () => (narrow.value = NARROW.matches);
    NARROW.addEventListener("change", change);
    return () => NARROW.removeEventListener("change", change);
  }, []);
  const live = member("requests").value;
  const shown = held.value || live;
  if (!shown) return html`<${Loading} what="Reading the requests" />`;
  // What scrolled out of the live part stays, as long as the page shows more.
  const rows = [...new Map([...older.value, ...shown.recent].map((row) => [row.id, row])).values()].sort((one, other) => other.at - one.at);
  const more = () =>
    acts.run("more", "There are no more to be had", async () => {
      older.value = (await get(`/api/requests?limit=${MOST}`)).requests;
      all.value = true;
    });
  const text = words.value.trim().toLowerCase();
  const { model: ofModel, node: ofNode, outcome } = wish.value;
  const found = rows.filter(
    (row) =>
      (!ofModel || model(row) === ofModel) &&
      (!ofNode || nameOf(row) === ofNode) &&
      (!outcome || row.outcome === outcome) &&
      `${row.id} ${model(row)} ${nameOf(row)} ${row.node} ${row.error} ${row.endpoint} ${row.status}`.toLowerCase().includes(text),
  );
  const set = (name) => (value) => (wish.value = { ...wish.value, [name]: value });
  const clear = () => {
    words.value = "";
    wish.value = { model: "", node: "", outcome: "" };
  };
  const open = (row) => (opened.value = row);
  return html`
    <${Card} title="Running">
      <${Running} rows=${shown.running || []} />
    <//>
    <${Card}
      title="Finished"
      actions=${html`<${Button} disabled=${!found.length} onClick=${() => save(found)}>Export as JSON<//>`}
    >
      <p class="muted">
        Prompts and answers are never kept here: a request leaves its times, its counts and how it ended.
      </p>
      <div class="filters" role="search" aria-label="Filter the requests">
        <${Field} label="Contains">
          <${TextInput} type="search" ...${bound(words)} placeholder="id, model, error …" />
        <//>
        <${Field} label="Model"><${Select} value=${ofModel} options=${choices("All models", rows.map(model))} onChange=${set("model")} /><//>
        <${Field} label="Node"><${Select} value=${ofNode} options=${choices("All nodes", rows.map(nameOf))} onChange=${set("node")} /><//>
        <${Field} label="Outcome"
          ><${Select}
            value=${outcome}
            options=${[{ value: "", label: "All outcomes" }, ...Object.entries(OUTCOMES).map(([value, [, label]]) => ({ value, label }))]}
            onChange=${set("outcome")}
        /><//>
        <${Switch} label="Live" checked=${!held.value} onChange=${(on) => (held.value = on ? null : live)} />
      </div>
      <${Faults} acts=${acts} />
      ${!rows.length
        ? html`<${Empty} title="Nobody has asked anything yet">
            Requests to <code>${clean(member("api").value?.url || "", 120)}</code> appear here as they end.
          <//>`
        : html`<p class="muted" role="status">
              ${found.length < rows.length && `${count(found.length)} of `}${count(rows.length)} requests${held.value && ", paused"}
            </p>
            ${found.length
              ? html`<${Table}
                  caption="Finished requests, newest first"
                  columns=${narrow.value ? COLUMNS.filter((column) => !column.wide) : COLUMNS}
                  rows=${found}
                  rowKey=${(row) => row.id}
                  selected=${opened.value?.id}
                  onSelect=${open}
                />`
              : html`<${Empty} title="No request is like that"><${Button} onClick=${clear}>Clear the filter<//><//>`}
            ${!all.value &&
            live.finished > rows.length &&
            html`<p class="more"><${Button} busy=${acts.busy("more")} onClick=${more}>Show more<//></p>`}`}
    <//>
    <${Details} row=${opened.value} onClose=${() => open(null)} />
  `;
}
