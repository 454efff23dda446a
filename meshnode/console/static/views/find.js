// Public meshes that are listed at the Nostr relays: what they claim, what they have shown, and why one suits or not.
// Nothing is asked before somebody says so: relays and meshes learn the address of this node by it.

import { html, useSignal } from "../lib.js";
import { get } from "../api.js";
import { clean, count, milliseconds, own, seconds, sentence, short } from "../format.js";
import { announce } from "../parts/announce.js";
import { Badge } from "../parts/badge.js";
import { Button } from "../parts/button.js";
import { Card } from "../parts/card.js";
import { Field, TextInput } from "../parts/field.js";
import { Empty, Loading, Notice } from "../parts/notice.js";
import { Table } from "../parts/table.js";
import { bound, Faults, submit } from "./acts.js";

const RELAYS = {
  ok: ["good", "answered"],
  empty: ["warn", "has nothing"],
  slow: ["warn", "too slow"],
  down: ["bad", "not reached"],
  lying: ["bad", "sent what is not true"],
  refused: ["bad", "refused"],
};
const LONGEST_MODEL = 64;
const LONGEST_REGION = 40;

/** How a Nostr relay behaved. */
export function RelayState({ report }) {
  const [kind, words] = own(RELAYS, report.state) ?? ["off", clean(report.state, 20)];
  return html`<code class="cut" title=${clean(report.url, 300)}>${clean(report.url, 80)}</code>
    <${Badge} kind=${kind}>${words}<//>
    <span class="muted">${[clean(report.text, 120), milliseconds(report.elapsed_s * 1e3)].filter(Boolean).join(", ")}</span>`;
}

const list = (names) => html`<span class="cut" title=${names}>${names || "–"}</span>`;
const names = (models) => models.map((each) => clean(each, 60)).join(", ");
const nameOf = (row) => clean(row.name, 60) || short(row.mesh);

const why = (row) =>
  row.refusal ? html`<span class="refusal">${sentence(row.refusal, 200)}</span>` : row.reasons.map((each) => clean(each, 100)).join(", ") || "–";

const columns = (acts, mesh, join) => [
  {
    key: "name", title: "Mesh", sort: (row) => nameOf(row).toLowerCase(),
    render: (row) => html`<span class="cut" title=${row.mesh}>${nameOf(row)}</span>${row.region && html`<small>${clean(row.region, 40)}</small>`}`,
  },
  {
    key: "models", title: "Models", sort: (row) => row.listed.models.length,
    render: (row) => (row.shown
      ? html`${list(names(row.shown.models))}${row.listed.wanted.length > 0 && html`<small>wants ${names(row.listed.wanted.slice(0, 4))}</small>`}`
      : html`${list(names(row.listed.models.map(({ name }) => name)))}<small>claimed</small>`),
  },
  {
    key: "nodes", title: "Nodes", align: "right", sort: (row) => row.shown?.nodes ?? -1,
    render: (row) => (row.shown ? count(row.shown.nodes) : html`${count(row.listed.nodes)}<small>claimed</small>`),
  },
  { key: "free", title: "Free", align: "right", sort: (row) => row.shown?.free_slots ?? -1, render: (row) => count(row.shown?.free_slots) },
  { key: "rtt", title: "Round trip", align: "right", sort: (row) => row.shown?.rtt_s, render: (row) => milliseconds(row.shown ? row.shown.rtt_s * 1e3 : null) },
  { key: "score", title: "Score", align: "right", sort: (row) => (row.refusal ? null : row.score), render: (row) => (row.refusal ? "–" : count(row.score)) },
  { key: "why", title: "Why", render: (row) => html`<span class="why">${why(row)}</span>` },
  {
    key: "join", title: html`<span class="unseen">Join</span>`, align: "right",
    render: (row) => (row.mesh === mesh?.id
      ? html`<${Badge} kind="good">here<//>`
      : html`<${Button} label=${`Join ${nameOf(row)}`} disabled=${Boolean(row.refusal)} busy=${acts.busy(`join ${row.name}`)} onClick=${() => join(row.name)}>Join<//>`),
  },
];

function Results({ found, acts, mesh, join }) {
  const drops = found.drops ?? [];
  return html`
    <p class="muted" role="status">
      ${found.meshes.length === 1 ? "One mesh is" : `${count(found.meshes.length)} meshes are`} listed; this took ${seconds(found.elapsed_s)}.
      ${drops.length > 0 && ` Left out: ${drops.map((each) => clean(each, 120)).join(", ")}.`}
    </p>
    ${found.error && html`<${Notice} kind="warn" title=${sentence(found.error.message)}>${sentence(found.error.fix)}<//>`}
    <${Table}
      caption="Public meshes, the best first" columns=${columns(acts, mesh, join)} rows=${found.meshes} rowKey=${(row) => row.mesh}
      empty=${html`<${Empty} title="No mesh is listed">Join one by its name: whoever is first founds it.<//>`}
    />
    <ul class="relays" aria-label="The Nostr relays that were asked">
      ${found.relays.map((report) => html`<li key=${report.url}><${RelayState} report=${report} /></li>`)}
    </ul>`;
}

/** The form, and what it brought. `join(name)` takes this node there; `mesh` is where it is. */
export function Find({ acts, mesh, join }) {
  const wish = useSignal({ model: "", region: "" });
  const found = useSignal(null);
  const busy = acts.busy("find");
  const look = async () => {
    const query = new URLSearchParams(Object.entries(wish.value).map(([name, value]) => [name, value.trim()]));
    const brought = await acts.run("find", "No meshes were found", () => get(`api/discover?${query}`));
    if (!brought) return;
    found.value = brought;
    announce(`${brought.meshes.length} public meshes are listed`);
  };
  return html`<${Card} title="Find meshes">
    <p class="muted">Asks the Nostr relays of the settings, then the best meshes themselves. Both see the address of this node.</p>
    <form class="wishes" onSubmit=${submit(look)}>
      <${Field} label="That serve the model"><${TextInput} maxlength=${LONGEST_MODEL} placeholder="any" ...${bound(wish, "model")} /><//>
      <${Field} label="In the region"><${TextInput} maxlength=${LONGEST_REGION} placeholder="any" ...${bound(wish, "region")} /><//>
      <${Button} type="submit" kind="primary" icon="search" busy=${busy}>Look<//>
    </form>
    <${Faults} acts=${acts} of="find" />
    ${busy && html`<${Loading} what="Asking relays and meshes" />`}
    ${found.value && !busy && html`<${Results} found=${found.value} acts=${acts} mesh=${mesh} join=${join} />`}
  <//>`;
}
