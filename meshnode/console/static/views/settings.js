// Every setting with where its value comes from, the folders of the node, its log, and how this page looks.
import { get } from "../api.js";
import { clean, clock } from "../format.js";
import { html, useEffect, useRef, useState } from "../lib.js";
import { CopyButton } from "../parts/button.js";
import { Card } from "../parts/card.js";
import { Field, Select, Switch, TextInput } from "../parts/field.js";
import { Empty, Failure, Loading } from "../parts/notice.js";
import { Table } from "../parts/table.js";
import { connection, member, theme } from "../store.js";

const PERIOD_MS = 2000;
const PATHS = { home: "Home folder", cache: "Cache", file: "Configuration file" };

/** What stands between backticks is code. */
const marked = (text) => text.split("`").map((part, at) => (at % 2 ? html`<code>${part}</code>` : part));

// A setting is given by one who runs the node, yet a path or a name in it may be anybody's.
const COLUMNS = [
  { key: "name", title: "Setting", sort: (one) => one.name, render: (one) => html`<code>${one.name}</code>` },
  { key: "value", title: "Value", sort: (one) => String(one.value),
    render: (one) => (one.value === "-" ? "–" : html`<span class="mono">${clean(one.value, 300)}</span>`) },
  { key: "source", title: "From", sort: (one) => one.source,
    render: (one) => html`<span class=${one.source === "built-in" ? "muted" : ""}>${clean(one.source, 120)}</span>` },
  { key: "help", title: "Meaning", render: (one) => html`<span class="muted">${marked(one.help)}</span>` },
];

const Values = ({ settings }) => {
  const [words, setWords] = useState("");
  const [changed, setChanged] = useState(false);
  const wanted = words.toLowerCase();
  const rows = settings.filter((one) =>
    (!changed || one.source !== "built-in") && `${one.name} ${one.value} ${one.source} ${one.help}`.toLowerCase().includes(wanted));
  return html`
    <${Card} title="Settings">
      <div class="settings-tools">
        <${Field} label="Filter"><${TextInput} type="search" value=${words} onInput=${setWords} placeholder="port, context, environment…" /><//>
        <${Switch} label="Only what was set" checked=${changed} onChange=${setChanged} />
        <p class="muted small" role="status">${rows.length} of ${settings.length}</p>
      </div>
      <${Table} caption="Settings with the source of each value" columns=${COLUMNS} rows=${rows} rowKey=${(one) => one.name}
        empty=${html`<${Empty} title="No setting is like this." />`} />
    <//>
  `;
};

const Paths = ({ paths }) => html`
  <${Card} title="Where things are">
    <dl class="paths">
      ${Object.entries(paths).map(([name, path]) => html`
        <div key=${name}><dt class="muted">${PATHS[name] ?? name}</dt>
          <dd><code>${clean(path, 500)}</code><${CopyButton} text=${String(path)} label=${`Copy: ${PATHS[name] ?? name}`} /></dd></div>
      `)}
    </dl>
  <//>
`;

/** The end of a log, looked at every two seconds while somebody does the same. */
const Log = () => {
  const [source, setSource] = useState("node");
  const [most, setMost] = useState("200");
  const [following, setFollowing] = useState(true);
  const [{ log, error }, setState] = useState({});
  const box = useRef(null);
  const live = connection.value === "live";
  useEffect(() => {
    const abort = new AbortController();
    let timer;
    const look = async () => {
      try {
        const log = document.hidden ? null : await get(`api/logs?source=${source}&lines=${most}`, { signal: abort.signal });
        if (log) setState({ log, source });
      } catch (error) {
        if (!abort.signal.aborted) setState({ error });
      }
      if (following && !abort.signal.aborted) timer = setTimeout(look, PERIOD_MS);
    };
    if (live) look();
    return () => {
      clearTimeout(timer);
      abort.abort();
    };
  }, [source, most, following, live]);
  const last = log?.lines.at(-1);
  useEffect(() => {
    const pane = box.current;
    if (pane && following) pane.scrollTop = pane.scrollHeight;
  }, [last, log?.lines.length, following]);
  return html`
    <${Card} title="Log">
      <div class="settings-tools">
        <${Field} label="Source"><${Select} value=${source} onChange=${setSource}
          options=${[{ value: "node", label: "the node" }, { value: "engine", label: "the engine" }]} /><//>
        <${Field} label="Lines"><${Select} value=${most} onChange=${setMost}
          options=${["50", "200", "1000"].map((value) => ({ value, label: value }))} /><//>
        <${Switch} label="Follow" checked=${following} onChange=${setFollowing} />
      </div>
      <${Failure} error=${error} />
      ${!log && !error && html`<${Loading} what="Reading the log" />`}
      ${log && log.lines.length === 0 && html`<${Empty} title=${source === "engine" ? "No engine has said anything yet." : "The log is empty."} />`}
      ${log && log.lines.length > 0 && html`
        <pre class="log" ref=${box} tabindex="0" role="region" aria-label=${`Log of the ${source}`}>${log.lines.join("\n")}</pre>
        <p class="muted small">${clean(log.file, 400)}</p>
      `}
    <//>
  `;
};

const Appearance = () => html`
  <${Card} title="Appearance">
    <${Field} label="Theme" hint="Kept in this browser.">
      <${Select} value=${theme.value} onChange=${(value) => (theme.value = value)} options=${[
        { value: "system", label: "as the system" }, { value: "light", label: "light" }, { value: "dark", label: "dark" }]} />
    <//>
  <//>
`;

export default function Settings() {
  const [{ found, error }, setState] = useState({});
  const started = member("started_at").value;
  useEffect(() => {
    const abort = new AbortController();
    get("api/settings", { signal: abort.signal }).then(
      (found) => setState({ found }),
      (error) => abort.signal.aborted || setState((old) => ({ ...old, error })),
    );
    return () => abort.abort();
  }, [started]);
  return html`
    ${started && html`<p class="muted">Version ${clean(member("version").value, 40)}, running since ${clock(started)}. Flags come before
      the environment, that before the configuration file, and what nobody sets is built in.</p>`}
    <${Failure} error=${error} title="The settings cannot be read" />
    ${found ? html`<${Values} settings=${found.settings} />` : !error && html`<${Loading} what="Reading the settings" />`}
    ${found && html`<${Paths} paths=${found.paths} />`}
    <${Log} />
    <${Appearance} />
  `;
}
