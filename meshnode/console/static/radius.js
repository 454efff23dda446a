// How far requests may go: the three radii, what the node goes by where nobody says it, and how far this page may go.
import { computed } from "./lib.js";
import { member } from "./store.js";

const NAMES = ["local", "trusted", "public"];

/** The name of each radius, and what it means for a prompt; the words of docs/trust.md. */
export const RADII = {
  local: ["My machines", "Only this node and machines of your own compute it. It stays with you."],
  trusted: ["Friends", "Members of your private mesh may compute it as well: people you invited or paired with."],
  public: ["Strangers", "People you know nothing of may read it, when nobody nearer can answer."],
};

/** What a stranger who answers can do. No setting changes it. */
export const PLAINLY =
  "Whoever computes an answer can read the prompt and the answer: all of the conversation, tool results and images " +
  "included. They can keep it. Send nothing there that is secret, of other people, or that acts by itself.";

/** Who a node is to this one, by its radius. */
export const WHO = { local: "own", trusted: "friend", public: "stranger" };

/** Whether a request of one radius gets to a host of another. */
export const reaches = (allowed, radius) => NAMES.indexOf(radius) <= NAMES.indexOf(allowed);

/** A radius in the words of others, or "" for what is none. */
export const radiusIn = (text) => (NAMES.includes(text) ? text : "");

/** How far requests go that do not say it. */
export const usual = computed(() => radiusIn(member("trust").value?.radius) || "trusted");

/** The radius that a request of this page names, of one that was chosen; "" leaves it to the node. */
export const named = radiusIn;
