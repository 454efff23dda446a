// Spending: what may be spent, what was, what lies in channels, who was paid for what, and what this node has earned.
// It reads, and has nothing to press that moves money or widens a bound: both are done in a terminal.
// Names of models and nodes are what strangers say of themselves.

import { html, useEffect, useRef, useSignal } from "../lib.js";
import { connection, member, now, strangers } from "../store.js";
import { get } from "../api.js";
import { ago, clean, clock, count, own, percent, seconds, sentence, short, usd } from "../format.js";
import { Badge } from "../parts/badge.js";
import { StackBar } from "../parts/bar.js";
import { CopyButton } from "../parts/button.js";
import { Card, Stat } from "../parts/card.js";
import { CodeBlock } from "../parts/code.js";
import { Empty, Failure, Loading, Notice } from "../parts/notice.js";
import { Table } from "../parts/table.js";

const PERIOD_MS = 2000;
const IDLE_MS = 15_000; // the chain moves without any request
const NEAR = 0.8; // of the cap: as much as is worth a warning
const CHANNELS = {
  opening: ["busy", "opening"],
  open: ["good", "open"],
  withdrawing: ["warn", "taken back"],
  closing: ["busy", "closing"],
  closed: ["off", "closed"],
};
const SENT = {
  prepared: ["busy", "prepared"],
  submitted: ["busy", "on its way"],
  mined: ["good", "in a block"],
  final: ["good", "final"],
  replaced: ["off", "replaced"],
  failed: ["bad", "failed"],
};
const PURPOSES = {
  deposit: "deposit",
  claim: "claim",
  settle: "settle",
  refund: "refund",
  fill: "fill a gap",
  "initiate-withdraw": "begin to take back",
  "finalize-withdraw": "take back",
};
const FINISHES = { stop: "to its end", length: "cut at its length", cancelled: "ended by the caller", broken: "broken off" };

// --- words ---------------------------------------------------------------------------------------------------------

const nodeName = (id) => clean(strangers.value.find((peer) => peer.id === id)?.name, 40) || short(clean(id, 64)) || "–";
const node = (row) => html`<span class="cut" title=${clean(row.node, 64)}>${nodeName(row.node)}</span>`;
const model = (row) => html`<span class="cut" title=${clean(row.model, 200)}>${clean(row.model, 60) || "–"}</span>`;
const when = (row) => html`<time datetime=${new Date(row.at * 1e3).toISOString()}>${clock(row.at)}</time>`;
const badge = (table, word) => {
  const [kind, words] = own(table, word) ?? ["off", clean(word, 24) || "–"];
  return html`<${Badge} kind=${kind}>${words}<//>`;
};
const ceiling = (price) => (price ? html`${usd(price.in)} <span class="muted">in,</span> ${usd(price.out)} <span class="muted">out</span>` : "none");
const money = (key, title, extra = {}) => ({ key, title, align: "right", sort: (row) => row[key], render: (row) => usd(row[key]), ...extra });
const number = (key, title) => ({ key, title, align: "right", sort: (row) => row[key], render: (row) => count(row[key]) });
const hash = (text, what) => text
  ? html`<span class="hash"><code title=${clean(text, 80)}>${clean(text, 80).slice(0, 10)}</code><${CopyButton} text=${clean(text, 80)} label=${`Copy ${what}`} /></span>`
  : "–";

/** A share of the largest, as a bar beside its amount. */
const scaled = (key, title, rows, kind) => {
  const most = Math.max(1, ...rows.map((row) => row[key]));
  const width = (row) => `${(100 * row[key]) / most}%`;
  return money(key, title, {
    render: (row) => html`<span class="fill">
      <span class="track" aria-hidden="true"><span class=${`kind-${kind}`} style=${{ width: width(row) }}></span></span>
      <span class="amount">${usd(row[key])}</span>
    </span>`,
  });
};

const Fact = ({ name, wide, children }) => html`<div class=${wide ? "wide" : ""}><dt>${name}</dt><dd>${children}</dd></div>`;

// --- what may be spent ---------------------------------------------------------------------------------------------

const used = (facts) => facts.committed_micros + facts.reserved_micros;
const isNear = (facts) => facts.policy.month_micros > 0 && used(facts) >= NEAR * facts.policy.month_micros;

function Figures({ facts }) {
  const { policy, earning } = facts;
  return html`<dl class="stats">
    <${Stat} label="Spent this month" value=${usd(facts.committed_micros)} hint=${policy.month_micros ? `${percent(facts.committed_micros, policy.month_micros)} of ${usd(policy.month_micros)}` : ""} />
    <${Stat} label="Left this month" value=${usd(facts.remaining_micros)} hint=${facts.reserved_micros ? `${usd(facts.reserved_micros)} held for running requests` : ""} />
    <${Stat} label="Locked in channels" value=${usd(facts.locked_micros)} hint=${facts.gas_micros ? `${usd(facts.gas_micros)} of fees this month` : ""} />
    <${Stat} label="Earned, not yet claimed" value=${usd(earning.unclaimed_micros)} hint=${earning.claimed_micros ? `${usd(earning.claimed_micros)} claimed so far` : ""} />
  </dl>`;
}

function Month({ facts }) {
  const { policy } = facts;
  if (!policy.month_micros) return null;
  const parts = [
    { kind: "weights", label: "Spent", bytes: facts.committed_micros },
    { kind: "compute", label: "Held for running requests", bytes: facts.reserved_micros },
    { kind: "free", label: "Left", bytes: facts.remaining_micros },
  ];
  return html`<${StackBar} label=${`The cap of ${clean(facts.month, 10)}`} total=${policy.month_micros} parts=${parts} format=${usd} />`;
}

/** Who neither pays nor sells, and has nothing out, need not care how the chain is. */
const needsChain = ({ paying, earning, channels }) => paying || earning.selling || channels.some((each) => each.state !== "closed");

const endpoint = ({ url, ok, behind }) => html`<span class="line" key=${url}>
  <code>${clean(url, 80)}</code> <${Badge} kind=${ok ? "good" : "bad"}>${ok ? (behind ? `${count(behind)} blocks behind` : "answers") : "does not answer"}<//>
</span>`;

function Bounds({ facts }) {
  const { policy, wallet, chain } = facts;
  const models = Object.entries(policy.model_ceilings);
  const why = facts.why_not;
  return html`<${Card} title="What may be spent" actions=${html`<${Badge} kind=${facts.paying ? "good" : "off"}>${facts.paying ? "pays strangers" : "pays nobody"}<//>`}>
    ${why && html`<p>${sentence(why)}</p>`}
    ${isNear(facts) && html`<${Notice} kind="warn" title=${`${percent(used(facts), policy.month_micros)} of the cap is used`}>Requests that could cost more than what is left are refused.<//>`}
    ${chain.why_not && needsChain(facts) && html`<${Notice} kind="warn" title=${sentence(chain.why_not)} />`}
    <${Month} facts=${facts} />
    <dl class="facts">
      <${Fact} name="Cap of a month">${usd(policy.month_micros)}<//>
      <${Fact} name="A million tokens">${ceiling(policy.ceiling)}<//>
      ${models.map(([name, price]) => html`<${Fact} key=${name} name=${html`<span class="cut" title=${clean(name, 200)}>… of ${clean(name, 40)}</span>`}>${ceiling(price)}<//>`)}
      <${Fact} name="Deposit in a channel">${usd(policy.deposit_micros)}, <span class="muted">at most</span> ${usd(policy.most_deposit_micros)}<//>
      <${Fact} name="Paid ahead"><span class="muted">at most</span> ${usd(policy.prepay_micros)}<//>
      <${Fact} name="Fees in a month"><span class="muted">at most</span> ${usd(policy.gas_month_micros)}<//>
      <${Fact} name="Network">${clean(wallet.network, 40)} <${Badge} kind=${wallet.testnet ? "off" : "warn"}>${wallet.testnet ? "test money" : "real money"}<//><//>
      <${Fact} wide name="Wallet">${wallet.address ? html`<code>${clean(wallet.address, 42)}</code> <${CopyButton} text=${clean(wallet.address, 42)} label="Copy the address of the wallet" />` : "none"}<//>
      ${chain.endpoints?.length > 0 && html`<${Fact} wide name="Endpoints">${chain.endpoints.map(endpoint)}<//>`}
    </dl>
    <p class="muted">No page and no program can widen these bounds: it takes a person at a terminal.</p>
    <${CodeBlock} label="Change them" text="meshnode wallet policy --max-usd-per-month 5" />
  <//>`;
}

const Nothing = ({ facts }) => html`<${Card} title="Nothing is spent">
  <${Empty} title="This node gives and takes answers for free">
    ${facts.why_not ? sentence(facts.why_not) : ""} Machines of yours and of your friends never pay each other. To pay
    strangers within bounds that you set, or to be paid by them, start here:
  <//>
  <div class="starts">
    <${CodeBlock} label="A wallet, for test money" text="meshnode wallet new" />
    <${CodeBlock} label="What it may spend" text="meshnode wallet policy --mode auto --max-usd-per-month 5 --max-usd-per-mtok-in 0.20 --max-usd-per-mtok-out 0.60" />
    <${CodeBlock} label="What strangers pay here" text="meshnode --model demo --publish --price-in 0.10 --price-out 0.40" />
  </div>
<//>`;

// --- what was spent and earned ---------------------------------------------------------------------------------------

const back = (row) => {
  if (!row.withdrawable_at) return "";
  const left_s = row.withdrawable_at - now.value / 1e3;
  return left_s > 0 ? `back in ${seconds(left_s)}` : "can be had back";
};

/** What is still in a channel: of its deposits, what the provider has not taken yet. */
const locked = (row) => Math.max(0, row.balance_micros - row.claimed_micros);

const CHANNEL_COLUMNS = [
  { key: "id", title: "Channel", render: (row) => hash(row.id, "the id of the channel") },
  { key: "role", title: "This node", sort: (row) => row.role, render: (row) => (row.role === "receiver" ? "is paid" : "pays") },
  { key: "node", title: "With", sort: (row) => nodeName(row.node), render: node },
  { key: "state", title: "State", sort: (row) => row.state, render: (row) => html`${badge(CHANNELS, row.state)}${back(row) && html`<small>${back(row)}</small>`}` },
  { key: "locked", title: "Locked", align: "right", sort: locked, render: (row) => usd(locked(row)) },
  money("signed_micros", "Signed over"),
  money("charged_micros", "Delivered"),
  money("claimed_micros", "Claimed"),
];

const RECEIPT_COLUMNS = [
  { key: "at", title: "Time", sort: (row) => row.at, render: when },
  { key: "role", title: "This node", sort: (row) => row.role, render: (row) => (row.role === "receiver" ? "earned" : "paid") },
  { key: "node", title: "With", sort: (row) => nodeName(row.node), render: node },
  { key: "model", title: "Model", sort: (row) => row.model, render: model },
  { key: "tokens", title: "Tokens", align: "right", sort: (row) => row.tokens_out, render: (row) => `${count(row.tokens_in)} in, ${count(row.tokens_out)} out` },
  money("charged_micros", "Cost"),
  { key: "finish", title: "Ended", render: (row) => own(FINISHES, row.finish) ?? clean(row.finish, 24) },
  { key: "request", title: "Request", render: (row) => hash(row.request, "the id of the request") },
];

const SENT_COLUMNS = [
  { key: "at", title: "Time", sort: (row) => row.at, render: when },
  { key: "purpose", title: "What", sort: (row) => row.purpose, render: (row) => own(PURPOSES, row.purpose) ?? clean(row.purpose, 30) },
  { key: "state", title: "State", sort: (row) => row.state, render: (row) => badge(SENT, row.state) },
  money("fee_micros", "Fee"),
  { key: "hash", title: "Transaction", render: (row) => hash(row.hash, "the hash of the transaction") },
];

const PROVIDER_COLUMNS = (rows) => [
  { key: "node", title: "Provider", sort: (row) => nodeName(row.node), render: node },
  scaled("spent_micros", "Paid", rows, "weights"),
  number("requests", "Requests"),
  number("tokens_out", "Tokens written"),
];

const DAY_COLUMNS = (rows) => [
  { key: "day", title: "Day (UTC)", sort: (row) => row.day, render: (row) => clean(row.day, 10) },
  scaled("spent_micros", "Spent", rows, "weights"),
  scaled("earned_micros", "Earned", rows, "lent"),
  number("requests", "Requests"),
];

const Rows = ({ title, caption, columns, rows, rowKey, empty, order, children }) => html`<${Card} title=${title}>
  ${children}
  <${Table} caption=${caption} columns=${columns} rows=${rows} rowKey=${rowKey} empty=${empty} order=${order} />
<//>`;

function Earning({ earning }) {
  const state = earning.selling ? ["good", "sells"] : ["off", "sells nothing"];
  return html`<${Card} title="What this node earns" actions=${html`<${Badge} kind=${state[0]}>${state[1]}<//>`}>
    ${earning.why_not && html`<${Notice} kind="warn" title=${sentence(earning.why_not)} />`}
    ${earning.selling || earning.vouched_micros > 0
      ? html`<dl class="facts">
          <${Fact} name="A million tokens">${ceiling(earning.price)}<//>
          <${Fact} name="Signed over to it">${usd(earning.vouched_micros)} <span class="muted">in ${count(earning.channels)} channel${earning.channels === 1 ? "" : "s"}</span><//>
          <${Fact} name="Claimed">${usd(earning.claimed_micros)}${earning.last_claim_at && html`<span class="muted">, the last time ${ago(earning.last_claim_at, now.value)}</span>`}<//>
          <${Fact} name="Not yet claimed">${usd(earning.unclaimed_micros)}<//>
          <${Fact} wide name="Paid to">${earning.receiver ? html`<code>${clean(earning.receiver, 42)}</code>` : "–"}<//>
        </dl>`
      : html`<p class="muted">It has no price: strangers are served for free, if at all.</p>`}
  <//>`;
}

function Accounts({ facts }) {
  const { channels, receipts, by_day: days, by_provider: providers, transactions } = facts;
  return html`
    <${Figures} facts=${facts} />
    <${Bounds} facts=${facts} />
    <${Earning} earning=${facts.earning} />
    <${Rows} title="Channels" caption="Channels of this node" columns=${CHANNEL_COLUMNS} rows=${channels} rowKey=${(row) => row.id}
      empty=${html`<${Empty} title="No channel is open">The first paid request opens one, or <code>meshnode wallet deposit NODE AMOUNT</code>.<//>`}>
      <p class="muted">Money in a channel can go to that one node only, and only what was signed over; the rest comes back.</p>
    <//>
    <div class="halves">
      <${Rows} title="By day" caption="Spent and earned by day" columns=${DAY_COLUMNS(days)} rows=${days} rowKey=${(row) => row.day} order=${["day", -1]} empty="Nothing was spent or earned yet." />
      <${Rows} title="By provider" caption="Who was paid" columns=${PROVIDER_COLUMNS(providers)} rows=${providers} rowKey=${(row) => row.node} order=${["spent_micros", -1]} empty="Nobody was paid yet." />
    </div>
    <${Rows} title="Receipts" caption="The newest receipts" columns=${RECEIPT_COLUMNS} rows=${receipts} rowKey=${(row) => `${row.role} ${row.request} ${row.channel}`} order=${["at", -1]}
      empty=${html`<${Empty} title="No receipts yet">Each paid answer leaves one, signed by who gave it.<//>`}>
      <p class="muted">Signed by who gave the answer: <code>meshnode receipts list --json | meshnode receipts verify -</code> checks them without any network.</p>
    <//>
    ${transactions.length > 0 && html`<${Rows} title="On the chain" caption="Transactions of this node" columns=${SENT_COLUMNS} rows=${transactions} rowKey=${(row) => `${row.hash} ${row.purpose} ${row.at}`} order=${["at", -1]} empty="Nothing was sent." />`}
  `;
}

// --- the view ------------------------------------------------------------------------------------------------------

/** Whether there is anything of money to show. */
const any = (facts) => Boolean(facts.wallet.address || facts.wallet.voucher || facts.earning.selling || facts.channels.length || facts.receipts.length);

/** What the node tells, read anew when it may have changed. */
function useSpending() {
  const state = useSignal({});
  const marks = useRef("");
  marks.current = [member("requests").value?.finished, member("swarm").value?.strangers?.served, member("pid").value].join();
  const live = connection.value === "live";
  useEffect(() => {
    if (!live) return undefined;
    const abort = new AbortController();
    let seen = marks.current;
    let read_at = 0;
    const read = async () => {
      read_at = Date.now();
      seen = marks.current;
      try {
        state.value = { facts: await get("api/spending", { signal: abort.signal }) };
      } catch (error) {
        if (!abort.signal.aborted) state.value = { ...state.value, error };
      }
    };
    read();
    const timer = setInterval(() => {
      if (!document.hidden && (seen !== marks.current || Date.now() - read_at > IDLE_MS)) read();
    }, PERIOD_MS);
    return () => {
      clearInterval(timer);
      abort.abort();
    };
  }, [live]);
  return state.value;
}

export default function View() {
  const { facts, error } = useSpending();
  if (!facts && !error) return html`<${Loading} what="Reading the accounts" />`;
  return html`
    <${Failure} error=${error} title="The accounts cannot be read" />
    ${facts?.damaged && html`<${Notice} kind="bad" title="The record of payments is damaged: nothing is paid or earned">${sentence(facts.damaged)}<//>`}
    ${facts && (any(facts) ? html`<${Accounts} facts=${facts} />` : html`<${Nothing} facts=${facts} />`)}
  `;
}
