// Use it: how programs that people already run are pointed at this node, filled in with a model that is served.

import { html, useEffect, useSignal } from "../lib.js";
import { address, connection, member, models, route } from "../store.js";
import { get } from "../api.js";
import { clean } from "../format.js";
import { Card } from "../parts/card.js";
import { CodeBlock } from "../parts/code.js";
import { Field, Select } from "../parts/field.js";
import { Empty, Failure, Loading, Notice } from "../parts/notice.js";

const plain = /^[\w@%+=:,./-]+$/;
const quoted = (word) => (plain.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`);
const line = (words) => words.map(quoted).join(" ");
// The one variable that the shell is to fill in; any other $ is the text of a value.
const KEY = "$MESHNODE_API_KEY";
const value = (text) => (text === KEY ? `"${KEY}"` : quoted(text));
const shell = ({ environment, command }) =>
  [...Object.entries(environment).map(([name, text]) => `export ${name}=${value(text)}`), command.length ? line(command) : []].flat().join("\n");
const COMMAND = /^(npm|python|pip|pipx|uv|brew|cargo|curl) /;

function Recipe({ recipe, model }) {
  const { id, title, files, notes, install, launchable } = recipe;
  const run = shell(recipe);
  const choice = model ? ["--model", model] : [];
  const own = files.filter((file) => file.path);
  const examples = files.filter((file) => !file.path);
  return html`<${Card} title=${title}>
    <p>${recipe.summary}. ${recipe.homepage && html`<a href=${recipe.homepage} target="_blank" rel="noreferrer">Its own pages</a>`}</p>
    ${launchable &&
    html`<${CodeBlock} label="One command" text=${line(["meshnode", "launch", id, ...choice])} />
      <p class="muted">It runs ${title} with all that it needs, for this one time; no file is changed.</p>`}
    ${install &&
    html`<h3>Install it</h3>
      ${COMMAND.test(install) ? html`<${CodeBlock} label=${`Install ${title}`} text=${install} />` : html`<p>${install}</p>`}`}
    ${examples.map((file) => html`<${CodeBlock} key=${file.content} label="Example" text=${file.content} />`)}
    ${run && html`<h3>In a shell</h3><${CodeBlock} label=${`Run ${title} from a shell`} text=${run} />`}
    ${own.length > 0 &&
    html`<h3>In its files</h3>
      ${own.map((file) => html`<${CodeBlock} key=${file.path} label=${file.path} text=${file.content} language=${file.format} />`)}
      ${recipe.writable &&
      html`<p class="muted">
        <code>${line(["meshnode", "config", id, ...choice, "--write"])}</code> puts that in, beside what is there, and keeps a
        copy of the old file.
      </p>`}`}
    ${notes.length > 0 && html`<h3>Good to know</h3><ul>${notes.map((note) => html`<li key=${note}>${note}</li>`)}</ul>`}
  <//>`;
}

export default function View() {
  const known = useSignal(null);
  const problem = useSignal(null);
  const chosen = useSignal("");
  const ready = models.value.filter((model) => model.state === "ready").map((model) => model.id);
  const mark = ready.join("\n");
  useEffect(() => {
    let wanted = true;
    get(`/api/agents${chosen.value ? `?model=${encodeURIComponent(chosen.value)}` : ""}`).then(
      (answer) => wanted && ((known.value = answer), (problem.value = null)),
      (error) => wanted && (problem.value = error),
    );
    return () => (wanted = false);
  }, [mark, chosen.value, connection.value]);
  if (!known.value && problem.value) return html`<${Failure} error=${problem.value} />`;
  if (!known.value) return html`<${Loading} what="Filling in the recipes" />`;
  const { agents, models: served, base_url: base } = known.value;
  const recipe = agents.find((each) => each.id === route.value.rest[0]) || agents[0];
  if (!recipe) return html`<${Empty} title="No recipe is known" />`;
  return html`
    <${Card} title="Where it is">
      <div class="where">
        <${CodeBlock} label="Address for programs that speak OpenAI" text=${`${base}/v1`} />
        ${served.length > 0 &&
        html`<${Field} label="Model to fill in">
          <${Select}
            value=${chosen.value || recipe.model}
            options=${served.map((id) => ({ value: id, label: clean(id, 80) }))}
            onChange=${(id) => (chosen.value = id)}
          />
        <//>`}
      </div>
      ${chosen.value &&
      recipe.model !== chosen.value &&
      html`<${Notice} kind="info" title=${`What is to be done by hand names ${clean(recipe.model, 80)}`}>
        Put ${clean(chosen.value, 80)} in its place, or run the one command.
      <//>`}
      ${!served.length &&
      html`<${Notice} kind="warn" title="No model is served, so the recipes name none yet">
        <a href=${address("models")}>Load one under Models</a>, or <a href=${address("invite")}>join a mesh</a> that serves some.
      <//>`}
      ${member("api").value?.key_required &&
      html`<p>This node asks for a key. Where a recipe says <code>$MESHNODE_API_KEY</code>, have that variable hold it.</p>`}
    <//>
    <div class="recipes">
      <nav aria-label="Programs">
        ${[
          ["With one command", agents.filter((each) => each.launchable)],
          ["Set up by hand", agents.filter((each) => !each.launchable)],
        ].map(
          ([title, group]) =>
            group.length > 0 &&
            html`<p class="muted">${title}</p>
              ${group.map(
                ({ id, title: name }) => html`
                  <a key=${id} href=${address("agents", id)} aria-current=${id === recipe.id ? "true" : undefined}>${name}</a>
                `,
              )}`,
        )}
      </nav>
      <${Recipe} key=${recipe.id} recipe=${recipe} model=${chosen.value} />
    </div>
  `;
}
