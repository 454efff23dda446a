// Memory: who holds what of each device of this machine, model by model, and what the other machines of the mesh have.

import { html } from "../lib.js";
import { status } from "../store.js";
import { bytes, clean, percent } from "../format.js";
import { StackBar } from "../parts/bar.js";
import { Card, Stat } from "../parts/card.js";
import { Empty, Loading } from "../parts/notice.js";
import { Table } from "../parts/table.js";
import { isHere, nameOf } from "./members.js";

/** The parts of a bar, and what each is. */
const KINDS = {
  weights: ["Weights", "the parameters of a model"],
  kv: ["KV cache", "what conversations are kept in; planned for the whole context, so it does not grow"],
  compute: ["Compute", "scratch memory of the engine"],
  lent: ["Lent", "promised to splits that other nodes host"],
  other: ["Other programs", "in use before this node took anything"],
  reserved: ["Reserved", "kept free by this node, for drivers and the rest of the machine"],
  free: ["Free", "may be planned with"],
};
const OWN = ["weights", "kv", "compute", "lent"];
const titled = (kind) => KINDS[kind]?.[0] ?? clean(kind, 20);
const sum = (parts, kinds) => parts.reduce((all, part) => (kinds.includes(part.kind) ? all + part.bytes : all), 0);

function deviceWords({ device, kind, unified }) {
  if (unified) return "unified memory: processor and GPU share it";
  return kind === "gpu" ? `GPU, ${clean(device, 40)} to the engine` : "main memory";
}

/** One memory with its parts. */
function Device({ facts }) {
  const { name, total_bytes: total, unified } = facts;
  const parts = facts.parts.map((part) => ({
    kind: part.kind,
    bytes: part.bytes,
    label: part.model ? `${titled(part.kind)} · ${clean(part.model, 60)}` : titled(part.kind),
  }));
  const label = clean(name, 80) || clean(facts.device, 40);
  const [own, free] = [sum(facts.parts, OWN), sum(facts.parts, ["free"])];
  return html`<${Card} title=${label} actions=${unified && html`<span class="unified">unified</span>`}>
    <p class="muted">${deviceWords(facts)}</p>
    ${total > 0
      ? html`<dl class="stats">
            <${Stat} label="Held here" value=${bytes(own)} hint=${percent(own, total)} />
            <${Stat} label="Free" value=${bytes(free)} hint=${percent(free, total)} />
            <${Stat} label="In all" value=${bytes(total)} />
          </dl>
          <${StackBar} label=${label} total=${total} parts=${parts} />`
      : html`<p>This device does not tell how much memory it has.</p>`}
  <//>`;
}

/** Rows of {model, device, weights, kv, compute, lent, total}, the largest first. */
function perModel(devices) {
  const rows = new Map();
  for (const { device, name, parts } of devices)
    for (const { kind, model, bytes: size } of parts) {
      if (!model || !OWN.includes(kind)) continue;
      const key = `${model}\n${device}`;
      const row = rows.get(key) ?? { key, model, device: name || device, weights: 0, kv: 0, compute: 0, lent: 0, total: 0 };
      row[kind] += size;
      row.total += size;
      rows.set(key, row);
    }
  return [...rows.values()].sort((a, b) => b.total - a.total);
}

const figure = (key, title) => ({
  key, title, align: "right", sort: (row) => row[key], render: (row) => (row[key] ? bytes(row[key]) : "–"),
});
const text = (key, title) => ({
  key, title, sort: (row) => clean(row[key]).toLowerCase(),
  render: (row) => html`<span class="name" title=${clean(row[key])}>${clean(row[key], 60)}</span>`,
});
const MODEL_COLUMNS = [
  text("model", "Model"), text("device", "Device"), figure("weights", "Weights"), figure("kv", "KV cache"),
  figure("compute", "Compute"), figure("lent", "Lent"), figure("total", "In all"),
];

/** Rows of {node, device, total, free}; what others say of themselves. */
const devicesOf = (peers) =>
  peers.filter(isHere).flatMap((peer) =>
    (peer.devices ?? []).map((device, at) => ({
      key: `${peer.id} ${at}`,
      node: nameOf(peer, 60),
      device: device.name === "host" ? "main memory" : clean(device.name, 60),
      total: device.total_bytes,
      free: Math.min(device.free_bytes, device.total_bytes || device.free_bytes),
    })),
  );

const MESH_COLUMNS = [
  text("node", "Node"), text("device", "Device"), figure("total", "In all"), figure("free", "Free"),
  {
    key: "share", title: "Not free", align: "right", sort: (row) => (row.total ? 1 - row.free / row.total : 0),
    render: ({ total, free }) => html`<span class="fill">
      <span class="track" aria-hidden="true">
        <span style=${{ width: `${total ? 100 - (100 * free) / total : 0}%` }}></span>
      </span>
      <span class="share">${percent(total - free, total)}</span>
    </span>`,
  },
];

/** What the kinds are called and mean. */
const Meanings = () => html`<details class="meanings">
  <summary>What the parts are</summary>
  <dl>
    ${Object.entries(KINDS).map(
      ([kind, [word, sentence]]) => html`<div key=${kind}>
        <dt><span class="swatch kind-${kind}"></span>${word}</dt>
        <dd>${sentence}</dd>
      </div>`,
    )}
  </dl>
</details>`;

function nothingYet(facts) {
  if (facts.mesh?.role === "client")
    return html`<${Empty} title="This node holds no memory for models">
      It is a client: it asks the models of its mesh, and serves and lends nothing.
    <//>`;
  if (["starting", "loading"].includes(facts.state)) return html`<${Loading} what="The node is looking at its devices" />`;
  return html`<${Empty} title="Nothing is known of this machine's memory">
    The devices are looked at when the engine is ready.
  <//>`;
}

/** The view. */
export default function View() {
  const facts = status.value;
  if (!facts) return html`<${Loading} what="Asking the node" />`;
  const devices = facts.memory ?? [];
  const models = perModel(devices);
  const others = devicesOf(facts.mesh?.peers ?? []);
  const total = (key) => bytes(others.reduce((all, row) => all + row[key], 0));
  return html`<div class="memory-view">
    ${devices.length
      ? html`<div class="devices">${devices.map((each) => html`<${Device} key=${each.device} facts=${each} />`)}</div>
          <${Meanings} />
          <${Card} title="By model">
            <${Table}
              caption="Memory by model and device" columns=${MODEL_COLUMNS} rows=${models} rowKey=${(row) => row.key}
              empty=${html`<${Empty} title="No model holds memory here">What is free above is what a model may take.<//>`}
            />
          <//>`
      : nothingYet(facts)}
    ${facts.mesh &&
    html`<${Card} title="Other machines of the mesh">
      ${others.length > 0 &&
      html`<p class="muted">${total("free")} of ${total("total")} are free there for plans, as those nodes say.</p>`}
      <${Table}
        caption="Memory of the other machines" columns=${MESH_COLUMNS} rows=${others} rowKey=${(row) => row.key}
        empty=${html`<${Empty} title="No other machine shares memory">
          Models that do not fit here can run over several machines of a mesh.
        <//>`}
      />
    <//>`}
  </div>`;
}
