// The details of a model that may be served: which nodes could take it, how fast, and why not others.

import { html, useEffect, useSignal } from "../lib.js";
import { models } from "../store.js";
import { post } from "../api.js";
import { bytes, clean, milliseconds, rate } from "../format.js";
import { Badge } from "../parts/badge.js";
import { Button } from "../parts/button.js";
import { Dialog } from "../parts/dialog.js";
import { Failure, Loading, Notice } from "../parts/notice.js";
import { Table } from "../parts/table.js";

const VERDICTS = {
  solo: ["good", "serves it alone"],
  host: ["good", "hosts it"],
  worker: ["good", "takes layers"],
  spare: ["off", "not needed"],
  rejected: ["bad", "cannot"],
};
const RANKS = Object.keys(VERDICTS);
const FITS = { solo: ["good", "one node"], split: ["warn", "several nodes"], no: ["bad", "nowhere"] };

const badge = ([kind, words]) => html`<${Badge} kind=${kind}>${words}<//>`;
const right = "right";

const NODES = [
  { key: "name", title: "Node", render: (row) => clean(row.name || row.node.slice(0, 10), 60) },
  { key: "rtt", title: "RTT", align: right, render: (row) => milliseconds(row.rtt_s == null ? null : row.rtt_s * 1e3) },
  { key: "memory", title: "Memory", align: right, render: (row) => bytes(row.memory_bytes) },
  { key: "speed", title: "Tokens/s", align: right, render: (row) => rate(row.predicted_tokens_per_s) },
  { key: "verdict", title: "Verdict", render: (row) => badge(VERDICTS[row.verdict] || ["off", clean(row.verdict, 30)]) },
  { key: "reason", title: "Reason", render: (row) => clean(row.reason, 300) },
];

const VARIANTS = [
  { key: "quantisation", title: "Quantisation", render: (row) => html`<code>${clean(row.quantisation, 30)}</code>` },
  { key: "size", title: "Size", align: right, render: (row) => bytes(row.size_bytes), sort: (row) => row.size_bytes },
  { key: "fits", title: "Fits", render: (row) => badge(FITS[row.fits] || ["off", clean(row.fits, 30)]) },
  { key: "speed", title: "Tokens/s", align: right, render: (row) => rate(row.predicted_tokens_per_s) },
  {
    key: "notes",
    title: "Notes",
    render: (row) => [row.chosen && "chosen", row.on_disk && "on this disk"].filter(Boolean).join(", "),
  },
];

/** Those that take part first, workers in the order in which a token passes them. */
function inOrder({ candidates, split }) {
  const place = new Map((split?.stages || []).map((stage) => [stage.node, stage.first_layer]).reverse());
  const rank = (row) => RANKS.indexOf(row.verdict) * 1e6 + (place.get(row.node) || 0);
  return [...candidates].sort((one, other) => rank(one) - rank(other));
}

function Facts({ facts }) {
  const { decision, variants = [] } = facts;
  const kind = decision.refusal ? "bad" : decision.split ? "warn" : "good";
  return html`<${Notice} kind=${kind} title=${clean(facts.sentence, 600)}>
      ${facts.fix && html`<p>To do: ${clean(facts.fix, 400)}</p>`}
      ${facts.precision && html`<p>${clean(facts.precision, 400)}</p>`}
    <//>
    <h3>Nodes</h3>
    <${Table}
      caption="What each node could do"
      columns=${NODES}
      rows=${inOrder(decision)}
      rowKey=${(row) => row.node}
      empty="No node could be asked."
    />
    ${variants.length > 1 &&
    html`<h3>Quantisations</h3>
      <${Table} caption="Quantisations that there are" columns=${VARIANTS} rows=${variants} rowKey=${(row) => row.name} />`}`;
}

/** Asks the node where `model` (a name; null: closed) would run. `load` is called with it when a person wants that. */
export function PlanDialog({ model, onClose, load }) {
  const facts = useSignal(null);
  const problem = useSignal(null);
  useEffect(() => {
    facts.value = problem.value = null;
    if (!model) return undefined;
    let wanted = true;
    post("/api/plan", { model }).then(
      (answer) => wanted && (facts.value = answer),
      (error) => wanted && (problem.value = error),
    );
    return () => (wanted = false);
  }, [model]);
  const start = () => {
    onClose();
    load(model);
  };
  const served = models.value.some((each) => each.id === facts.value?.model && each.where === "here" && each.state !== "failed");
  const may = facts.value && !facts.value.decision.refusal && !served;
  const actions = html`<${Button} onClick=${onClose}>Close<//> ${may && html`<${Button} kind="primary" onClick=${start}>Load<//>`}`;
  return html`<${Dialog} open=${Boolean(model)} title=${`Where ${clean(model || "", 120)} would run`} onClose=${onClose} actions=${actions}>
    <div class="plan">
      <${Failure} error=${problem.value} />
      ${facts.value && html`<${Facts} facts=${facts.value} />`}
      ${!facts.value && !problem.value && html`<${Loading} what="Asking every node; a model that is not on this disk is looked up first" />`}
    </div>
  <//>`;
}
