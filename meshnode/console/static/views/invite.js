// Invite: bring machines into this mesh by a token or a spoken code, end invites, join another mesh, leave this one.
// A token is a secret: it is in the memory of this view alone, and gone when the view or the page is left.

import { html, useEffect, useSignal } from "../lib.js";
import { address, member, now, peers } from "../store.js";
import { clean, count, seconds } from "../format.js";
import { announce } from "../parts/announce.js";
import { Badge } from "../parts/badge.js";
import { Button, CopyButton } from "../parts/button.js";
import { Card } from "../parts/card.js";
import { CodeBlock } from "../parts/code.js";
import { ask } from "../parts/confirm.js";
import { Field, NumberInput, Select, Switch, TextArea, TextInput } from "../parts/field.js";
import { Empty, Loading, Notice } from "../parts/notice.js";
import { Table } from "../parts/table.js";
import { bound, Faults, submit, useActs } from "./acts.js";

const ROLES = [
  { value: "member", label: "Member: may serve models" },
  { value: "client", label: "Client: uses models, serves none" },
];
const TERMS = [
  [1800, "30 minutes"],
  [3600, "1 hour"],
  [86400, "24 hours"],
  [604800, "7 days"],
  [2592000, "30 days"],
].map(([value, label]) => ({ value: String(value), label }));
const MOST_USES = 1000;

const machines = (number) => (number === 1 ? "one machine" : `${count(number)} machines`);

// --- an invite ---------------------------------------------------------------------------------------------------

function Made({ made, hide, revoke }) {
  const client = made.role === "client";
  const left = made.expires_at - now.value / 1e3;
  return html`<section class="made" aria-label="The new invite">
    <${Notice} kind="warn" title="Whoever has this can come in">
      It adds ${machines(made.uses)} ${client ? "for client-only use" : "that may serve models"}${made.may_invite ? " and invite others" : ""};
      ${left > 0 ? ` it expires in ${seconds(left)}` : " it has expired"}. It is shown this once and kept nowhere.
    <//>
    <div class="token">
      <div>
        <${CodeBlock} label="Token" text=${made.token} />
        <p>On the other machine run this, or paste the token under “Join another mesh” in its console:</p>
        <${CodeBlock} label="Command for the other machine" text=${`meshnode ${client ? "--client " : ""}--join ${made.token}`} />
      </div>
      ${made.qr_svg &&
      html`<img class="qr" src=${`data:image/svg+xml,${encodeURIComponent(made.qr_svg)}`} alt="QR code of the token" width="240" height="240" />`}
    </div>
    <p class="actions">
      <${Button} onClick=${hide}>Hide it<//>
      <${Button} kind="danger" onClick=${() => revoke(made)}>Revoke it<//>
    </p>
  </section>`;
}

function Create({ acts, mesh, revoke }) {
  const made = useSignal(null);
  const wish = useSignal({ role: "member", ttl: "86400", uses: 5, may: false });
  const { role, ttl, uses, may } = wish.value;
  const set = (name) => (value) => (wish.value = { ...wish.value, [name]: value });
  useEffect(() => {
    // A page that is kept for "back" would show it again.
    const hide = () => (made.value = null);
    addEventListener("pagehide", hide);
    return () => removeEventListener("pagehide", hide);
  }, []);
  if (!mesh.may_invite) {
    return html`<${Empty} title="This node may not invite others">
      Ask whoever founded the mesh, or somebody who was invited with the right to invite.
    <//>`;
  }
  const fits = Number.isInteger(uses) && uses >= 1 && uses <= MOST_USES;
  const create = async () => {
    const body = { role, ttl_s: Number(ttl), uses, may_invite: role === "member" && may, qr: true };
    made.value = await acts.post("invite", "No invite was made", "/api/invite", body, "The invite is made");
  };
  const shown = made.value && !mesh.invites.some((each) => each.id === made.value.id && each.revoked) ? made.value : null;
  return html`<form class="wishes" onSubmit=${submit(create)}>
      <${Field} label="For"><${Select} value=${role} options=${ROLES} onChange=${set("role")} /><//>
      <${Field} label="Can be used for"><${Select} value=${ttl} options=${TERMS} onChange=${set("ttl")} /><//>
      <${Field} label="Machines it adds" error=${fits ? "" : `1 to ${MOST_USES}`}>
        <${NumberInput} min=${1} max=${MOST_USES} ...${bound(wish, "uses")} />
      <//>
      ${role === "member" && html`<${Switch} label="They may invite others" checked=${may} onChange=${set("may")} />`}
      <${Button} kind="primary" type="submit" disabled=${!fits} busy=${acts.busy("invite")}>Make an invite<//>
    </form>
    <${Faults} acts=${acts} of="invite" />
    ${shown && html`<${Made} made=${shown} hide=${() => (made.value = null)} revoke=${revoke} />`}`;
}

// --- invites that there are --------------------------------------------------------------------------------------

function stateOf(invite) {
  if (invite.revoked) return ["off", "revoked"];
  if (invite.expires_at <= now.value / 1e3) return ["off", "expired"];
  return invite.uses_left > 0 ? ["good", "open"] : ["off", "used up"];
}

function Invites({ invites, acts, revoke }) {
  const expires = (row) => stateOf(row)[1] === "open" && `expires in ${seconds(row.expires_at - now.value / 1e3)}`;
  const columns = [
    {
      key: "id",
      title: "Invite",
      render: (row) => html`<code title=${row.id}>${row.id.slice(0, 8)}</code> <small>${row.role}${row.may_invite && ", may invite"}</small>`,
    },
    {
      key: "state",
      title: "State",
      render: (row) => html`<${Badge} kind=${stateOf(row)[0]}>${stateOf(row)[1]}<//> <small>${expires(row)}</small>`,
    },
    { key: "uses", title: "Left", align: "right", render: (row) => `${count(row.uses_left)} of ${count(row.uses)}` },
    {
      key: "end",
      title: html`<span class="unseen">End it</span>`,
      align: "right",
      render: (row) =>
        stateOf(row)[1] === "open" &&
        html`<${Button} label=${`Revoke ${row.id.slice(0, 8)}`} busy=${acts.busy(`revoke ${row.id}`)} onClick=${() => revoke(row)}>
          Revoke
        <//>`,
    },
  ];
  return html`<${Faults} acts=${acts} of="revoke" />
    <${Table}
      caption="Invites of this node"
      columns=${columns}
      rows=${[...invites].sort((one, other) => other.expires_at - one.expires_at)}
      rowKey=${(row) => row.id}
      empty="No invite was made yet."
    />`;
}

// --- pairing -----------------------------------------------------------------------------------------------------

function Pair({ mesh, acts }) {
  const shown = useSignal(null);
  const typed = useSignal({ code: "", at: "" });
  const joined = useSignal("");
  const pairing = mesh?.pairing;
  const mark = pairing?.state || "waiting";
  const { code, at } = typed.value;
  const show = async () => {
    joined.value = "";
    const answer = await acts.post("show", "No code can be shown", "/api/pair", {}, "The code is shown");
    if (answer) shown.value = { ...answer, ends: Date.now() + answer.expires_s * 1e3, before: mark, begun: false };
  };
  const type = async () => {
    const body = { code: code.trim(), ...(at.trim() && { at: at.trim() }) };
    const answer = await acts.post("type", "The machines are not paired", "/api/pair", body, "The machines are paired");
    if (!answer) return;
    typed.value = { code: "", at: "" };
    joined.value = `${answer.joined ? "This node joined" : "The other machine joined"} “${clean(answer.name, 60)}”`;
  };
  // What the status says counts from when it has heard of this code.
  const wait = shown.value;
  const begun = wait && (wait.begun || mark === "waiting" || mark !== wait.before);
  useEffect(() => {
    if (begun && !wait.begun) shown.value = { ...wait, begun: true };
  }, [begun]);
  const left = wait ? (wait.ends - now.value) / 1e3 : 0;
  const ended = begun && mark !== "waiting" ? mark : wait && left <= 0 ? "expired" : "";
  const open = wait && !ended;
  useEffect(() => {
    if (ended === "paired") announce("The other machine is in");
  }, [ended]);
  return html`<div class="two">
    <div>
      <h3>Show a code</h3>
      ${open
        ? html`<p class="spoken" aria-label="The code">${clean(wait.code, 100)}</p>
            <p>On the other machine type it under “Type a code”, or run:</p>
            <${CodeBlock} label="Command for the other machine" text=${`meshnode pair ${wait.code}`} />
            ${wait.addresses[0] &&
            html`<p class="muted">If it finds nobody: <code>--at ${clean(wait.addresses[0], 80)}</code></p>`}
            <p role="status"><${Badge} kind="busy">waiting<//> one try, ${seconds(left)} left</p>`
        : html`<p class="muted">Read it out to somebody: it lasts for minutes and one try.</p>`}
      ${ended === "paired" && html`<${Notice} kind="good" title="The machines are paired">They are in “${clean(mesh?.name, 60)}” now.<//>`}
      ${ended === "failed" && html`
        <${Notice} kind="bad" title=${clean(pairing.detail || "The pairing failed", 300)}>Show a new code for another try.<//>
      `}
      ${ended === "expired" && html`<${Notice} kind="info" title="Nobody came while the code was good" />`}
      <${Faults} acts=${acts} of="show" />
      ${!open && html`<${Button} busy=${acts.busy("show")} onClick=${show}>Show a code<//>`}
    </div>
    <form onSubmit=${submit(type)}>
      <h3>Type a code</h3>
      <${Field} label="Code that the other machine shows">
        <${TextInput} ...${bound(typed, "code")} />
      <//>
      <${Field} label="Its address (optional)" hint="HOST:PORT, when it is not found on the local network">
        <${TextInput} ...${bound(typed, "at")} />
      <//>
      <${Faults} acts=${acts} of="type" />
      ${joined.value && html`<${Notice} kind="good" title=${joined.value} />`}
      <${Button} type="submit" disabled=${!code.trim()} busy=${acts.busy("type")}>Pair<//>
    </form>
  </div>`;
}

// --- other meshes ------------------------------------------------------------------------------------------------

/** Leaves the mesh, if that is what the person wants; whether it has. */
async function leave(acts, mesh, action) {
  const text =
    "The certificate and the invites of this node are forgotten; to come back it needs a new invite. " +
    "Its own models go on, in a mesh of its own.";
  const sure = await ask({ title: `Leave “${clean(mesh.name, 60)}”?`, text, action, danger: true });
  return sure && Boolean(await acts.post("leave", "This node has not left", "/api/leave", {}, "This node has left"));
}

function Join({ mesh, acts }) {
  const token = useSignal("");
  const joined = useSignal("");
  const pasted = token.value.trim();
  const join = async () => {
    joined.value = "";
    const answer = await acts.post("join", "This node has not joined", "/api/join", { token: pasted }, "This node has joined");
    if (!answer) return;
    token.value = "";
    joined.value = `Joined “${clean(answer.name, 60)}”`;
  };
  const instead = async () => {
    if (await leave(acts, mesh, "Leave and join")) await join();
  };
  const taken = acts.faults.value.some((fault) => fault.key === "join" && fault.error.code === "already-in-mesh");
  const busy = acts.busy("join");
  return html`<form onSubmit=${submit(join)}>
    <${Field} label="Token" hint="What “Make an invite” or meshnode invite shows on a machine of that mesh">
      <${TextArea} ...${bound(token)} />
    <//>
    ${taken
      ? html`<${Notice} kind="warn" title=${`This node belongs to “${clean(mesh?.name, 60)}”, which it shares with others`}>
          <p>It can be in one mesh at a time. To be in both, start a second node with a home of its own (MESHNODE_HOME).</p>
          <p class="actions">
            <${Button} kind="danger" busy=${acts.busy("leave") || busy} onClick=${instead}>Leave it and join<//>
            <${Button} onClick=${() => acts.dismiss("join")}>Stay<//>
          </p>
        <//>`
      : html`<${Faults} acts=${acts} of="join" />`}
    ${joined.value && html`<${Notice} kind="good" title=${joined.value}><a href=${address("mesh")}>See who is there</a><//>`}
    ${busy && html`<p role="status">Looking for the node that made this invite …</p>`}
    ${!taken && html`<${Button} kind="primary" type="submit" disabled=${!pasted} busy=${busy}>Join<//>`}
  </form>`;
}

function Mine({ mesh, acts }) {
  const alive = peers.value.filter((peer) => peer.state === "alive").length;
  return html`<dl class="facts">
      <div><dt>Name</dt><dd>${clean(mesh.name, 80)}</dd></div>
      <div>
        <dt>Id</dt>
        <dd><code>${mesh.id.slice(0, 16)}</code> <${CopyButton} text=${mesh.id} label="Copy the id of the mesh" /></dd>
      </div>
      <div><dt>Other machines</dt><dd>${alive ? count(alive) : mesh.state === "joining" ? "looking for them" : "none yet"}</dd></div>
      <div><dt>Addresses of this node</dt><dd>${mesh.addresses.map((each) => html`<code key=${each}>${each}</code> `)}</dd></div>
    </dl>
    <${Faults} acts=${acts} of="leave" />
    <p class="actions"><${Button} kind="danger" busy=${acts.busy("leave")} onClick=${() => leave(acts, mesh, "Leave")}>Leave this mesh<//></p>`;
}

export default function View() {
  const acts = useActs();
  const mesh = member("mesh").value;
  if (!member("node").value) return html`<${Loading} what="Reading the mesh" />`;
  const revoke = async (invite) => {
    const text = "It adds nobody any more. Machines that came with it stay.";
    if (await ask({ title: `Revoke ${invite.id.slice(0, 8)}?`, text, action: "Revoke", danger: true })) {
      await acts.post(`revoke ${invite.id}`, "The invite was not revoked", "/api/invite/revoke", { id: invite.id }, "The invite is revoked");
    }
  };
  return html`
    ${mesh &&
    html`<${Card} title="Invite a machine"><${Create} acts=${acts} mesh=${mesh} revoke=${revoke} /><//>
      ${mesh.may_invite && html`<${Card} title="Invites"><${Invites} invites=${mesh.invites} acts=${acts} revoke=${revoke} /><//>`}`}
    <${Card} title="Pair by a spoken code"><${Pair} mesh=${mesh} acts=${acts} /><//>
    <${Card} title="Join another mesh"><${Join} mesh=${mesh} acts=${acts} /><//>
    ${mesh
      ? html`<${Card} title="This mesh"><${Mine} mesh=${mesh} acts=${acts} /><//>`
      : html`<${Empty} title="This node is in no mesh">Paste the token of somebody who is in one, or start it without --solo.<//>`}
    <${Card} title="Public meshes">
      <${Empty} title="Meshes of strangers need no invite">
        <a href=${address("public")}>Find, join and offer them under Public</a>, which says as well what a stranger sees.
      <//>
    <//>
  `;
}
