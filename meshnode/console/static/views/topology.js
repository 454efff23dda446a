// The picture of a mesh: this node in the centre, the others on rings around it, the paths to them as lines, splits as
// bands over their nodes. Where a node stands follows from who is there and how wide the page is, from nothing else.
//
// Nodes are HTML buttons over an SVG: they get focus, ellipsis and hit areas from the browser. What changes often (a
// round trip, a request) touches one line or one button; positions are made anew only when members come or go.

import { html, Component, useCallback, useEffect, useLayoutEffect, useMemo, useRef, useState } from "../lib.js";
import { reducedMotion } from "../store.js";
import { clean } from "../format.js";
import {
  KINDS, PATHS, STATES, isHere, kindOf, layersText, nameOf, pathOf, rolesOf, rttOf, stateOf,
} from "./members.js";
import { arc, layout } from "./rings.js";

const FADE_MS = 8000;
const MOST_PULSES = 12;
const SIZES = { ample: 40, named: 36, marks: 28 }; // of a mark
const REACHES = { ample: 46, named: 37, marks: 19 }; // of a band beyond its last node
const GAP = 0.012; // between the pieces of a band
const BESIDE = 34; // from the ring to the name of a band

/** The order on the rings: workers as a token passes them, then hosts, idle members and clients, each by id. */
function ordered(peers, splits) {
  const workers = splits.flatMap((split) => split.segments.map((each) => each.node));
  const place = new Map([...new Set(workers)].map((id, i) => [id, i]));
  const kinds = Object.keys(KINDS);
  const rank = (peer) => (place.has(peer.id) ? place.get(peer.id) - 1000 : kinds.indexOf(kindOf(peer, place)));
  return [...peers].sort((p, q) => rank(p) - rank(q) || (p.id < q.id ? -1 : 1));
}

const SHAPES = {
  here: html`<circle cx="24" cy="24" r="21" /><circle cx="24" cy="24" r="16" class="inner" />`,
  host: html`<rect x="6" y="6" width="36" height="36" rx="9" /><path class="ink" d="M15 18h18M15 24h18M15 30h18" />`,
  worker: html`<path d="M24 3 42 13.5v21L24 45 6 34.5v-21z" />
    <path class="ink" d="m14 21 10 5 10-5-10-5zM14 27l10 5 10-5" />`,
  client: html`<path d="M24 4 44 24 24 44 4 24z" /><path class="ink" d="M18 19h12v8H18zM16 30h16" />`,
  idle: html`<circle cx="24" cy="24" r="18" /><circle class="dot" cx="24" cy="24" r="3.5" />`,
};

/** The mark of a kind of node, for the picture and its legend. */
export const Mark = ({ kind, size = 40 }) =>
  html`<svg class="mark" viewBox="0 0 48 48" width=${size} height=${size} aria-hidden="true">${SHAPES[kind]}</svg>`;

/** Something that draws itself anew only when one of its properties is another. */
class Steady extends Component {
  shouldComponentUpdate(next) {
    return Object.keys(next).some((key) => next[key] !== this.props[key]);
  }
}

/** One node. */
class Node extends Steady {
  render({ id, name, state, here, kind, roles, x, y, chosen, stop, layers, busy, size, onSelect }) {
    const told = state !== "alive" && STATES[state][1];
    const words = [here ? "this node" : roles, told, layers, busy && "at work"].filter(Boolean).join(", ");
    const held = size < SIZES.ample ? layers.replace(/^layers? /, "") : layers;
    return html`<button
      type="button" data-id=${id} aria-pressed=${chosen ? "true" : "false"} tabindex=${stop ? 0 : -1}
      class="peer is-${state} ${kind} ${here ? "here" : ""} ${busy ? "is-busy" : ""} ${layers ? "in-split" : ""}"
      style=${{ transform: `translate(${x}px, ${y}px) translate(-50%, ${here ? -30 : -4 - size / 2}px)` }}
      aria-label=${`${name}, ${words}`} title=${`${name} (${words})`} onClick=${() => onSelect(id)}
    >
      <${Mark} kind=${here ? "here" : kind} size=${here ? 52 : size} />
      <span class="name">${name}</span>
      <span class="note">${told || held || (here ? "this node" : "")}</span>
    </button>`;
  }
}

/** The line to a node. */
class Edge extends Steady {
  render({ x1, y1, x2, y2, path, state, label, busy, inSplit }) {
    return html`<g class="edge is-${path} is-${state} ${busy ? "is-busy" : ""} ${inSplit ? "in-split" : ""}">
      <line x1=${x1} y1=${y1} x2=${x2} y2=${y2} />
      ${label && html`<text x=${x1 + (x2 - x1) * 0.52} y=${y1 + (y2 - y1) * 0.52 + 4}>${label}</text>`}
    </g>`;
  }
}

/** A split: a band over its workers, a piece for each, with the name of the model beside it. Neighbours touch. */
function Band({ split, number, places, plan }) {
  const workers = [...new Set(split.segments.map((each) => places.get(each.node)).filter(Boolean))];
  if (!workers.length) return null;
  const ends = workers.map((point) => {
    const speed = Math.hypot(point.a * Math.sin(point.angle), point.b * Math.cos(point.angle));
    const beside = (side) => {
      const slot = (point.slot + side + point.of) % point.of;
      const next = workers.find((each) => each.ring === point.ring && each.slot === slot);
      if (!next || next === point) return REACHES[plan.density] / speed;
      const turn = (side * (next.angle - point.angle) + 4 * Math.PI) % (2 * Math.PI);
      return turn / 2 - GAP;
    };
    return [point, point.angle - beside(-1), point.angle + beside(1)];
  });
  const ring = workers.filter((point) => point.ring === workers[0].ring);
  const all = (f) => ring.reduce((sum, point) => sum + f(point.angle), 0);
  const middle = Math.atan2(all(Math.sin), all(Math.cos));
  const side = Math.abs(Math.cos(middle)) < 0.35 ? "middle" : Math.cos(middle) > 0 ? "start" : "end";
  const [x, y] = [(ring[0].a + BESIDE) * Math.cos(middle), (ring[0].b + BESIDE) * Math.sin(middle)];
  return html`<g class="band band-${number % 3}" stroke-width=${SIZES[plan.density] + 12}>
    ${ends.map(([point, from, to]) => html`<path d=${arc(point, from, to, plan.x, plan.y)} />`)}
    <text x=${Math.round(plan.x + x)} y=${Math.round(plan.y + y)} text-anchor=${side}>${clean(split.model, 34)}</text>
  </g>`;
}

/** Requests under way as dots that run along their lines; nothing moves where a person wants no motion. */
function Pulses({ busy, places, plan }) {
  if (reducedMotion.value) return null;
  const running = [...busy].filter((id) => places.has(id)).slice(0, MOST_PULSES);
  return running.map((id) => {
    const to = places.get(id);
    const style = { "--x1": `${to.x}px`, "--y1": `${to.y}px`, "--x2": `${plan.x}px`, "--y2": `${plan.y}px` };
    return html`<i key=${id} class="pulse" style=${style}></i>`;
  });
}

/** The width of an element, as it changes. */
function useWidth(ref) {
  const [width, setWidth] = useState(0);
  useLayoutEffect(() => {
    const watch = new ResizeObserver(([entry]) => setWidth(Math.floor(entry.contentRect.width)));
    watch.observe(ref.current);
    return () => watch.disconnect();
  }, []);
  return width;
}

/** The peers to draw: whoever is there, and for some seconds whoever went before our eyes. */
function useDrawn(peers) {
  const seen = useRef(new Map()).current; // id -> when it went (ms), 0 while it is there
  const [, again] = useState(0);
  const now = Date.now();
  const ids = new Set(peers.map((peer) => peer.id));
  for (const id of seen.keys()) if (!ids.has(id)) seen.delete(id);
  const drawn = peers.filter((peer) => {
    const gone = !isHere(peer);
    if (!gone) seen.set(peer.id, 0);
    else if (seen.get(peer.id) === 0) seen.set(peer.id, now);
    return !gone || now - (seen.get(peer.id) ?? 0) < FADE_MS;
  });
  const fading = drawn.filter((peer) => seen.get(peer.id)).length;
  useEffect(() => {
    if (!fading) return undefined;
    const timer = setTimeout(() => again((n) => n + 1), FADE_MS / 4);
    return () => clearTimeout(timer);
  });
  return drawn;
}

/** The picture. `busy`: ids of nodes at work for a request of this node; `onSelect(id)`. */
export function Topology({ self, peers, splits, workers, busy, selected, onSelect }) {
  const box = useRef(null);
  const width = useWidth(box);
  const drawn = useDrawn(peers);
  const [focused, setFocused] = useState(self.id);
  const act = useRef();
  act.current = onSelect;
  const select = useCallback((id) => act.current(id), []);
  const inSplits = splits.filter((split) => split.here);
  const order = ordered(drawn, inSplits);
  const first = new Set(inSplits[0]?.segments.map((each) => each.node));
  const middle = order.filter((peer) => first.has(peer.id)).length;
  const structure = [width, middle, ...order.map((peer) => peer.id)].join();
  const plan = useMemo(() => (width ? layout(order.length, width, middle) : null), [structure]);
  const places = useMemo(() => new Map(plan ? order.map((peer, i) => [peer.id, plan.points[i]]) : []), [plan]);
  const layers = new Map();
  for (const each of splits.flatMap((split) => split.segments))
    layers.set(each.node, layers.has(each.node) ? `${layers.get(each.node)}, …` : layersText(each));
  const ids = [self.id, ...order.map((peer) => peer.id)];
  const stop = ids.includes(focused) ? focused : self.id;

  // A node that goes while it has the focus leaves it to the centre, not to the top of the page.
  useLayoutEffect(() => {
    if (stop === focused) return;
    setFocused(stop);
    if (document.activeElement === document.body) box.current?.querySelector(".here")?.focus();
  }, [stop, focused]);

  const onKeyDown = (event) => {
    const at = ids.indexOf(document.activeElement?.dataset.id);
    const steps = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };
    const to = event.key === "Home" ? 0 : event.key === "End" ? ids.length - 1 : at + (steps[event.key] ?? NaN);
    if (at < 0 || Number.isNaN(to)) return;
    event.preventDefault();
    const id = ids[(to + ids.length) % ids.length];
    setFocused(id);
    box.current.querySelector(`[data-id="${id}"]`)?.focus();
  };

  if (!plan)
    return html`<div class="topology" ref=${box}>
      ${width > 0 &&
      html`<p class="no-room">
        ${peers.length} other nodes are more than a picture of this width shows well. The table has all of them.
      </p>`}
    </div>`;
  const node = (peer, place) => html`<${Node}
    key=${peer.id} id=${peer.id} name=${nameOf(peer)} state=${stateOf(peer)} here=${peer.here}
    kind=${kindOf(peer, workers)} roles=${rolesOf(peer, workers)} x=${place.x} y=${place.y} chosen=${selected === peer.id} stop=${stop === peer.id}
    layers=${layers.get(peer.id) ?? ""} size=${SIZES[plan.density]} busy=${busy.has(peer.id)} onSelect=${select}
  />`;
  return html`<div class="topology is-${plan.density}" ref=${box}>
    <div
      class="stage" role="group" aria-label="The nodes of the mesh. Arrow keys go from one to the next, Enter shows it."
      style=${{ height: `${plan.height}px` }} onKeyDown=${onKeyDown}
      onFocusIn=${(event) => event.target.dataset.id && setFocused(event.target.dataset.id)}
    >
      <svg width=${width} height=${plan.height} aria-hidden="true">
        ${plan.rings.map(
          ([a, b]) => html`<ellipse class="guide" cx=${plan.x} cy=${plan.y} rx=${a} ry=${peers.length ? b : a / 4} />`,
        )}
        ${inSplits.map(
          (split, i) => html`<${Band} key=${split.key} split=${split} number=${i} places=${places} plan=${plan} />`,
        )}
        ${order.map((peer) => {
          const place = places.get(peer.id);
          return html`<${Edge}
            key=${peer.id} x1=${plan.x} y1=${plan.y} x2=${place.x} y2=${place.y} path=${pathOf(peer)}
            state=${stateOf(peer)} label=${plan.density === "ample" && stateOf(peer) === "alive" ? rttOf(peer) : ""}
            busy=${busy.has(peer.id)} inSplit=${layers.has(peer.id)}
          />`;
        })}
      </svg>
      <${Pulses} busy=${busy} places=${places} plan=${plan} />
      ${node(self, plan)} ${order.map((peer) => node(peer, places.get(peer.id)))}
    </div>
  </div>`;
}

/** What shapes and lines mean. */
export const Legend = () => html`<ul class="key" aria-label="What the drawings mean">
  ${Object.entries(KINDS).map(
    ([kind, [word, sentence]]) => html`<li title=${sentence}><${Mark} kind=${kind} size=${20} />${word}</li>`,
  )}
  ${Object.entries(PATHS).map(
    ([path, words]) => html`<li>
      <svg class="edge is-${path}" width="28" height="10" aria-hidden="true"><line x1="0" y1="5" x2="28" y2="5" /></svg>${words}
    </li>`,
  )}
</ul>`;
