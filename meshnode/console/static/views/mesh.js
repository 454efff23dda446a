// Mesh: who is in it, how each is reached and what it does, as a picture, as a table, and one node in full.

import { html, useEffect, useRef, useState } from "../lib.js";
import { address, status } from "../store.js";
import { bytes, clean } from "../format.js";
import { announce } from "../parts/announce.js";
import { Badge } from "../parts/badge.js";
import { Card } from "../parts/card.js";
import { Empty, Loading } from "../parts/notice.js";
import { Table } from "../parts/table.js";
import { Fact, Panel, State, plural } from "./member.js";
import {
  PATHS, STATES, freeOf, isHere, layersText, nameOf, pathOf, rolesOf, rttOf, selfOf, splitsOf, stateOf, whoOf, workersOf,
} from "./members.js";
import { MOST_NODES } from "./rings.js";
import { Legend, Topology } from "./topology.js";

// --- the mesh as a whole -------------------------------------------------------------------------------------------

/** What stands there while nothing is chosen. */
function Overview({ mesh, peers, splits, running }) {
  const states = Object.keys(STATES).map((state) => [state, peers.filter((peer) => stateOf(peer) === state).length]);
  const total = peers.reduce((sum, peer) => sum + (isHere(peer) ? (freeOf(peer) ?? 0) : 0), 0);
  return html`<section class="panel card" aria-label="The mesh">
    <header>
      <div>
        <h2 class="name" title=${clean(mesh.name)}>${clean(mesh.name, 80) || "The mesh"}</h2>
        <p class="muted">this node is a ${mesh.role}</p>
      </div>
    </header>
    <dl class="facts">
      <${Fact} name="Others">
        ${!peers.length && "none yet"}
        ${states.map(
          ([state, number]) =>
            number > 0 &&
            html`<span class="line"><${Badge} kind=${STATES[state][0]}>${number} ${STATES[state][1]}<//></span>`,
        )}
      <//>
      ${total > 0 && html`<${Fact} name="Memory free">${bytes(total)} on other machines<//>`}
      <${Fact} name="Splits">${splits.length || "none"}<//>
      <${Fact} name="Under way">${plural(running, "request")}<//>
    </dl>
    <p class="hint muted">Choose a node for all that is known of it.</p>
  </section>`;
}

// --- splits and table ----------------------------------------------------------------------------------------

function Splits({ splits, names }) {
  const called = (id) => names.get(id) ?? id.slice(0, 10);
  return splits.map(
    (split, number) => html`<div class="split" key=${split.key}>
      <h3 title=${split.model}>${split.model}</h3>
      ${!split.here && html`<p class="muted">hosted by ${called(split.host)}, which knows its other workers</p>`}
      <ol class="band-${number % 3}" aria-label=${`The layers of ${split.model}, in the order in which a token passes them`}>
        ${split.segments.map(
          (each) => html`<li style=${{ flexGrow: each.layers }}>
            <b title=${called(each.node)}>${called(each.node)}</b>
            <span>${layersText(each)}${each.node === split.host ? " · host" : ""}</span>
          </li>`,
        )}
      </ol>
    </div>`,
  );
}

const pathWords = (peer) => (peer.here ? "" : PATHS[pathOf(peer)]);

const columns = (workers) => [
  {
    key: "name", title: "Name", sort: (peer) => nameOf(peer).toLowerCase(),
    render: (peer) => html`<span class="name" title=${nameOf(peer)}>${nameOf(peer)}</span>${peer.here && html`<span class="muted">${" "}this node</span>`}`,
  },
  { key: "role", title: "Role", sort: (peer) => rolesOf(peer, workers), render: (peer) => rolesOf(peer, workers) },
  {
    key: "state", title: "State", sort: (peer) => Object.keys(STATES).indexOf(stateOf(peer)),
    render: (peer) => html`<${State} peer=${peer} />`,
  },
  { key: "radius", title: "Who", sort: whoOf, render: (peer) => whoOf(peer) || "–" },
  { key: "path", title: "Path", sort: pathWords, render: pathWords },
  {
    key: "rtt", title: "Round trip", align: "right", sort: (peer) => peer.rtt_ms ?? peer.estimated_rtt_ms,
    render: (peer) => rttOf(peer) || "–",
  },
  { key: "free", title: "Memory free", align: "right", sort: freeOf, render: (peer) => bytes(freeOf(peer)) },
  {
    key: "models", title: "Models", sort: (peer) => peer.models?.length ?? 0,
    render: (peer) => {
      const text = peer.models?.map((model) => clean(model.id, 60)).join(", ") || "–";
      return html`<span class="name" title=${text}>${text}</span>`;
    },
  },
];

// --- the view ------------------------------------------------------------------------------------------------

/** What was last known of each member, and of the chosen one when it is gone: id -> {peer, seen (ms)}. */
function useKnown(peers, selected) {
  const known = useRef(new Map()).current;
  const ids = new Set(peers.map((peer) => peer.id));
  for (const id of known.keys()) if (!ids.has(id) && id !== selected) known.delete(id);
  for (const peer of peers) {
    const before = known.get(peer.id);
    const seen = stateOf(peer) === "alive" ? Date.now() : (before?.seen ?? 0);
    // Of one that died, what it had while it lived says more than what is left of it.
    const facts = isHere(peer) || !before ? peer : { ...before.peer, state: peer.state, reachable: false };
    known.set(peer.id, { peer: facts, seen });
  }
  return known;
}

/** Ids of the nodes that work for a request: its host, and where that is this node, the workers of the model's split. */
function atWork({ node, model }, here, splits) {
  if (node && node !== here) return [node];
  const split = splits.find((each) => each.here && each.key === model);
  return [here, ...(split?.segments.map((each) => each.node) ?? [])];
}

function Alone({ mesh, self, onSelect, selected }) {
  return html`<div class="alone">
    <${Topology}
      self=${self} peers=${[]} splits=${[]} workers=${new Set()} busy=${new Set()} selected=${selected} onSelect=${onSelect}
    />
    <${Empty} title="No other machine is here yet">
      <p>
        ${mesh.may_invite
          ? "Give another machine an invite: it shares its models and its memory with this one, and this one with it."
          : "Other nodes of this mesh appear here as soon as one is reached."}
      </p>
      ${mesh.may_invite && html`<p><a class="button primary" href=${address("invite")}>Invite a machine</a></p>`}
    <//>
  </div>`;
}

/** The view. */
export default function View() {
  const facts = status.value;
  const [selected, setSelected] = useState(null);
  const mesh = facts?.mesh;
  const peers = mesh?.peers ?? [];
  const known = useKnown(peers, selected);
  const present = peers.some((peer) => peer.id === selected && isHere(peer));
  const here = selected === facts?.node?.id;
  const gone = Boolean(selected) && !here && !present && known.has(selected);
  useEffect(() => {
    if (gone) announce(`${nameOf(known.get(selected).peer)} has left the mesh`);
  }, [gone, selected]);

  if (!facts) return html`<${Loading} what="Asking the node" />`;
  if (!mesh)
    return html`<div class="mesh-view">
      ${facts.state === "starting"
        ? html`<${Loading} what="The node is finding its mesh" />`
        : html`<${Empty} title="This node is in no mesh">
            <p>
              It was started with <code>--solo</code>: no other machine sees it, and it uses none. Without that flag it
              has a mesh of its own that others can join.
            </p>
          <//>`}
    </div>`;

  const self = selfOf(facts);
  const splits = splitsOf(facts);
  const workers = workersOf(splits);
  const running = facts.requests?.running ?? [];
  const busy = new Set(running.flatMap((request) => atWork(request, self.id, splits)));
  const names = new Map([self, ...peers].map((peer) => [peer.id, nameOf(peer, 40)]));
  const shown = [self, ...peers];
  const chosen = here ? self : present || gone ? known.get(selected).peer : null;
  const pick = (id) => setSelected(id === selected ? null : id);
  const there = peers.filter(isHere).length;
  const called = `“${clean(mesh.name, 80)}”`;

  return html`<div class="mesh-view">
    <p class="muted">${there ? `${plural(there + 1, "node")} in ${called}.` : `${called} has one node so far: this one.`}</p>
    <div class="split-view">
      <${Card} title="Topology">
        ${there === 0 && !chosen
          ? html`<${Alone} mesh=${mesh} self=${self} selected=${selected} onSelect=${pick} />`
          : html`<${Topology}
                self=${self} peers=${peers} splits=${splits} workers=${workers} busy=${busy} selected=${selected}
                onSelect=${pick}
              />
              ${peers.length <= MOST_NODES && html`<${Legend} />`}`}
      <//>
      ${chosen
        ? html`<${Panel}
            peer=${chosen} gone=${gone} seen=${known.get(selected)?.seen} splits=${splits} workers=${workers}
            running=${running.filter((request) => (request.node || self.id) === chosen.id).length}
            onClose=${() => setSelected(null)}
          />`
        : html`<${Overview} mesh=${mesh} peers=${peers} splits=${splits} running=${running.length} />`}
    </div>
    ${splits.length > 0 && html`<${Card} title="Splits"><${Splits} splits=${splits} names=${names} /><//>`}
    <${Card} title="Nodes">
      <${Table}
        caption="The nodes of the mesh" columns=${columns(workers)} rows=${shown} rowKey=${(peer) => peer.id}
        selected=${selected} onSelect=${(peer) => pick(peer.id)}
      />
    <//>
  </div>`;
}
