// A decoder of the meshnode protocol in plain Node, without packages: values, shapes, frames, statements, certificates,
// owners, invites. It passes protocol/vectors (check.mjs), and is meant to be read beside 02-framing.md and 07-admission.md.
import { createHash, createPublicKey, verify } from "node:crypto";
import { readFileSync } from "node:fs";

export class WireError extends Error {
  constructor(reason, code = "protocol_error") { super(reason); this.code = code; }
}
const fail = (reason, code) => { throw new WireError(reason, code); };
const utf8 = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
const schema = (name) => JSON.parse(readFileSync(new URL(`../schema/${name}.json`, import.meta.url)));

// --- values: bytes are Buffers, maps are Maps, integers beyond 2^53 are BigInts ------------------------------------
export function decode(data) {
  let at = 0;
  const take = (n) => (at + n <= data.length ? data.subarray(at, (at += n)) : fail("cut short"));
  const number = (value) => (Number.isSafeInteger(Number(value)) ? Number(value) : value);
  const unsigned = (n, least) => {
    const value = n === 8 ? take(8).readBigUInt64BE() : take(n).readUIntBE(0, n);
    return value < least ? fail("not the shortest form") : number(value);
  };
  const negative = (n, most) => {
    const value = n === 8 ? take(8).readBigInt64BE() : take(n).readIntBE(0, n);
    return value >= most ? fail("not the shortest form") : number(value);
  };
  const text = (n) => { try { return utf8.decode(take(n)); } catch (e) { return fail(`no text: ${e.message}`); } };
  const array = (n, depth) => (n > 4096 ? fail("too many items") : Array.from({ length: n }, () => value(depth + 1)));
  const map = (n, depth) => {
    if (n > 64) fail("too many members");
    const found = new Map();
    for (let last = -1, i = 0; i < n; i++) {
      const key = value(depth + 1);
      if (typeof key !== "number" || key <= last || key > 0xffff) fail("keys are small integers in ascending order");
      found.set((last = key), value(depth + 1));
    }
    return found;
  };
  const inside = (depth) => (depth < 8 ? depth : fail("nested too deeply"));
  const value = (depth) => {
    const b = take(1)[0];
    if (b < 0x80) return b;
    if (b >= 0xe0) return b - 0x100;
    if (b < 0x90) return map(b & 15, inside(depth));
    if (b < 0xa0) return array(b & 15, inside(depth));
    if (b < 0xc0) return text(b & 31);
    switch (b) {
      case 0xc0: return null;
      case 0xc2: return false;
      case 0xc3: return true;
      case 0xc4: case 0xc5: case 0xc6: return take(unsigned(1 << (b - 0xc4), [0, 1 << 8, 1 << 16][b - 0xc4]));
      case 0xcc: case 0xcd: case 0xce: case 0xcf:
        return unsigned(1 << (b - 0xcc), [128, 256, 65536, 2 ** 32][b - 0xcc]);
      case 0xd0: case 0xd1: case 0xd2: case 0xd3:
        return negative(1 << (b - 0xd0), [-32, -128, -32768, -(2 ** 31)][b - 0xd0]);
      case 0xd9: case 0xda: case 0xdb: return text(unsigned(1 << (b - 0xd9), [32, 1 << 8, 1 << 16][b - 0xd9]));
      case 0xdc: case 0xdd: return array(unsigned(b === 0xdc ? 2 : 4, b === 0xdc ? 16 : 65536), inside(depth));
      case 0xde: case 0xdf: return map(unsigned(b === 0xde ? 2 : 4, b === 0xde ? 16 : 65536), inside(depth));
      default: return fail("a float, an extension or the unused byte");
    }
  };
  const whole = value(0);
  return at === data.length ? whole : fail("a byte too many");
}

// --- shapes: a decoded map, judged by its JSON Schema, as an object with names ---------------------------------------
export function conform(rule, value) {
  const wrong = () => fail(`not what ${rule.title} may be`);
  const within = (n, least, most) => (n >= (least ?? 0) && n <= (most ?? Infinity)) || wrong();
  switch (rule.encoding ?? rule.type) {
    case "boolean": return typeof value === "boolean" ? value : wrong();
    case "integer":
      if (!["number", "bigint"].includes(typeof value) || value >= (rule.exclusiveMaximum ?? Infinity)) wrong();
      return within(value, rule.minimum, rule.maximum) && value;
    case "bytes":
      if (!Buffer.isBuffer(value) || value.length % (rule.stepBytes ?? 1)) wrong();
      return within(value.length, rule.minBytes, rule.maxBytes) && value;
    case "address": return Buffer.isBuffer(value) ? address(value) : wrong();
    case "string":
      if (typeof value !== "string" || !new RegExp(rule.pattern, "u").test(value)) wrong();
      return within([...value].length, rule.minLength, rule.maxLength) && value;
    case "array":
      if (!Array.isArray(value)) wrong();
      return within(value.length, rule.minItems, rule.maxItems) && value.map((item) => conform(rule.items, item));
  }
  if (!(value instanceof Map) || rule.required.some((key) => !value.has(Number(key)))) wrong();
  const found = {};
  for (const [key, inner] of value)
    if (key in rule.properties) found[rule.properties[key].title] = conform(rule.properties[key], inner);
    else if (key % 2 === 0) fail(`the unknown member ${key}`);
  return found;
}

export function address(packed) {
  const ip = packed.subarray(0, -2), port = packed.length > 2 ? packed.readUInt16BE(packed.length - 2) : 0;
  if (![4, 16].includes(ip.length) || !port || ip.every((b) => b === 0)) fail("no address of a node");
  const four = ip.length === 4, mapped = !four && ip.subarray(0, 12).toString("hex") === "00000000000000000000ffff";
  const many = four ? ip[0] === 0 || (ip[0] & 0xf0) === 0xe0 || ip.equals(Buffer.alloc(4, 255)) : ip[0] === 255;
  return many || mapped ? fail("no address of a node") : packed;
}

// --- frames ---------------------------------------------------------------------------------------------------------
export function* frames(data) { // yields {id, body}; returns what is left of the bytes
  for (let at = 0; ; ) {
    if (data.length - at < 4) return data.subarray(at);
    const size = data.readUInt32BE(at), end = at + 4 + size;
    if (size < 2 || size > 65536) fail(`a frame of ${size} bytes`);
    if (data.length < end) return data.subarray(at);
    yield { id: data.readUInt16BE(at + 4), body: data.subarray(at + 6, end) };
    at = end;
  }
}

// --- manifests: 11-weights.md -----------------------------------------------------------------------------------------
const CHUNK = 4194304n, MOST = 1n << 50n;
export function manifest(data) {
  let at = 0;
  const take = (n) => (at + n <= data.length ? data.subarray(at, (at += n)) : fail("cut short"));
  const u64 = () => take(8).readBigUInt64BE();
  if (data.length > 67108864 || take(4).toString("latin1") !== "MNWM" || take(1)[0] !== 1) fail("no manifest");
  const files = [], chunks = [], names = new Set(), count = take(2).readUInt16BE();
  let total = 0n, number = 0n, places = [];
  for (let file = 0; file < count; file++) {
    const size = u64(), sha256 = take(32).toString("hex"), tensors = [], many = take(4).readUInt32BE();
    let free = 1n, starts = [0n];
    for (let i = 0; i < many; i++) {
      if (names.size >= 131072) fail("too many tensors");
      const raw = take(take(2).readUInt16BE()), position = u64(), bytes = u64();
      let name;
      try { name = utf8.decode(raw); } catch { fail("a name that is not UTF-8"); }
      if (!raw.length || raw.length > 768 || names.has(name)) fail("no name, a long one, or one that is there twice");
      if (position < free || !bytes) fail("out of order");
      free = position + bytes;
      names.add(name);
      starts.push(position);
      tensors.push([name, Number(position), Number(bytes)]);
    }
    if (!size || (total += size) > MOST || free > size) fail("an impossible size");
    places.push(...starts.map((start, i) => [file, start, i + 1 < starts.length ? starts[i + 1] : size]));
    files.push({ size: Number(size), sha256, tensors });
  }
  for (const [, start, end] of places) number += (end - start + CHUNK - 1n) / CHUNK;
  if (!count || count > 4096 || BigInt(data.length - at) !== number * 32n) fail("another number of hashes");
  for (const [file, start, end] of places)
    for (let from = start; from < end; from += CHUNK)
      chunks.push([file, Number(from), Number(end - from < CHUNK ? end - from : CHUNK)]);
  return { digest: createHash("sha256").update(data).digest("hex"), files, chunks };
}

// --- what is signed: signature 64 | payload -------------------------------------------------------------------------
const SPKI = Buffer.from("302a300506032b6570032100", "hex"); // an Ed25519 key in DER, but for its 32 bytes (RFC 8410)
const signedBy = (key, purpose, signed) => verify(null,
  Buffer.concat([Buffer.from(`meshnode/1 ${purpose}\0`), signed.subarray(64)]),
  createPublicKey({ key: Buffer.concat([SPKI, key]), format: "der", type: "spki" }), signed.subarray(0, 64));
const open = (rule, signed) => (signed.length > 64 ? conform(rule, decode(signed.subarray(64))) : fail("too short"));
const STATEMENT = schema("statement"), CERTIFICATE = schema("certificate"), INVITE = schema("invite"),
  OWNER = schema("owner"), PROVIDER = schema("provider");
const BODIES = Object.fromEntries(["identity", "dynamic", "demand", "accuse", "leave"].map((name) => {
  const rule = schema(`statement-${name}`);
  return [rule.kind, rule];
}));

export function statement(signed) {
  if (signed.length > 1200) fail("too long");
  const found = open(STATEMENT, signed), plain = decode(found.body);
  if (found.kind in BODIES) conform(BODIES[found.kind], plain);
  else if (found.kind % 2 === 0) fail("an unknown kind");
  if (!signedBy(found.origin, "statement", signed)) fail("forged");
  return { ...found, body: plain, id: createHash("sha256").update(signed).digest("hex").slice(0, 20) };
}

export function certificate(signed, mesh, node, now, links = 3) {
  if (signed.length > 700) fail("too long", "not_admitted");
  const found = open(CERTIFICATE, signed), refuse = (why, code = "not_admitted") => fail(why, code);
  if (links === 3 && !found.mesh.equals(mesh)) refuse("another mesh", "wrong_mesh");
  if (node && !found.node.equals(node)) refuse("another node");
  if (![1, 2].includes(found.role)) refuse("an unknown role");
  if (now > found.not_after || now + 60 < found.not_before) refuse("not its time", "certificate_expired");
  let signer = found.mesh, replaced = [];
  if (found.authority?.length) {
    if (links === 1) refuse("too many links");
    const above = certificate_above(found, refuse);
    const rest = certificate(found.authority, mesh, null, now, links - 1);
    [signer, replaced] = [above.node, found.replaces ? [above.node.toString("hex"), ...rest.replaced] : rest.replaced];
  } else if (found.replaces) refuse("replaces nothing");
  if (!signedBy(signer, "certificate", signed)) refuse("forged");
  return { ...found, replaced };
}

function certificate_above(found, refuse) { // the rights of a signer: 07-admission.md
  if (found.authority.length > 700) refuse("too long");
  const above = open(CERTIFICATE, found.authority);
  if (!above.mesh.equals(found.mesh) || above.node.equals(found.node)) refuse("not above it");
  if (found.replaces) {
    const more = (found.may_invite && !above.may_invite) || found.not_after > above.not_after;
    if (more || found.role !== above.role) refuse("more rights than what it replaces");
  } else if (!above.may_invite || (above.role === 2 && found.role !== 2)) refuse("the signer may not");
  return above;
}

export function provider(signed) { // who provides a model: 13-dht.md
  if (signed.length > 600) fail("too long");
  const found = open(PROVIDER, signed);
  if (found.first_layer && !found.layers) fail("layers of nothing");
  return signedBy(found.node, "provider", signed) ? found : fail("forged");
}

export function modelKey(hash, first, layers) { // where such a record is kept
  const place = Buffer.alloc(8);
  place.writeUInt32BE(first, 0);
  place.writeUInt32BE(layers, 4);
  return createHash("blake2s256").update("meshnode model\0").update(hash).update(place).digest();
}

export function owner(signed, node, now) { // whose `node` is: 07-admission.md
  if (signed.length > 240) fail("too long", "not_admitted");
  const found = open(OWNER, signed);
  if (!found.node.equals(node) || found.owner.equals(node)) fail("of another node, or its own", "not_admitted");
  if (!signedBy(found.owner, "owner", signed)) fail("forged", "not_admitted");
  return now > found.not_after || now + 60 < found.not_before ? fail("not its time", "certificate_expired") : found;
}

export function invite(text) {
  const bad = (why) => fail(why, "invite_invalid"), digits = "abcdefghijklmnopqrstuvwxyz234567";
  const bare = text.replace(/[\t-\r ]+/g, "");
  if (!/^mn1[a-z2-7]+$/.test(bare.replace(/[A-Z]/g, (c) => c.toLowerCase())) || bare.length > 900) bad("not an invite");
  const bits = [...bare.slice(3).toLowerCase()].map((c) => digits.indexOf(c).toString(2).padStart(5, "0")).join("");
  const whole = bits.length - (bits.length % 8);
  if (bits.length % 8 >= 5 || bits.slice(whole).includes("1")) bad("mistyped");
  const signed = Buffer.from(bits.slice(0, whole).match(/.{8}/g)?.map((byte) => parseInt(byte, 2)) ?? []);
  let found;
  try { found = open(INVITE, signed); } catch (e) { bad(e.message); }
  if (![1, 2].includes(found.role) || !signedBy(found.issuer, "invite", signed)) bad("an unknown role, or forged");
  return { ...found, signed };
}
