// Payments in plain Node: quotes, receipts, paid streams, and the vouchers of x402 `batch-settlement` (15-payments.md).
import { createPublicKey, verify } from "node:crypto";
import { readFileSync } from "node:fs";
import { conform, decode, frames, WireError } from "./decode.mjs";

const fail = (reason) => { throw new WireError(reason); };
const schema = (name) => JSON.parse(readFileSync(new URL(`../schema/${name}.json`, import.meta.url)));
const SPKI = Buffer.from("302a300506032b6570032100", "hex"); // an Ed25519 key in DER, but for its 32 bytes (RFC 8410)
const signedBy = (key, purpose, signature, payload) => verify(null,
  Buffer.concat([Buffer.from(`meshnode/1 ${purpose}\0`), payload]),
  createPublicKey({ key: Buffer.concat([SPKI, key]), format: "der", type: "spki" }), signature);

// --- quotes: signature 64 | payload ---------------------------------------------------------------------------------
const QUOTE = schema("quote");
export function quote(signed, node) {
  if (signed.length > 800 || signed.length <= 64) fail("no quote has that length");
  const plain = decode(signed.subarray(64)), said = conform(QUOTE, plain);
  const { model, content_hash, channel = [], charged = 0, vouched = 0, signature = [] } = said;
  if (!model !== !content_hash.length) fail("a model and the hash of its weights, or neither");
  if (!model && (said.price_in || said.price_out)) fail("a price of nothing");
  if (said.every_tokens > said.ahead_tokens) fail("vouchers too rare for the window");
  const places = [said.hub, said.token, said.receiver, said.receiver_authorizer];
  if (!said.chain || places.some((place) => place.every((byte) => !byte))) fail("paid to nobody, or nowhere");
  if (!channel.length && (charged || vouched)) fail("charged over no channel");
  if (!vouched !== !signature.length) fail("a voucher is shown with its signature");
  if (!said.node.equals(node)) fail("of another node");
  return signedBy(node, "quote", signed.subarray(0, 64), signed.subarray(64)) ? plain : fail("forged");
}

// --- receipts: RFC 8785, all values texts ----------------------------------------------------------------------------
const digits = (bytes, prefix = "") => new RegExp(`^${prefix}[0-9a-f]{${2 * bytes}}$`);
const BYTES = { quote: digits(16), node: digits(32), content_hash: digits(16), payer: digits(20, "0x"), sig: digits(64),
  channel: digits(32, "0x"), hub: digits(20, "0x"), output_sha256: digits(32) };
const U32 = 2n ** 32n - 1n, U63 = 2n ** 63n - 1n, PRICE = 10n ** 12n, MONEY = 10n ** 15n;
const NUMBERS = { chain: U63, at: U63, price_in: PRICE, price_out: PRICE, tokens_in: U32, tokens_out: U32,
  charged_micros: MONEY, channel_charged_micros: MONEY };
const canonical = (said) =>
  JSON.stringify(Object.fromEntries(Object.keys(said).sort().map((name) => [name, said[name]])));

export function receipt(text, isShown) {
  if (Buffer.byteLength(text) > 2048) fail("too long");
  let said;
  try { said = JSON.parse(text); } catch { fail("no JSON"); }
  if (typeof said !== "object" || !said || Array.isArray(said)) fail("no object");
  if (canonical(said) !== text) fail("not in canonical form");
  if (/\\ud[89a-f]/.test(text)) fail("half a surrogate pair");
  for (const [name, value] of Object.entries(said))
    if (!/^[a-z][a-z0-9_]{0,39}$/.test(name) || typeof value !== "string") fail("an object of texts");
  if (said.v !== "1") fail("another version");
  for (const [name, form] of Object.entries(BYTES)) if (!form.test(said[name])) fail(`${name} is no such bytes`);
  for (const [name, most] of Object.entries(NUMBERS))
    if (!/^(0|[1-9][0-9]{0,18})$/.test(said[name]) || BigInt(said[name]) > most) fail(`${name} is no such number`);
  for (const name of ["request", "model"])
    if (!(said[name] && isShown(said[name]) && [...said[name]].length <= 64)) fail(`${name} is no such text`);
  if (!["stop", "length", "cancelled", "broken"].includes(said.finish)) fail("ended in no known way");
  const number = (name) => BigInt(said[name]), million = 1000000n;
  const cost = number("tokens_in") * number("price_in") + number("tokens_out") * number("price_out");
  const charged = number("charged_micros");
  if (charged > (cost + million - 1n) / million) fail("more than the tokens cost");
  if (charged > number("channel_charged_micros")) fail("more than the channel was charged");
  const { sig, ...rest } = said;
  const key = Buffer.from(said.node, "hex"), signature = Buffer.from(sig, "hex");
  return signedBy(key, "receipt", signature, Buffer.from(canonical(rest))) ? rest : fail("forged");
}

// --- paid streams: header 01, then frames --------------------------------------------------------------------------
const SENT = {
  payer: ["pay_http", "pay_ask", "pay_voucher", "pay_refused"],
  provider: ["pay_http", "pay_quote", "pay_due", "pay_receipt", "pay_refused"],
};
const RULES = Object.fromEntries(Object.entries(SENT).map(([end, names]) => {
  const rules = names.map((name) => [name, schema(`message-${name}`)]);
  return [end, new Map(rules.map(([name, rule]) => [rule.id, { name, rule }]))];
}));

export function paidStream(header, data, from) {
  if (!header.equals(Buffer.from([1]))) fail("not a paid stream");
  const messages = [], http = [], steps = frames(data);
  for (let step = steps.next(); ; step = steps.next()) {
    if (step.done) return { messages, http: Buffer.concat(http).toString("hex"), left_bytes: step.value.length };
    const { id, body } = step.value, known = RULES[from].get(id), value = decode(body);
    if (!known && id % 2 === 0) fail(`message ${id} has no place here`);
    if (!known) continue;
    const said = conform(known.rule, value);
    messages.push(known.name);
    if (known.name === "pay_http") http.push(said.data);
  }
}

// --- Keccak-256 (padded as before FIPS 202) ------------------------------------------------------------------------
const MASK = (1n << 64n) - 1n;
const turned = (word, by) => (word << BigInt(by) | word >> BigInt(64 - by)) & MASK;
const CONSTANTS = [], STEPS = [];
for (let round = 0, state = 1; round < 24; round++) {
  let constant = 0n;
  for (let bit = 0; bit < 7; bit++) {
    if (state & 1) constant |= 1n << BigInt((1 << bit) - 1);
    state = (state << 1) ^ (state & 0x80 ? 0x171 : 0);
  }
  CONSTANTS.push(constant);
}
for (let x = 1, y = 0, step = 1; step <= 24; step++) {
  [x, y] = [y, (2 * x + 3 * y) % 5];
  STEPS.push([x + 5 * y, (step * (step + 1) / 2) % 64]);
}
export function keccak(...parts) {
  const data = Buffer.concat(parts), padded = Buffer.alloc(Math.ceil((data.length + 1) / 136) * 136);
  data.copy(padded);
  padded[data.length] ^= 1, padded[padded.length - 1] ^= 0x80;
  let lanes = Array(25).fill(0n); // x + 5 y
  for (let at = 0; at < padded.length; at += 136) {
    for (let place = 0; place < 17; place++) lanes[place] ^= padded.readBigUInt64LE(at + 8 * place);
    for (const constant of CONSTANTS) {
      const columns = [0, 1, 2, 3, 4].map((x) => [0, 5, 10, 15, 20].reduce((sum, y) => sum ^ lanes[x + y], 0n));
      lanes = lanes.map((lane, at) => lane ^ columns[(at + 4) % 5] ^ turned(columns[(at + 1) % 5], 1));
      let current = lanes[1];
      for (const [place, by] of STEPS) [current, lanes[place]] = [lanes[place], turned(current, by)];
      lanes = lanes.map((lane, at) => {
        const row = at - (at % 5);
        return lane ^ (~lanes[row + ((at + 1) % 5)] & MASK & lanes[row + ((at + 2) % 5)]);
      });
      lanes[0] ^= constant;
    }
  }
  const found = Buffer.alloc(32);
  for (let place = 0; place < 4; place++) found.writeBigUInt64LE(lanes[place], 8 * place);
  return found;
}

// --- secp256k1: the address whose key has signed a digest ----------------------------------------------------------
const P = 2n ** 256n - 2n ** 32n - 977n, N = 0xfffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141n;
const G = [0x79be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798n,
  0x483ada7726a3c4655da4fbfc0e1108a8fd17b448a68554199c47d08ffb10d4b8n];
const mod = (value, by) => ((value % by) + by) % by;
const power = (base, exponent, by) => {
  let found = 1n;
  for (base = mod(base, by); exponent; exponent >>= 1n, base = (base * base) % by)
    if (exponent & 1n) found = (found * base) % by;
  return found;
};
const inverse = (value, by) => power(value, by - 2n, by);
const sum = (one, other) => {
  if (!one || !other) return one ?? other;
  if (one[0] === other[0] && mod(one[1] + other[1], P) === 0n) return null;
  const slope = one[0] === other[0] ? 3n * one[0] ** 2n * inverse(2n * one[1], P)
    : (other[1] - one[1]) * inverse(other[0] - one[0], P);
  const x = mod(slope * slope - one[0] - other[0], P);
  return [x, mod(slope * (one[0] - x) - one[1], P)];
};
const times = (scalar, point) => {
  let found = null;
  for (; scalar; scalar >>= 1n, point = sum(point, point)) if (scalar & 1n) found = sum(found, point);
  return found;
};
const integer = (bytes) => BigInt(`0x${bytes.toString("hex")}`);
const word = (value) => Buffer.from((Buffer.isBuffer(value) ? value.toString("hex") : BigInt(value).toString(16))
  .padStart(64, "0"), "hex");

export function signer(digest, signature) {
  if (signature.length !== 65 || ![27, 28].includes(signature[64])) fail("no signature of a voucher");
  const r = integer(signature.subarray(0, 32)), s = integer(signature.subarray(32, 64));
  if (!r || r >= N || !s || s > N / 2n) fail("r or s out of range, or s in the upper half");
  const square = (r ** 3n + 7n) % P, root = power(square, (P + 1n) / 4n, P);
  if ((root * root) % P !== square) fail("no point of the curve");
  const y = Number(root & 1n) === signature[64] - 27 ? root : P - root, back = inverse(r, N);
  const key = sum(times(mod(s * back, N), [r, y]), times(mod(-integer(digest) * back, N), G)) ?? fail("no key");
  return keccak(word(key[0]), word(key[1])).subarray(12);
}

// --- what a voucher signs: EIP-712 ----------------------------------------------------------------------------------
const struct = (kind, ...values) => keccak(keccak(Buffer.from(kind)), ...values.map(word));
const typed = (hash, chain, hub) => keccak(Buffer.from([0x19, 1]),
  struct("EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)",
    keccak(Buffer.from("x402 Batch Settlement")), keccak(Buffer.from("1")), chain, hub), hash);

export function voucher({ chain, hub, config, cumulative, nonce, amount }, signature) {
  const place = Buffer.from(hub, "hex");
  const { withdraw_delay_s: delay, salt, ...addresses } = config;
  const parts = [...Object.values(addresses).map((each) => Buffer.from(each, "hex")), delay, Buffer.from(salt, "hex")];
  const channel = typed(struct("ChannelConfig(address payer,address payerAuthorizer,address receiver,address " +
    "receiverAuthorizer,address token,uint40 withdrawDelay,bytes32 salt)", ...parts), chain, place);
  const digest = typed(cumulative === undefined
    ? struct("RefundRequest(bytes32 channelId,uint256 nonce,uint128 amount)", channel, nonce, amount)
    : struct("Voucher(bytes32 channelId,uint128 maxClaimableAmount)", channel, cumulative), chain, place);
  if (signer(digest, signature).toString("hex") !== config.payer_authorizer) fail("signed by another");
  return { channel: channel.toString("hex"), digest: digest.toString("hex") };
}
