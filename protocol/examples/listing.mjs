// Listings in plain Node: an event of a Nostr relay, judged as 12-public.md says, but for its BIP 340 signature.
import { createHash, createPublicKey, verify } from "node:crypto";
import { isIPv4, isIPv6 } from "node:net";

export class Dropped extends Error {
  constructor(reason, text) { super(text); this.reason = reason; }
}
const drop = (reason, text = reason) => { throw new Dropped(reason, text); };
const bad = (text) => drop("malformed", text);
const sha256 = (text) => createHash("sha256").update(text).digest();
const SPKI = Buffer.from("302a300506032b6570032100", "hex"); // an Ed25519 key in DER, but for its 32 bytes (RFC 8410)

export function judge(event, now, workBits, isShown) {
  const values = (name) => event.tags.filter((tag) => tag[0] === name && tag.length > 1).map((tag) => tag[1]);
  if (event.kind !== 30078 || !values("t").includes("meshnode-v1")) drop("wrong_tag");
  if (Buffer.byteLength(event.content) > 16384) drop("too_large");
  const [end, ...more] = values("expiration"), begins = event.created_at;
  if (more.length || !/^[0-9]{1,12}$/.test(end ?? "") || +end <= begins || +end > begins + 180) bad("its end");
  if (begins > now + 60) drop("future");
  if (+end <= now) drop("expired");
  const aims = event.tags.filter((tag) => tag[0] === "nonce" && tag.length > 2).map((tag) => Number(tag[2]));
  const bits = [...Buffer.from(event.id, "hex")].map((byte) => byte.toString(2).padStart(8, "0")).join("").indexOf("1");
  if (aims.length !== 1 || Math.min(aims[0], bits) < workBits) drop("no_work");
  const array = [0, event.pubkey, begins, event.kind, event.tags, event.content];
  if (sha256(JSON.stringify(array)).toString("hex") !== event.id) drop("forged");
  const found = listing(event.content, event.pubkey, begins, isShown);
  if (values("d").join() !== `meshnode:${found.mesh}`) bad("named as another mesh");
  return found;
}

function listing(content, publisher, createdAt, isShown) {
  const signature = /,"sig":"([0-9a-f]{128})"\}$/.exec(content) ?? bad("no signature at its end");
  let said;
  try { said = JSON.parse(content); } catch { bad("no JSON"); }
  if (Array.isArray(said) || membersTwice(content) || said.v !== 1) bad("not a listing of this version");
  const hex = (value, bytes) => new RegExp(`^[0-9a-f]{${2 * bytes}}$`).test(value) || bad("hex digits");
  const text = (value, most, least = 0) =>
    (typeof value === "string" && isShown(value) && [...value].length <= most && value.length >= least) || bad("a text");
  const number = (value, most) => (Number.isInteger(value) && value >= 0 && value <= most) || bad("a number");
  const list = (value, most, least, check) => {
    if (!Array.isArray(value) || value.length > most || value.length < least) bad("a list");
    value.forEach(check);
  };
  const known = { vram_bytes: 2 ** 50, nodes: 2 ** 32 - 1, clients: 2 ** 32 - 1, max_clients: 2 ** 32 - 1 };
  for (const [name, most] of Object.entries(known)) if (name in said) number(said[name], most);
  for (const name of ["region", "software"]) if (name in said) text(said[name], 40);
  if ("price" in said) text(said.price, 48); // prices and chain, where it has that form
  hex(said.mesh, 32), hex(said.node, 32), text(said.name, 40, 1);
  const id = createHash("blake2s256").update(`meshnode open mesh\0${said.name}`).digest("hex");
  if (id !== said.mesh) bad("a name that is not that of the mesh"); // and one that is not spelled as 07-admission.md says
  list(said.entries, 4, 1, (entry) => { hex(entry.node, 32); list(entry.addresses, 8, 1, address); });
  if (new Set(said.entries.map((entry) => entry.node)).size < said.entries.length) bad("an entry twice");
  list(said.models ?? [], 32, 0, (model) => {
    text(model.name, 64, 1), number(model.hosts ?? 1, 2 ** 32 - 1);
    number(model.price_in ?? 0, 1e12), number(model.price_out ?? 0, 1e12);
    if (model.hash) hex(model.hash, 16);
  });
  list(said.wanted ?? [], 16, 0, (name) => text(name, 64, 1));
  const time = Buffer.alloc(8);
  time.writeBigUInt64BE(BigInt(createdAt));
  const unsigned = content.slice(0, signature.index) + "}"; // the bytes that came, never an encoding of one's own
  const message = Buffer.concat(
    [Buffer.from("meshnode/1 listing\0"), Buffer.from(publisher, "hex"), time, Buffer.from(unsigned)]);
  const der = Buffer.concat([SPKI, Buffer.from(said.node, "hex")]);
  const key = createPublicKey({ key: der, format: "der", type: "spki" });
  if (!verify(null, message, key, Buffer.from(signature[1], "hex"))) drop("impostor");
  const addresses = said.entries.flatMap((entry) => entry.addresses);
  return { mesh: said.mesh, node: said.node, addresses, models: (said.models ?? []).map((model) => model.name) };
}

function address(text) {
  const [, six, four, port] = /^(?:\[([0-9a-f:.]+)\]|([0-9.]+)):([1-9][0-9]{0,4})$/.exec(text) ?? bad("no address");
  const shortest = six && isIPv6(six) && new URL(`http://[${six}]/`).hostname === `[${six}]`;
  if (+port > 65535 || !(shortest || (four && isIPv4(four)))) bad("an address is written in its shortest form");
  const first = four && +four.split(".")[0];
  const none = four ? first === 0 || (first >= 224 && first < 240) || four === "255.255.255.255"
    : six === "::" || /^ff..:|^::ffff:/.test(six);
  if (none) bad("no address of a node");
}

// JSON.parse keeps the last of two members with one name, so names are counted as they stand.
function membersTwice(content) {
  const open = [];
  for (const [token] of content.matchAll(/"(?:[^"\\]|\\.)*"(\s*:)?|[{}]/g)) {
    if (token === "{") open.push(new Set());
    else if (token === "}") open.pop();
    else if (token.endsWith(":")) {
      const names = open.at(-1), name = JSON.parse(token.slice(0, -1));
      if (names.has(name)) return true;
      names.add(name);
    }
  }
  return false;
}
