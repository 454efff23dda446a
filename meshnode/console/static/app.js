// The shell: what stands around every view, and the loading of views when they are first opened.
//
// A view is `views/NAME.js` with a default export, and `views/NAME.css`. The shell gives it the h1, so views begin at h2.
import { Icon } from "./icons.js";
import { Component, computed, effect, html, render, signal, useEffect, useRef } from "./lib.js";
import { clean } from "./format.js";
import { LiveRegion, announce } from "./parts/announce.js";
import { Badge } from "./parts/badge.js";
import { Button } from "./parts/button.js";
import { Confirmation } from "./parts/confirm.js";
import { Failure, Loading } from "./parts/notice.js";
import { address, connection, follow, lostSince, member, models, node, now, problems, retry, retryAt, route, theme } from "./store.js";

const VIEWS = {
  overview: "Overview",
  mesh: "Mesh",
  memory: "Memory",
  models: "Models",
  chat: "Chat",
  requests: "Requests",
  invite: "Invite",
  public: "Public",
  agents: "Use it",
  settings: "Settings",
  spending: "Spending",
};

// --- the state of the node in words ------------------------------------------------------------------------------------

const nodeName = computed(() => clean(node.value?.name || "this node", 60));

/** [kind, words] */
const state = computed(() => {
  const told = member("state").value;
  if (connection.value === "lost") return ["bad", "Lost"];
  if (!told) return ["busy", "Connecting"];
  if (told === "stopping") return ["warn", "Stopping"];
  const ready = models.value.filter((model) => model.state === "ready").length;
  if (ready) return ["good", ready === 1 ? "Ready" : `Ready: ${ready} models`];
  if (told === "starting") return ["busy", "Starting"];
  if (told === "loading" || models.value.some((model) => model.state !== "failed")) return ["busy", "Loading"];
  return models.value.length ? ["bad", "Failed"] : ["off", "Idle"];
});

effect(() => {
  document.title = `${VIEWS[route.value.view] ?? "Not found"} · ${state.value[1]} · ${nodeName.value} · meshnode`;
});

let before = "";
effect(() => {
  const [, words] = state.value;
  if (before && words !== before) announce(`${nodeName.peek()}: ${words}`);
  before = words;
});

// --- views -------------------------------------------------------------------------------------------------------------

/** {name, View} or {name, error} of the view that is shown; the old one stays until the new one is there. */
const shown = signal({ name: "" });
const loaded = new Map();

const styles = (name) =>
  new Promise((resolve) => {
    const link = Object.assign(document.createElement("link"), { rel: "stylesheet", href: `views/${name}.css` });
    link.onload = link.onerror = resolve;
    document.head.append(link);
  });

async function load(name) {
  if (!loaded.has(name)) {
    const [module] = await Promise.all([import(`./views/${name}.js`), styles(name)]);
    loaded.set(name, module.default);
  }
  return loaded.get(name);
}

effect(() => {
  const name = route.value.view;
  if (shown.peek().name === name) return;
  const put = (what) => {
    if (route.peek().view !== name) return;
    const moved = shown.peek().name !== "";
    shown.value = { name, ...what };
    if (!moved) return;
    scrollTo(0, 0);
    document.getElementById("view")?.focus({ preventScroll: true });
  };
  if (name in VIEWS) load(name).then((View) => put({ View }), (error) => put({ error }));
  else put({ error: new Error("There is no such view.") });
});

/** Keeps a fault of one view from taking the page with it. */
class Guard extends Component {
  componentDidCatch(error) {
    console.error(error);
    this.setState({ error, at: this.props.name });
  }
  render({ name, children }) {
    const { error, at } = this.state;
    return error && at === name ? html`<${Broken} error=${error} />` : children;
  }
}

const Broken = ({ error }) => html`
  <${Failure} title="This view cannot be shown" error=${error} />
  <p><${Button} icon="again" onClick=${() => location.reload()}>Load the page again<//></p>
`;

const View = () => {
  const { name, View: Present, error } = shown.value;
  return html`
    <h1 class="title">${VIEWS[name] ?? (name ? "Not found" : "")}</h1>
    ${error ? html`<${Broken} error=${error} />`
      : Present ? html`<${Guard} name=${name}><${Present} /><//>`
      : html`<${Loading} what="Loading" />`}
  `;
};

// --- around them -------------------------------------------------------------------------------------------------------

const THEMES = { system: ["half", "the system's"], light: ["sun", "light"], dark: ["moon", "dark"] };

const ThemeSwitch = () => {
  const names = Object.keys(THEMES);
  const [icon, words] = THEMES[theme.value];
  const next = names[(names.indexOf(theme.value) + 1) % names.length];
  return html`<${Button} icon=${icon} label=${`Theme: ${words}. Change it`} onClick=${() => (theme.value = next)} />`;
};

const Header = () => html`
  <header class="top">
    <a class="brand" href=${address("overview")}><${Icon} name="meshnode" size=${20} /><span>meshnode</span></a>
    <span class="top-node" title=${nodeName}>${nodeName}</span>
    <span class="top-state"><${Badge} kind=${state.value[0]}>${state.value[1]}<//></span>
    <${ThemeSwitch} />
  </header>
`;

const troubles = computed(() => problems.value.filter((problem) => problem.severity !== "info").length);

const Nav = () => {
  const list = useRef(null);
  useEffect(() => {
    // On a narrow screen the views stand in a row that is longer than the screen.
    list.current.querySelector("[aria-current]")?.scrollIntoView({ block: "nearest", inline: "center" });
  }, [route.value.view]);
  return html`
  <nav aria-label="Views">
    <ul ref=${list}>
      ${Object.entries(VIEWS).map(([name, title]) => html`
        <li key=${name}>
          <a href=${address(name)} aria-current=${route.value.view === name ? "page" : undefined}>
            <${Icon} name=${name} />${title}
            ${name === "overview" && troubles.value > 0 && html`<span class="dot" title="There are problems"><span class="unseen">, ${troubles} problems</span></span>`}
          </a>
        </li>
      `)}
    </ul>
  </nav>
  `;
};

const Offline = () => {
  if (connection.value !== "lost") return null;
  const wait = retryAt.value === null ? 0 : Math.max(1, Math.ceil((retryAt.value - now.value) / 1000));
  return html`
    <div class="offline">
      <${Icon} name="warn" />
      <p>The console lost the node; ${wait ? `retrying in ${wait} s` : "retrying"}.
        ${node.value && html` <span class="offline-more">What is shown is as of ${new Date(lostSince.value).toLocaleTimeString([], { hour12: false })}.</span>`}</p>
      <${Button} onClick=${retry}>Try now<//>
    </div>
  `;
};

const version = signal("");
effect(() => (version.value ||= member("version").value ?? ""));

const Updated = () =>
  version.value && member("version").value !== version.value && html`
    <div class="offline"><${Icon} name="info" /><p>The node was updated to version ${clean(member("version").value, 30)}.</p>
      <${Button} onClick=${() => location.reload()}>Load the new page<//></div>
  `;

effect(() => {
  document.body.dataset.connection = connection.value;
  document.body.classList.toggle("stale", connection.value === "lost");
});

const App = () => html`
  <a class="skip" href="#view" onClick=${(event) => {
    event.preventDefault(); // the fragment is the route
    document.getElementById("view").focus();
  }}>Skip to the content</a>
  <${Header} />
  <${Nav} />
  <main id="view" tabindex="-1"><${Offline} /><${Updated} /><div class=${`view view-${shown.value.name}`}><${View} /></div></main>
  <${LiveRegion} />
  <${Confirmation} />
`;

document.getElementById("app").replaceChildren();
render(html`<${App} />`, document.getElementById("app"));
follow();
