// Public: this node among strangers. In which mesh, how it is reached, what it gives and to how many, who else is there,
// which other meshes there are, how far requests may go, and what was written down of all that.
// Names of meshes, nodes, models and regions are what strangers say of themselves.

import { html, useSignal } from "../lib.js";
import { address, member, now } from "../store.js";
import { ago, clean, count, own, sentence, short } from "../format.js";
import { Badge } from "../parts/badge.js";
import { Button, CopyButton } from "../parts/button.js";
import { Card } from "../parts/card.js";
import { CodeBlock } from "../parts/code.js";
import { ask } from "../parts/confirm.js";
import { Field, Switch, TextInput } from "../parts/field.js";
import { Empty, Loading, Notice } from "../parts/notice.js";
import { bound, Faults, submit, useActs } from "./acts.js";
import { Audit } from "./audit.js";
import { Find, RelayState } from "./find.js";
import { Crowd } from "./crowd.js";
import { Reach } from "./reach.js";

const STATES = {
  looking: ["busy", "looking for a mesh"],
  joining: ["busy", "joining"],
  joined: ["good", "in a public mesh"],
  alone: ["warn", "alone"],
  failed: ["bad", "not in a public mesh"],
};
const NATS = {
  none: "none: others see this machine as it sees itself",
  cone: "cone: a direct path can be opened to most nodes",
  symmetric: "symmetric: other nodes behind such a router are reached through relays only",
  unknown: "not known yet: it takes two nodes elsewhere to tell",
};
const REASONS = {
  "bad-request": "asked for what strangers do not get",
  paused: "came while strangers were not served",
};
const LONGEST_NAME = 40;

const Fact = ({ name, children }) => html`<div><dt>${name}</dt><dd>${children}</dd></div>`;
const plural = (number, one) => `${count(number)} ${one}${number === 1 ? "" : "s"}`;
const codes = (texts) => texts.map((each) => html`<code key=${each}>${clean(each, 80)}</code> `);

// --- where this node is ------------------------------------------------------------------------------------------

const pathTo = (swarm, id) => {
  const peer = swarm.peers?.find((each) => each.id === id || each.short === id);
  return clean(peer?.name, 40) || short(clean(id, 64));
};

function Standing({ swarm }) {
  const { mesh, nat, addresses = [], role, dht } = swarm;
  return html`<dl class="facts">
    ${mesh && html`<${Fact} name="Mesh">
      <b>${clean(mesh.name, 80)}</b> <code title=${mesh.id}>${short(mesh.id)}</code>
      <${CopyButton} text=${mesh.id} label="Copy the id of the mesh" />
    <//>`}
    ${role && html`<${Fact} name="As">${role === "client" ? "a client: it asks, and serves nothing" : "a member"}<//>`}
    ${nat && html`<${Fact} name="Router">${own(NATS, nat.kind) ?? clean(nat.kind, 40)}<//>`}
    ${addresses.length > 0 && html`<${Fact} name="Addresses">${codes(addresses)}<//>`}
    ${nat?.observed.length > 0 && html`<${Fact} name="As others see it">${codes(nat.observed)}<//>`}
    ${nat?.mapped.length > 0 && html`<${Fact} name="Opened by the router">${codes(nat.mapped)}<//>`}
    ${nat && html`<${Fact} name="Relays in use">
      ${nat.relays.length ? nat.relays.map((id) => html`<span class="line" key=${id} title=${clean(id, 64)}>${pathTo(swarm, id)}</span>`) : "none"}
    <//>`}
    ${dht?.running && html`<${Fact} name="Found by models">
      ${plural(dht.providing, "model")} of this node in the hash table, which it keeps with ${plural(dht.peers, "other")}
    <//>`}
  </dl>`;
}

function Listing({ swarm }) {
  const { listing, publisher } = swarm;
  if (!listing) {
    return html`<p class="muted">${publisher ? "This node is about to list the mesh." : "Other nodes list this mesh; this one does not need to."}</p>`;
  }
  return html`
    <p class="muted">
      ${publisher ? "This node lists the mesh" : "This node listed the mesh"}, the last time ${ago(listing.at, now.value)}.
    </p>
    <ul class="relays" aria-label="What the Nostr relays said to that">
      ${listing.relays.map((report) => html`<li key=${report.url}><${RelayState} report=${report} /></li>`)}
    </ul>`;
}

/** How to get in: by name, or wherever is best. */
function Join({ acts, swarm }) {
  const name = useSignal("");
  const wanted = name.value.trim();
  const here = swarm?.mesh?.name;
  const join = (named) => go(acts, named, here);
  return html`<p class="muted">Whoever says the same name meets there; the first founds it.</p>
    <form class="wishes" onSubmit=${submit(() => wanted && join(wanted))}>
      <${Field} label="Name of a public mesh">
        <${TextInput} maxlength=${LONGEST_NAME} placeholder="meshnode" ...${bound(name)} />
      <//>
      <${Button} type="submit" disabled=${!wanted} busy=${acts.busy(`join ${wanted}`)}>Join it<//>
      <${Button} kind=${swarm ? "quiet" : "primary"} busy=${acts.busy("join ")} onClick=${() => join("")}>Join the best one<//>
    </form>
    <${Faults} acts=${acts} of="join" />`;
}

/** Joins the public mesh of that name, or the best with "", if that is what the person wants. */
async function go(acts, name, here) {
  const called = name ? `“${clean(name, 60)}”` : "the public mesh that suits best";
  const text =
    "Strangers there learn the key and the address of this node. They get to its models only where it was started with " +
    `--publish; your private mesh stays as it is.${here ? ` It leaves “${clean(here, 60)}” for that.` : ""}`;
  if (!(await ask({ title: `Join ${called}?`, text, action: "Join" }))) return;
  await acts.post(`join ${name}`, "This node has not joined", "/api/swarm/join", name ? { name } : {}, "This node looks for the mesh");
}

async function leave(acts, mesh) {
  const called = mesh ? `“${clean(mesh.name, 60)}”` : "the public mesh";
  const text = "Strangers reach this node no more, and it asks none of them. Your private mesh stays as it is.";
  if (!(await ask({ title: `Leave ${called}?`, text, action: "Leave", danger: true }))) return;
  await acts.post("leave", "This node has not left", "/api/swarm/leave", {}, "This node has left the public mesh");
}

function Swarm({ swarm, acts }) {
  const [kind, words] = own(STATES, swarm.state) ?? ["busy", clean(swarm.state, 40)];
  const failed = swarm.state === "failed";
  return html`<${Card} title="This node" actions=${html`<${Badge} kind=${kind}>${words}<//>`}>
    ${failed || swarm.state === "alone"
      ? html`<${Notice} kind=${failed ? "bad" : "info"} title=${sentence(swarm.sentence)}>
          ${failed && html`<p>Try another name, or the best mesh there is.</p>`}
        <//>`
      : html`<p role="status">${sentence(swarm.sentence)}</p>`}
    ${!failed && html`<${Standing} swarm=${swarm} />`}
    ${swarm.role === "member" && html`<h3>On the lists</h3><${Listing} swarm=${swarm} />`}
    <h3>${failed ? "Join" : "Join another"}</h3>
    <${Join} acts=${acts} swarm=${swarm} />
    ${!failed && html`
      <${Faults} acts=${acts} of="leave" />
      <p><${Button} kind="danger" busy=${acts.busy("leave")} onClick=${() => leave(acts, swarm.mesh)}>Leave public meshes<//></p>
    `}
  <//>`;
}

const NotPublic = ({ acts }) => html`<${Card} title="This node">
  <${Empty} title="This node meets no strangers">
    In a public mesh it can ask for models that nobody near serves. Only with <code>--publish</code> at its start does it
    offer its own.
  <//>
  <${Join} acts=${acts} />
  <p class="muted">The same from the command line:</p>
  <${CodeBlock} label="Use public meshes" text="meshnode --auto" />
  <${CodeBlock} label="Offer a model as well" text="meshnode --model demo --publish" />
<//>`;

// --- strangers that are served -----------------------------------------------------------------------------------

function Strangers({ swarm, acts }) {
  const { publishing, paused, strangers } = swarm;
  const serve = (on) =>
    acts.post("pause", "Nothing has changed", "/api/swarm/pause", { paused: !on }, on ? "Strangers are served" : "Strangers are not served");
  const reasons = Object.entries(strangers.reasons ?? {});
  return html`<${Card} title="What strangers get here">
    <${Switch} label="Serve strangers" checked=${publishing && !paused} disabled=${!publishing || acts.busy("pause")} onChange=${serve} />
    <p class="muted">
      ${!publishing ? html`This node was started without <code>--publish</code>: strangers get nothing here.`
        : paused ? "Paused: what strangers ask is refused, and the mesh hears of no model of this node. What had begun is finished."
        : html`Strangers wait until nobody of yours does, and each gets only so much: <a href=${address("settings")}>the settings</a> have the bounds.`}
    </p>
    <${Faults} acts=${acts} of="pause" />
    <dl class="figures">
      ${[
        ["Served now", strangers.slots ? `${count(strangers.serving)} of ${count(strangers.slots)}` : count(strangers.serving)],
        ["Waiting", count(strangers.waiting)],
        ["Answered", count(strangers.served)],
        ["Refused", count(strangers.refused)],
        ["Tokens read", count(strangers.tokens_in)],
        ["Tokens written", count(strangers.tokens_out)],
      ].map(([name, value]) => html`<div key=${name}><dt>${name}</dt><dd>${value}</dd></div>`)}
    </dl>
    ${reasons.length > 0 && html`<p class="muted">
      Refused: ${reasons.map(([reason, number]) => `${own(REASONS, reason) ?? clean(reason.replaceAll("-", " "), 40)} (${count(number)})`).join(", ")}.
    </p>`}
  <//>`;
}

// --- the view ----------------------------------------------------------------------------------------------------

export default function View() {
  const acts = useActs();
  const swarm = member("swarm").value;
  if (!member("node").value) return html`<${Loading} what="Asking the node" />`;
  if (!swarm && !member("mesh").value) {
    return member("state").value === "starting"
      ? html`<${Loading} what="The node is finding its meshes" />`
      : html`<${Empty} title="This node is in no mesh">
          It was started with <code>--solo</code>: it meets neither friends nor strangers, and nothing leaves this machine.
        <//>`;
  }
  const join = (name) => go(acts, name, swarm?.mesh?.name);
  return html`
    ${swarm ? html`<${Swarm} swarm=${swarm} acts=${acts} />` : html`<${NotPublic} acts=${acts} />`}
    ${swarm?.strangers && html`<${Strangers} swarm=${swarm} acts=${acts} />`}
    <${Reach} acts=${acts} />
    ${swarm?.peers && html`<${Crowd} swarm=${swarm} />`}
    <${Find} acts=${acts} mesh=${swarm?.mesh} join=${join} />
    <${Audit} />
  `;
}
