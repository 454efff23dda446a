// Is it ready, where is it, what does it do now, what is wrong: everything a person asks first.
import { post } from "../api.js";
import { ago, bytes, clean, count, rate, seconds, sentence } from "../format.js";
import { Icon } from "../icons.js";
import { computed, html, useState } from "../lib.js";
import { announce } from "../parts/announce.js";
import { StateBadge } from "../parts/badge.js";
import { Progress } from "../parts/bar.js";
import { Button, CopyButton } from "../parts/button.js";
import { Card, Stat } from "../parts/card.js";
import { Field, TextInput } from "../parts/field.js";
import { Failure, Loading, Notice } from "../parts/notice.js";
import { Table } from "../parts/table.js";
import { address, connection, member, models, now, peers, problems, status } from "../store.js";

const LATELY_S = 10;
const api = member("api");
const idle = member("idle");
const mesh = member("mesh");
const requests = member("requests");
const told = member("state");

const ready = computed(() => models.value.filter((model) => model.state === "ready"));
const named = (list) => list.map((model) => clean(model.id, 60)).join(", ");

/** [what it is in a word or two, what that means] */
const words = computed(() => {
  const here = ready.value.filter((model) => model.where === "here").length;
  if (told.value === "stopping") return ["Stopping", "Answers that have begun are finished; nothing new is taken on."];
  if (ready.value.length) {
    const far = ready.value.every((model) => model.radius === "public");
    const mesh = far ? "among strangers, for requests that may go there" : "in the mesh";
    const place = here === ready.value.length ? "on this node" : here ? "on this node and in the mesh" : mesh;
    return ["Ready", `${named(ready.value.slice(0, 3))}${ready.value.length > 3 ? ` and ${ready.value.length - 3} more` : ""} ${ready.value.length === 1 ? "answers" : "answer"} ${place}.`];
  }
  if (idle.value) return ["Idle", "Nothing can be asked here yet."];
  const waiting = models.value.find((model) => model.state !== "failed");
  if (waiting) return ["Loading", sentence(waiting.detail || `${waiting.id} is being made ready`, 300)];
  if (models.value.length) return ["Not ready", `${named(models.value)} could not be started.`];
  return ["Starting", "The node finds out what this machine has."];
});

/** Tokens per second: what the node counts, or else what the answers of the last seconds amount to. */
const speed = computed(() => {
  const known = requests.value?.tokens_per_s;
  if (typeof known === "number") return known;
  const since = now.value / 1000 - LATELY_S;
  const lately = (requests.value?.recent ?? []).filter((one) => one.at > since);
  return lately.reduce((sum, one) => sum + one.tokens_out, 0) / LATELY_S;
});

const Headline = () => {
  const lost = connection.value === "lost";
  const [short, long] = lost ? ["Lost", `When it was last heard of: ${words.value.join(". ")}`] : words.value;
  return html`
    <section class="card headline" aria-label="State">
      <div class="headline-words">
        <p class="headline-short">${short}</p>
        <p class="muted">${long}</p>
      </div>
      <div class="endpoint">
        <span class="muted small">OpenAI and Anthropic API${api.value.key_required ? ", with a key" : ""}</span>
        <div class="endpoint-row">
          <code>${api.value.url}</code><${CopyButton} text=${api.value.url} label="Copy the API address" />
        </div>
        <a class="small" href=${address("agents")}>Use it with an agent or a program</a>
      </div>
    </section>
  `;
};

const Figures = () => {
  const alive = peers.value.filter((peer) => peer.state === "alive").length;
  const { active = 0, waiting = 0, finished = 0 } = requests.value ?? {};
  return html`
    <dl class="stats">
      <${Stat} label="Models" value=${count(ready.value.length)} hint=${models.value.length > ready.value.length ? `of ${models.value.length}` : "ready"} />
      <${Stat} label="Peers" value=${count(alive)} hint=${mesh.value ? `in ${clean(mesh.value.name, 40)}` : "no mesh (--solo)"} />
      <${Stat} label="Tokens/s" value=${rate(speed.value)} hint="going out now" />
      <${Stat} label="Requests" value=${count(active)} hint=${waiting ? `running, ${waiting} waiting` : `running, ${count(finished)} finished`} />
    </dl>
  `;
};

const Troubles = () => problems.value.length > 0 && html`
  <${Card} title=${problems.value.length === 1 ? "1 problem" : `${problems.value.length} problems`}>
    <ul class="column">
      ${problems.value.map((problem) => html`
        <li key=${problem.code + problem.subject}>
          <${Notice} kind=${{ info: "info", warning: "warn" }[problem.severity] ?? "bad"} title=${problem.title}>
            <p>${sentence(problem.text, 600)}</p>
            ${problem.fix && html`<p class="fix"><${Icon} name="right" size=${14} /> ${sentence(problem.fix, 600)}</p>`}
            <p class="small muted">${problem.code}, first seen ${ago(problem.since, now.value)}</p>
          <//>
        </li>
      `)}
    </ul>
  <//>
`;

/** What runs now and takes long: builds, downloads, loading. */
const works = computed(() => [
  ...(member("tasks").value ?? []).map((task) => ({ key: task.task, label: clean(task.text || task.task, 120), ...task })),
  ...(member("downloads").value ?? []).filter((one) => one.state === "running").map((one) => ({
    key: `download ${one.model}`, label: `Downloading ${clean(one.model, 100)}`, done: one.done_bytes, total: one.total_bytes,
    unit: "bytes", hint: one.bytes_per_s > 0 && one.total_bytes
      ? `${bytes(one.bytes_per_s)}/s, ${seconds((one.total_bytes - one.done_bytes) / one.bytes_per_s)} left` : "",
  })),
]);

const Works = () => works.value.length > 0 && html`
  <${Card} title="Under way"><div class="column">
    ${works.value.map((work) => html`<${Progress} key=${work.key} label=${work.label} done=${work.done} total=${work.total}
      unit=${work.unit === "bytes" ? "bytes" : ""} hint=${work.hint} />`)}
  </div><//>
`;

const Step = ({ title, text, act, done, action, kind, children }) => {
  const [state, setState] = useState({});
  const run = async (event) => {
    event.preventDefault();
    setState({ busy: true });
    try {
      await act();
      announce(done);
      setState({});
    } catch (error) {
      setState({ error });
    }
  };
  return html`
    <form class="step" onSubmit=${run}>
      <h3>${title}</h3><p class="muted">${text}</p>
      ${children}
      <${Failure} error=${state.error} />
      <div><${Button} type="submit" kind=${kind} busy=${state.busy}>${action}<//></div>
    </form>
  `;
};

const FirstSteps = () => {
  const [token, setToken] = useState("");
  if (!idle.value || models.value.length) return null;
  const alone = mesh.value && peers.value.length === 0;
  return html`
    <${Card} title="First steps">
      <p class="steps-why">${sentence(idle.value.reason)}</p>
      <div class="steps">
        <${Step} title="Try it here" text="The demo is a tiny model that comes with meshnode: it greets, counts and adds, with nothing to download."
          action="Load the demo" kind="primary" done="The demo is being loaded" act=${() => post("api/load", { model: "demo" })} />
        ${alone && html`
          <${Step} title="Join a mesh" text="Somebody who runs a node gives you an invite; its models then answer here as well."
            action="Join" done="Joined" act=${() => post("api/join", { token: token.trim() })}>
            <${Field} label="Invite"><${TextInput} value=${token} onInput=${setToken} placeholder="mn1…" required /><//>
          <//>
        `}
        <div class="step">
          <h3>Bring a model</h3><p class="muted">Search the catalog, see what fits this machine, and download it.</p>
          <div><a class="button quiet" href=${address("models")}>Look at models</a></div>
        </div>
      </div>
    <//>
  `;
};

const COLUMNS = [
  { key: "id", title: "Model", render: (model) => html`<span class="mono">${clean(model.id, 80)}</span>`, sort: (model) => model.id },
  { key: "state", title: "State", render: (model) => html`<${StateBadge} state=${model.state} />`, sort: (model) => model.state },
  { key: "where", title: "Where", render: (model) => clean(model.where, 60), sort: (model) => model.where },
  { key: "context", title: "Context", align: "right", render: (model) => count(model.context_length || null), sort: (model) => model.context_length },
  { key: "busy", title: "Busy", align: "right", render: (model) => (model.parallel ? `${model.busy} of ${model.parallel}` : "–"), sort: (model) => model.busy },
];

const Served = () => models.value.length > 0 && html`
  <${Card} title="Models" actions=${html`<a class="button quiet" href=${address("chat")}>Chat</a><a class="button quiet" href=${address("models")}>All models</a>`}>
    <${Table} caption="Models that can be asked here" columns=${COLUMNS} rows=${models.value} rowKey=${(model) => `${model.where} ${model.id}`} />
  <//>
`;

export default function Overview() {
  if (!status.value) return html`<${Loading} what="Asking the node" />`;
  return html`<${Headline} /><${Figures} /><${Troubles} /><${Works} /><${FirstSteps} /><${Served} />`;
}
