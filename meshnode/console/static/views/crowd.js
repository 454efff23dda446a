// Who else is in the public mesh: what each says of itself, how it is reached, and what checks of its answers found.

import { html } from "../lib.js";
import { clean, own } from "../format.js";
import { Badge } from "../parts/badge.js";
import { Card } from "../parts/card.js";
import { Empty } from "../parts/notice.js";
import { Table } from "../parts/table.js";
import { PATHS, STATES, nameOf, pathOf, rttOf, stateOf, whoOf } from "./members.js";

/** What a second node that holds the same weights said of its answers. */
const VERDICTS = {
  unknown: ["off", "not checked"],
  good: ["good", "as claimed"],
  bad: ["bad", "other weights"],
};

const verdictOf = (peer) => own(VERDICTS, peer.verdict) ?? VERDICTS.unknown;
const cut = (text) => html`<span class="cut" title=${text}>${text}</span>`;
const modelsOf = (peer) => peer.models?.map(({ id }) => clean(id, 60)).join(", ") || "–";

const COLUMNS = [
  { key: "name", title: "Name", sort: (peer) => nameOf(peer).toLowerCase(), render: (peer) => html`<span class="cut" title=${peer.id}>${nameOf(peer)}</span>` },
  { key: "who", title: "Who", sort: whoOf, render: whoOf },
  {
    key: "state", title: "State", sort: (peer) => Object.keys(STATES).indexOf(stateOf(peer)),
    render: (peer) => html`<${Badge} kind=${STATES[stateOf(peer)][0]}>${STATES[stateOf(peer)][1]}<//>`,
  },
  { key: "path", title: "Path", sort: pathOf, render: (peer) => PATHS[pathOf(peer)] },
  { key: "rtt", title: "Round trip", align: "right", sort: (peer) => peer.rtt_ms ?? peer.estimated_rtt_ms, render: (peer) => rttOf(peer) || "–" },
  { key: "models", title: "Models", sort: (peer) => peer.models?.length ?? 0, render: (peer) => cut(modelsOf(peer)) },
  {
    key: "verdict", title: "Answers", sort: (peer) => verdictOf(peer)[1],
    render: (peer) => html`<${Badge} kind=${verdictOf(peer)[0]}>${verdictOf(peer)[1]}<//>`,
  },
];

/** The members of the public mesh as a table. */
export const Crowd = ({ swarm }) => html`<${Card} title="Who is there">
  <${Table}
    caption="Nodes of the public mesh" columns=${COLUMNS} rows=${swarm.peers} rowKey=${(peer) => peer.id}
    empty=${html`<${Empty} title="Nobody else is here yet">Nodes appear as they come.<//>`}
  />
  ${swarm.peers.length > 0 && html`<p class="muted">
    Names and models are what these nodes say of themselves. With the setting <code>verify</code> some of their answers
    are checked; a node that was found to use other weights than it claims is asked no more.
  </p>`}
<//>`;
