// One node of the mesh in full: what it says of itself, what is known of it here, and how fast it answers.

import { html, useState } from "../lib.js";
import { connection, now } from "../store.js";
import { post } from "../api.js";
import { ago, bytes, clean, count, milliseconds } from "../format.js";
import { announce } from "../parts/announce.js";
import { Badge } from "../parts/badge.js";
import { Button, CopyButton } from "../parts/button.js";
import { Failure, Notice } from "../parts/notice.js";
import { PATHS, STATES, freeOf, kindOf, layersText, nameOf, pathOf, rolesOf, rttOf, stateOf, whoOf } from "./members.js";
import { Mark } from "./topology.js";

const PINGS = 4;
const WHOSE = { own: "a machine of your own", friend: "a friend’s machine", stranger: "a stranger’s machine" };

/** "1 node", "2 nodes" */
export const plural = (number, one) => `${count(number)} ${one}${number === 1 ? "" : "s"}`;

/** The state of a node in words, with its drawing. */
export const State = ({ peer }) => html`<${Badge} kind=${STATES[stateOf(peer)][0]}>${STATES[stateOf(peer)][1]}<//>`;

/** Round trips measured now. */
function Ping({ peer }) {
  const [state, setState] = useState({});
  const run = async () => {
    setState({ busy: true });
    try {
      const { rtts_ms } = await post("api/ping", { node: peer.id, count: PINGS });
      setState({ rtts_ms });
      const fastest = milliseconds(Math.min(...rtts_ms));
      announce(`${nameOf(peer, 40)} answered ${rtts_ms.length} of ${PINGS} times, the fastest in ${fastest}`);
    } catch (error) {
      setState({ error });
    }
  };
  const { rtts_ms } = state;
  return html`<div class="ping">
    <${Button} busy=${state.busy} onClick=${run}>Ping<//>
    ${rtts_ms &&
    html`<ol class="rtts" aria-label="Round trips">
      ${rtts_ms.map((ms) => html`<li>${milliseconds(ms)}</li>`)}
    </ol>`}
    <${Failure} error=${state.error} />
  </div>`;
}

/** One line of a list of facts. */
export const Fact = ({ name, children }) => html`<div><dt>${name}</dt><dd>${children}</dd></div>`;

const lastSeen = (peer, seen) =>
  !seen ? "before this page was opened"
  : stateOf(peer) === "alive" && connection.value === "live" ? "now"
  : ago(seen / 1000, now.value);

/** All that is known of a node. `gone`: it is not in the mesh any more; `seen`: when it was last there (ms). */
export function Panel({ peer, gone, seen, splits, workers, running, onClose }) {
  const path = pathOf(peer);
  const held = splits.flatMap((split) =>
    split.segments.filter((each) => each.node === peer.id).map((each) => `${layersText(each)} of ${split.model}`),
  );
  const free = freeOf(peer);
  const name = nameOf(peer);
  return html`<section class="panel card" aria-label=${`The node ${name}`}>
    <header>
      <${Mark} kind=${peer.here ? "here" : kindOf(peer, workers)} size=${36} />
      <div>
        <h2 class="name" title=${name}>${name}</h2>
        <p class="muted">${peer.here ? "this node" : rolesOf(peer, workers)}</p>
      </div>
      <${Button} icon="cross" label="Close" onClick=${onClose} />
    </header>
    ${gone &&
    html`<${Notice} kind="warn" title=${`${clean(name, 40)} has left the mesh`}>
      What was last known of it stands below.
    <//>`}
    <dl class="facts">
      <${Fact} name="State">${gone ? html`<${Badge} kind="off">left<//>` : html`<${State} peer=${peer} />`}<//>
      <${Fact} name="Id">
        <code title=${peer.id}>${peer.short}</code> <${CopyButton} text=${peer.id} label="Copy the id" />
      <//>
      ${running > 0 && html`<${Fact} name="Now">answers ${plural(running, "request")}${peer.here ? "" : " of this node"}<//>`}
      ${held.length > 0 && html`<${Fact} name="Holds">${held.map((text) => html`<span class="line">${text}</span>`)}<//>`}
      ${whoOf(peer) && html`<${Fact} name="Who">${WHOSE[whoOf(peer)]}<//>`}
      ${!peer.here && html`<${Fact} name="Path">${PATHS[path]}${rttOf(peer) && ` · ${rttOf(peer)}`}<//>`}
      <${Fact} name="Address">${peer.address ? html`<code>${clean(peer.address, 160)}</code>` : "not known here"}<//>
      <${Fact} name="Memory free">${free === null ? "not told" : bytes(free)}<//>
      ${peer.devices?.map(
        (device) => html`<${Fact} name=${device.name === "host" ? "Main memory" : clean(device.name, 60)}>
          ${bytes(device.free_bytes)} of ${bytes(device.total_bytes)} free<//>`,
      )}
      <${Fact} name="Models">
        ${peer.models?.length
          ? peer.models.map(
              ({ id, state }) => html`<span class="line" title=${clean(id)}>
                ${clean(id, 60)} <span class="muted">${clean(state, 20)}</span>
              </span>`,
            )
          : "none"}
      <//>
      <${Fact} name="Software">${clean(peer.software, 60) || "not told"}<//>
      ${!peer.here && html`<${Fact} name="Last seen">${lastSeen(peer, seen)}<//>`}
    </dl>
    ${!peer.here && !gone && html`<${Ping} key=${peer.id} peer=${peer} />`}
  </section>`;
}
