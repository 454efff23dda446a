// The members of a mesh as the console shows them: what each is here, how it is, how it is reached, and the splits
// that run over them. Pure functions of the status; names in it are what others say of themselves.

import { clean, milliseconds, own } from "../format.js";
import { WHO } from "../radius.js";

/** What a node does, in one word each, and the sentence of the legend. */
export const KINDS = {
  host: ["host", "serves models"],
  worker: ["worker", "holds layers of a split"],
  client: ["client", "asks, and serves nothing"],
  idle: ["idle", "a member that serves nothing now"],
};

/** What a state means for whoever looks: badge kind and words. */
export const STATES = {
  alive: ["good", "alive"],
  unreachable: ["warn", "unreachable"],
  dead: ["bad", "dead"],
  left: ["off", "left"],
};

/** How a node is reached. */
export const PATHS = {
  direct: "direct",
  relayed: "relayed",
  none: "not connected",
};

/** "alive", "unreachable", "dead" or "left". */
export const stateOf = (peer) =>
  peer.state !== "alive" ? (peer.state in STATES ? peer.state : "unreachable") : peer.reachable ? "alive" : "unreachable";

/** Whether it is still a part of the mesh. */
export const isHere = (peer) => !["dead", "left"].includes(stateOf(peer));

/** "direct", "relayed" or "none". */
export const pathOf = (peer) => (peer.path ? (peer.path === "direct" ? "direct" : "relayed") : "none");

/** Who it is to this node: "own", "friend" or "stranger"; "" while nothing says so. */
export const whoOf = (peer) => own(WHO, peer.radius) ?? "";

/** What a node is called; an id where it says nothing that can be shown. */
export const nameOf = (peer, most = 64) => clean(peer.name, most) || peer.short || peer.id.slice(0, 10);

/** The round trip as text, "" while unknown; "~" before one that is only estimated. */
export const rttOf = (peer) =>
  peer.rtt_ms != null ? milliseconds(peer.rtt_ms)
  : peer.estimated_rtt_ms != null ? `~${milliseconds(peer.estimated_rtt_ms)}`
  : "";

/** "layer 3" or "layers 3–7" of layers counted from 0. */
export const layersText = ({ first, layers }) =>
  layers === 1 ? `layer ${first + 1}` : `layers ${first + 1}–${first + layers}`;

const joined = (segments) => {
  const found = [];
  for (const segment of segments) {
    const last = found.at(-1);
    if (segment.layers <= 0) continue;
    if (last && last.node === segment.node && last.first + last.layers === segment.first) last.layers += segment.layers;
    else found.push({ ...segment });
  }
  return found;
};

/**
 * The splits that this node takes part in: {key, model, host, segments: [{node, first, layers}], here}.
 * Of one that another node hosts only the own part is known.
 */
export function splitsOf(status) {
  const self = status?.node?.id ?? "";
  const found = [];
  for (const model of status?.models ?? []) {
    if (!model.plan?.stages?.length || model.state === "failed") continue;
    const { plan } = model;
    const stage = (each) => ({ node: each.node, first: each.first_layer, layers: each.layers });
    const segments = joined([
      { node: plan.host, first: 0, layers: plan.host_layers },
      ...plan.stages.map(stage),
      ...plan.local_devices.map(stage),
    ]);
    found.push({ key: model.id, model: clean(model.id, 80), host: plan.host, segments, here: true });
  }
  for (const lease of status?.pool?.lending?.leases ?? []) {
    const segments = [{ node: self, first: lease.first_layer, layers: lease.layers }];
    found.push({ key: lease.plan, model: clean(lease.model, 80), host: lease.host, segments, here: false });
  }
  return found;
}

/** "host", "worker", "client" or "idle": what counts most of what a node does. `workers` are ids. */
export const kindOf = (peer, workers) =>
  peer.role === "client" ? "client"
  : workers.has(peer.id) ? "worker"
  : peer.models?.some((model) => model.state !== "failed") ? "host"
  : "idle";

/** All that a node does, in words. */
export const rolesOf = (peer, workers) => {
  const hosts = peer.models?.some((model) => model.state !== "failed");
  const words = [hosts && "host", workers.has(peer.id) && "worker"].filter(Boolean);
  return words.join(", ") || (peer.role === "client" ? "client" : "idle");
};

/** This node in the form of a peer. */
export function selfOf(status) {
  const { node, mesh } = status;
  const free = (each) => each.parts.find((part) => part.kind === "free")?.bytes ?? 0;
  const devices = (status.memory ?? []).map((each) => ({
    name: each.kind === "memory" && !each.unified ? "host" : each.name,
    total_bytes: each.total_bytes,
    free_bytes: free(each),
  }));
  const models = status.models.filter((model) => model.where === "here");
  return {
    ...node,
    here: true,
    state: "alive",
    reachable: true,
    role: mesh?.role ?? "member",
    address: (mesh?.addresses ?? []).join(", "),
    path: null,
    rtt_ms: null,
    software: `meshnode ${status.version}`,
    models,
    devices,
  };
}

/** Ids of all nodes that hold layers for another one, as far as this node knows. */
export const workersOf = (splits) =>
  new Set(splits.flatMap((split) => split.segments.map((each) => each.node).filter((id) => id !== split.host)));

/** Memory that plans may take on all devices of a node, or null where it says nothing. */
export const freeOf = (peer) => (peer.devices?.length ? peer.devices.reduce((sum, each) => sum + each.free_bytes, 0) : null);
