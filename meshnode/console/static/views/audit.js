// The newest records of the audit log: what was asked of strangers, and what they were given. Never a prompt or an answer.

import { html, useEffect, useRef, useSignal } from "../lib.js";
import { get } from "../api.js";
import { clean, clock, count, own, seconds, short } from "../format.js";
import { Badge } from "../parts/badge.js";
import { Button, CopyButton } from "../parts/button.js";
import { Card } from "../parts/card.js";
import { Empty, Failure, Loading } from "../parts/notice.js";
import { Table } from "../parts/table.js";
import { connection, member, strangers } from "../store.js";

const MOST = 50;
const PERIOD_MS = 3000;
const KINDS = {
  asked: "asked a stranger",
  served: "served a stranger",
  checked: "checked a stranger",
  repaired: "mended the log",
  broken: "found the log damaged",
};
const OUTCOMES = { ok: ["good", "answered"], left: ["off", "caller left"], refused: ["warn", "refused"], failed: ["bad", "failed"] };
const VERDICTS = { good: ["good", "as claimed"], bad: ["bad", "other weights"], unknown: ["off", "not sure yet"] };

const cut = (text) => html`<span class="cut" title=${text}>${text}</span>`;
const kindOf = (row) => own(KINDS, row.kind) ?? clean(row.kind, 20);
const who = (row) => (row.node ? clean(strangers.value.find((peer) => peer.id === row.node)?.name, 40) || short(row.node) : "–");

function outcomeOf(row) {
  const known = row.kind === "checked" ? own(VERDICTS, row.verdict) : own(OUTCOMES, row.outcome);
  const [kind, words] = known ?? ["off", clean(row.outcome || row.verdict || row.reason || "–", 60)];
  return html`<${Badge} kind=${kind}>${words}${row.error && ` (${clean(row.error, 40)})`}<//>`;
}

const tokens = (row) => (row.tokens_in == null ? "–" : `${count(row.tokens_in)} in, ${count(row.tokens_out)} out`);
const hashOf = (row) => row.output_sha256
  ? html`<code title=${clean(row.output_sha256, 64)}>${clean(row.output_sha256, 64).slice(0, 8)}</code>`
  : "–";

const COLUMNS = [
  { key: "at", title: "Time", sort: (row) => row.n, render: (row) => html`<time datetime=${new Date(row.at * 1e3).toISOString()}>${clock(row.at)}</time>` },
  { key: "kind", title: "What", sort: kindOf, render: kindOf },
  { key: "who", title: "Who", sort: who, render: (row) => html`<span class="cut" title=${clean(row.node, 64)}>${who(row)}</span>` },
  { key: "model", title: "Model", sort: (row) => row.model ?? "", render: (row) => cut(clean(row.model || "–", 80)) },
  { key: "outcome", title: "Outcome", render: outcomeOf },
  { key: "tokens", title: "Tokens", align: "right", sort: (row) => row.tokens_out, render: tokens },
  { key: "took", title: "Took", align: "right", sort: (row) => row.duration_s, render: (row) => seconds(row.duration_s) },
  { key: "hash", title: "Hash of the answer", render: hashOf },
];

/** The log, read anew while it may have grown. */
export function Audit() {
  const state = useSignal({});
  const swarm = member("swarm").value;
  const marks = useRef("");
  marks.current = [member("requests").value?.finished, swarm?.strangers?.served, swarm?.state].join();
  const read = async (abort) => {
    try {
      state.value = { found: await get(`api/audit?limit=${MOST}`, { signal: abort?.signal }) };
    } catch (error) {
      if (!abort?.signal.aborted) state.value = { ...state.value, error };
    }
  };
  const live = connection.value === "live";
  useEffect(() => {
    if (!live) return undefined;
    const abort = new AbortController();
    let seen = marks.current;
    read(abort);
    const timer = setInterval(() => {
      if (document.hidden || seen === marks.current) return;
      seen = marks.current;
      read(abort);
    }, PERIOD_MS);
    return () => {
      clearInterval(timer);
      abort.abort();
    };
  }, [live]);
  const { found, error } = state.value;
  return html`<${Card} title="Audit log" actions=${html`<${Button} icon="again" onClick=${() => read()}>Read again<//>`}>
    <p class="muted">
      A record of each request that went to a stranger and of each that came from one; prompts and answers are never in it.
      Each record holds the hash of the one before: <code>meshnode audit verify</code> tells whether any was changed.
    </p>
    <${Failure} error=${error} title="The log cannot be read" />
    ${!found && !error && html`<${Loading} what="Reading the log" />`}
    ${found && html`
      <${Table}
        caption="The newest records, the last one first" columns=${COLUMNS} rows=${found.records} rowKey=${(row) => row.n}
        empty=${html`<${Empty} title="Nothing is written down yet">Requests from and to strangers appear here.<//>`}
      />
      ${found.log.records > 0 && html`<p class="muted">
        ${found.log.records === 1 ? "One record; it" : `${count(found.log.records)} records; the last`} has the hash <code>${clean(found.log.head, 64).slice(0, 16)}</code>
        <${CopyButton} text=${clean(found.log.head, 64)} label="Copy the hash of the last record" />
      </p>`}
    `}
  <//>`;
}
