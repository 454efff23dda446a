// Models: what is served here and in the mesh, what is on this disk, what could be had, and where each would run.

import { html, useEffect, useSignal } from "../lib.js";
import { connection, member, models, node, peers } from "../store.js";
import { get } from "../api.js";
import { bytes, clean, count, rate, seconds } from "../format.js";
import { announce } from "../parts/announce.js";
import { Badge } from "../parts/badge.js";
import { Progress } from "../parts/bar.js";
import { Button } from "../parts/button.js";
import { Card } from "../parts/card.js";
import { ask } from "../parts/confirm.js";
import { Field, Select, TextInput } from "../parts/field.js";
import { Empty, Failure, Loading, Notice } from "../parts/notice.js";
import { bound, Faults, submit, useActs } from "./acts.js";
import { PlanDialog } from "./plan.js";

const STATES = { ready: "good", loading: "busy", restarting: "warn", failed: "bad" };
const VERDICTS = { here: "good", split: "warn", no: "bad" };
const WISHES = [
  { value: "", label: "All" },
  { value: "here", label: "Fits here" },
  { value: "split", label: "Needs several nodes" },
];
const FIRST = 12;
// By which path a file was loaded: the node tells its name only.
const paths = new Map();

const words = (values) => values.map((value) => clean(value, 20)).join(", ");
const list = (names) => (names.length > 1 ? `${names.slice(0, -1).join(", ")} and ${names.at(-1)}` : names[0]);
const todo = (error) => error?.fix && html`<p>To do: ${clean(error.fix, 400)}</p>`;
const nameOf = (id) =>
  id === node.value?.id ? "this node" : clean(peers.value.find((peer) => peer.id === id)?.name || id.slice(0, 10), 40);

// --- served --------------------------------------------------------------------------------------------------

function Stages({ plan }) {
  let last = 0;
  const stages = [{ node: plan.host, device: "host", layers: plan.host_layers }, ...plan.stages, ...plan.local_devices];
  return html`<ol class="stages" aria-label="The layers of each node, in the order a token passes them">
    ${stages
      .filter((stage) => stage.layers)
      .map((stage) => {
        const first = last + 1;
        last += stage.layers;
        return html`<li style=${{ flexGrow: stage.layers }}>
          <b>${nameOf(stage.node)}</b> <span>layers ${first}–${last}</span> <small>${clean(stage.device, 30)}</small>
        </li>`;
      })}
  </ol>`;
}

const shareWords = (share) =>
  `${share.layers} layers on ${share.device === "host" ? "the processor" : clean(share.device, 30)} (weights ` +
  `${bytes(share.weights_bytes)}, cache ${bytes(share.kv_bytes)}, work ${bytes(share.compute_bytes)})`;

const Fact = ({ name, children }) => children && html`<div><dt>${name}</dt><dd>${children}</dd></div>`;

function Facts({ model }) {
  const { plan, engine, parallel, waiting, predicted_tokens_per_s: pace } = model;
  const split = plan?.stages;
  const planned = plan && [...(split ? [] : plan.shares.map(shareWords)), clean(plan.reason || "", 300)].filter(Boolean).join("; ");
  return html`
    <dl>
      <${Fact} name="Slots">${parallel > 0 && `${model.busy} of ${parallel} busy${waiting ? `, ${waiting} waiting` : ""}`}<//>
      <${Fact} name="Context">${model.context_length > 0 && `${count(model.context_length)} tokens`}<//>
      <${Fact} name="Speed">${pace && `about ${rate(pace)} tokens/s`}<//>
      <${Fact} name="Size">${model.size_bytes > 0 && `${bytes(model.size_bytes)} ${clean(model.quantisation, 20)}`}<//>
      <${Fact} name="Can">${words(model.capabilities)}<//>
      <${Fact} name="Guesses ahead with">${clean(model.draft || "", 80)}<//>
      <${Fact} name="Engine">
        ${engine?.restarts > 0
          ? html`<${Badge} kind="warn">restarted ${engine.restarts > 1 ? `${engine.restarts} times` : "once"}<//>`
          : engine?.load_s && `loaded in ${seconds(engine.load_s)}`}
      <//>
    </dl>
    ${split && html`<${Stages} plan=${plan} />`} ${planned && html`<p class="muted">${planned}</p>`}
    ${model.split?.avoided?.length > 0 && html`<p class="muted">Left out for now: ${list(model.split.avoided.map(nameOf))}</p>`}
    ${model.reason && html`<p class="muted">Served because ${clean(model.reason, 300)}</p>`}
  `;
}

function Served({ model, acts }) {
  const { state, error } = model;
  const id = clean(model.id);
  const here = model.where === "here";
  const hosts = peers.value.filter((peer) => peer.models.some((offer) => offer.id === model.id));
  const key = `serve ${model.id}`;
  const name = paths.get(model.id) || model.canonical;
  const unload = async (said) => acts.post(key, `${id} was not unloaded`, "/api/unload", { model: model.id }, said);
  const sure = async () => {
    const text = `${id} is no longer served by this node. Running answers end first; the file stays on the disk.`;
    if (await ask({ title: `Unload ${id}?`, text, action: "Unload", danger: true })) await unload(`${id} is unloaded`);
  };
  const button = (word, act) =>
    html`<${Button} label=${`${word}: ${id}`} busy=${acts.busy(key)} onClick=${act}>${word}<//>`;
  return html`<li class="served" data-model=${id}>
    <div class="head">
      <h3>${id}</h3>
      <${Badge} kind=${STATES[state]}>${state === "loading" ? clean(model.detail, 80) || state : state}<//>
      <span class="muted">on ${list([...(here ? ["this node"] : []), ...hosts.map((peer) => nameOf(peer.id))]) || "the mesh"}</span>
      ${here && state !== "failed" && button("Unload", sure)}
    </div>
    ${state !== "failed"
      ? html`<${Facts} model=${model} />`
      : html`<${Notice} kind="bad" title=${clean(error?.message || model.detail || "It could not be served", 400)}>
          ${todo(error)}
          ${here &&
          html`<p class="actions">
            ${!name.startsWith("file:") && button("Try again", () => acts.load(name, key))}
            ${button("Dismiss", () => unload(""))}
          </p>`}
        <//>`}
  </li>`;
}

// --- what is not served ------------------------------------------------------------------------------------------

function Fit({ fit }) {
  const [word, ...why] = clean(fit.sentence, 400).split(": ");
  return html`<div><${Badge} kind=${VERDICTS[fit.verdict]}>${word}<//> <small>${why.join(": ")}</small></div>`;
}

function Download({ download, acts }) {
  const { model, state, error, done_bytes: done, total_bytes: total, bytes_per_s: pace } = download;
  const name = clean(model, 120);
  const key = `stop ${model}`;
  // A download that has ended is put away by that.
  const stop = () => acts.post(key, `${name} is still in the list`, "/api/pull/stop", { model });
  const button = (word, act) => html`<${Button} label=${`${word}: ${name}`} busy=${acts.busy(key)} onClick=${act}>${word}<//>`;
  if (state === "running") {
    const left = total && pace ? `, ${seconds((total - done) / pace)} left` : "";
    const hint = pace ? `${bytes(pace)}/s${left}` : clean(download.detail || "", 80);
    return html`<li>
      <${Progress} label=${`Downloading ${name}`} done=${done} total=${total} unit="bytes" hint=${hint} />
      ${button("Stop", stop)}
    </li>`;
  }
  const failed = state === "failed";
  const title = failed ? `${name} is not downloaded` : `${name} was stopped at ${bytes(done)}${total ? ` of ${bytes(total)}` : ""}`;
  return html`<li>
    <${Notice} kind=${failed ? "bad" : "info"} title=${title}>
      ${failed && html`<p>${clean(error?.message || "", 400)}</p>`} ${todo(error)}
      <p class="actions">
        ${button(failed ? "Try again" : "Go on", () => acts.pull(model))} ${button("Dismiss", stop)}
      </p>
    <//>
  </li>`;
}

/** One model that could be served. `name` is what the node is asked for, `names` what a download of it may be called,
 * `file` its canonical name where it is a file that can be removed, `pull` the word for fetching what is missing. */
function Entry({ name, names, title, meta, fit, served, pull, file, size, acts, plan }) {
  const id = clean(name, 120);
  const downloads = member("downloads").value || [];
  const running = downloads.some((each) => each.state === "running" && names.includes(each.model));
  const remove = async () => {
    const text = `${id} takes ${bytes(size)} of this disk. To have it again it must be downloaded again.`;
    if (!(await ask({ title: `Remove ${id}?`, text, action: `Remove, free ${bytes(size)}`, danger: true }))) return;
    await acts.post(`remove ${name}`, `${id} was not removed`, "/api/remove", { model: file }, `${bytes(size)} freed`);
  };
  const button = (word, act, more) =>
    html`<${Button} label=${`${word}: ${id}`} busy=${acts.busy(`${word} ${name}`)} onClick=${act} ...${more}>${word}<//>`;
  return html`<li class="entry" data-model=${id}>
    <div>
      <b>${clean(title || name, 120)}</b> ${title && title !== id && html`<code>${id}</code>`}
      <small>${meta.filter(Boolean).join(" · ")}</small>
    </div>
    ${served || running
      ? html`<${Badge} kind=${served ? "good" : "busy"}>${served ? "served" : "downloading"}<//>`
      : html`<div>${fit && html`<${Fit} fit=${fit} />`}</div>`}
    <div class="actions">
      ${!served && button("Load", () => acts.load(name), { disabled: running })}
      ${pull && !running && button(pull, () => acts.pull(name))} ${button("Details", () => plan(name))}
      ${file && button("Remove", remove, { disabled: served || running })}
    </div>
  </li>`;
}

const tokens = (number) => number > 0 && `${count(number)} tokens`;

const onDisk = (each) => ({
  key: each.model,
  name: each.alias || each.model,
  names: [each.alias, each.model, each.model.split(":")[0]],
  title: each.name,
  file: /^[^/~]+\/[^/]+$/.test(each.model) && each.model,
  size: each.size_bytes,
  fit: each.fit,
  served: each.served,
  pull: each.incomplete && "Pull the rest",
  meta: [
    bytes(each.size_bytes) + (each.incomplete ? ` of ${bytes(each.total_bytes)}, incomplete` : ""),
    clean(each.quantisation, 20),
    tokens(each.context_length),
    words(each.capabilities),
  ],
});

const inCatalog = (each) => ({
  key: each.alias,
  name: each.alias,
  names: [each.alias],
  title: each.name,
  fit: each.fit,
  served: each.served,
  pull: !each.on_disk && "Pull",
  meta: [bytes(each.size_bytes), clean(each.quant, 20), tokens(each.context_length), words(each.capabilities), each.on_disk && "on this disk"],
});

const onHub = (each) => ({
  key: each.repo,
  name: each.repo,
  names: [each.repo],
  pull: "Pull",
  meta: [`${count(each.downloads)} downloads`, each.gated && "behind a licence"],
});

function Catalog({ entries, acts, shown }) {
  const look = useSignal("");
  const fits = useSignal("");
  const all = useSignal(false);
  const hub = useSignal(null);
  const search = () =>
    acts.run("search", "The search failed", async () => {
      hub.value = await get(`/api/search?q=${encodeURIComponent(look.value)}`);
      announce(`${hub.value.hub.length} found on Hugging Face`);
    });
  const wanted = look.value.trim().toLowerCase().split(/\s+/);
  const found = entries.filter(
    ({ alias, name, repo, fit }) =>
      wanted.every((word) => `${alias} ${name} ${repo}`.toLowerCase().includes(word)) && (!fits.value || fit.verdict === fits.value),
  );
  const short = !all.value && !look.value.trim() && !fits.value && found.length > FIRST;
  const problem = hub.value?.problem;
  return html`<${Card} title="Catalog">
    <form class="line" onSubmit=${submit(search)}>
      <${Field} label="Search the catalog and Hugging Face" hint="The catalog narrows as you type; Search asks Hugging Face">
        <${TextInput} type="search" maxlength="200" ...${bound(look)} />
      <//>
      <${Field} label="Show"><${Select} value=${fits.value} options=${WISHES} onChange=${(value) => (fits.value = value)} /><//>
      <div class="actions">
        <${Button} type="submit" disabled=${!look.value.trim()} busy=${acts.busy("search")}>Search<//>
      </div>
    </form>
    ${found.length
      ? html`<ul aria-label="Catalog">${(short ? found.slice(0, FIRST) : found).map((each) => shown(inCatalog(each)))}</ul>`
      : html`<${Empty} title="Nothing in the catalog is like that">Search asks Hugging Face.<//>`}
    ${short && html`<p class="more"><${Button} onClick=${() => (all.value = true)}>Show all ${found.length}<//></p>`}
    ${hub.value &&
    html`<h3>On Hugging Face</h3>
      ${problem && html`<${Notice} kind="warn" title=${clean(problem.message, 400)}>${todo(problem)}<//>`}
      ${hub.value.hub.length
        ? html`<ul aria-label="Found on Hugging Face">${hub.value.hub.map((each) => shown(onHub(each)))}</ul>`
        : !problem && html`<${Empty} title="Nothing found">Other words may find more.<//>`}`}
  <//>`;
}

// --- the view ----------------------------------------------------------------------------------------------------

export default function View() {
  const acts = useActs();
  const known = useSignal(null);
  const problem = useSignal(null);
  const wanted = useSignal("");
  const planned = useSignal(null);
  const downloads = member("downloads").value || [];
  const read = async () => {
    try {
      known.value = await get("/api/models");
      problem.value = null;
    } catch (error) {
      problem.value = error;
    }
  };
  // The node does not say when a file comes or goes: whatever may have changed the lists has them read again.
  const state = [models.value.map((each) => [each.id, each.state]), downloads.map((each) => [each.model, each.state])];
  const mark = JSON.stringify([state, peers.value.length, acts.done.value, connection.value]);
  useEffect(() => {
    read();
  }, [mark]);
  acts.load = async (name, key = `Load ${name}`) => {
    const said = `${clean(name)} is being loaded`;
    const answer = await acts.post(key, `${clean(name)} was not loaded`, "/api/load", { model: name }, said);
    if (answer) paths.set(answer.model, name);
  };
  acts.pull = (name) =>
    acts.post(`Pull ${name}`, `${clean(name)} is not downloaded`, "/api/pull", { model: name }, `${clean(name)} is being downloaded`);
  const plan = (name) => (planned.value = name);
  const shown = (entry) => html`<${Entry} ...${entry} acts=${acts} plan=${plan} />`;
  const name = wanted.value.trim();
  const open = downloads.filter((each) => each.state !== "done");
  return html`
    <${Card}>
      <form class="line" onSubmit=${submit(() => name && acts.load(name))}>
        <${Field} label="Load or pull any model" hint="An alias, owner/repo:QUANT on Hugging Face, or the path of a .gguf file on this machine">
          <${TextInput} ...${bound(wanted)} placeholder="qwen3-4b" />
        <//>
        <div class="actions">
          <${Button} kind="primary" type="submit" disabled=${!name} busy=${acts.busy(`Load ${name}`)}>Load<//>
          <${Button} disabled=${!name} busy=${acts.busy(`Pull ${name}`)} onClick=${() => acts.pull(name)}>Pull<//>
          <${Button} disabled=${!name} onClick=${() => plan(name)}>Where would it run?<//>
        </div>
      </form>
      <${Faults} acts=${acts} />
      ${(member("tasks").value || []).map(
        (task) => html`<${Progress} key=${task.task} label=${clean(task.text)} done=${task.done} total=${task.total} unit=${task.unit} />`,
      )}
    <//>
    <${Card} title="Served">
      ${!node.value
        ? html`<${Loading} what="Reading the models" />`
        : models.value.length
          ? html`<ul aria-label="Served models">${models.value.map((each) => html`<${Served} key=${each.id} model=${each} acts=${acts} />`)}</ul>`
          : html`<${Empty} title="No model is served">
              ${clean(member("idle").value?.reason || "Load one of those below, or join a mesh that serves some.", 400)}
            <//>`}
    <//>
    ${open.length > 0 &&
    html`<${Card} title="Downloads">
      <ul class="downloads">${open.map((each) => html`<${Download} key=${each.model} download=${each} acts=${acts} />`)}</ul>
    <//>`}
    <${Failure} error=${problem.value} />
    ${known.value
      ? html`<${Card} title="On this disk" actions=${html`<${Button} label="Refresh the list of this disk" onClick=${read}>Refresh<//>`}>
            ${known.value.on_disk.length
              ? html`<ul aria-label="Models on this disk">${known.value.on_disk.map((each) => shown(onDisk(each)))}</ul>`
              : html`<${Empty} title="No model is on this disk">Pull one from the catalog below.<//>`}
            <p class="muted">Folder: <code>${clean(known.value.folder, 300)}</code></p>
          <//>
          <${Catalog} entries=${known.value.catalog} acts=${acts} shown=${shown} />`
      : !problem.value && html`<${Loading} what="Looking at the disk" />`}
    <${PlanDialog} model=${planned.value} onClose=${() => plan(null)} load=${acts.load} />
  `;
}
