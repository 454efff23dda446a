// Runs decode.mjs over protocol/vectors: `node protocol/examples/check.mjs`. Prints what disagrees; status 1 if any does.
import { createHmac, hkdfSync } from "node:crypto";
import { readFileSync } from "node:fs";
import * as wire from "./decode.mjs";
import { Dropped, judge } from "./listing.mjs";
import * as payments from "./payments.mjs";
import * as tunnel from "./tunnel.mjs";

const read = (name) => JSON.parse(readFileSync(new URL(`../${name}.json`, import.meta.url)));
const bytes = (hex) => Buffer.from(hex, "hex");
const shown = (value) => {
  if (Buffer.isBuffer(value)) return { hex: value.toString("hex") };
  if (value instanceof Map) return { map: [...value].map(([key, inner]) => [key, shown(inner)]) };
  if (Array.isArray(value)) return value.map(shown);
  return typeof value === "bigint" ? { int: String(value) } : value;
};
const messages = {}, openings = {};
const text_rule = read("schema/message-hello").properties[11];
const isShown = (text) => new RegExp(text_rule.pattern, "u").test(text);
const all_frames = (data) => {
  const found = [], steps = wire.frames(data);
  try {
    for (let step = steps.next(); ; step = steps.next()) {
      if (step.done) return { frames: found, left_bytes: step.value.length };
      found.push({ id: step.value.id, hex: step.value.body.toString("hex") });
    }
  } catch (error) { throw Object.assign(error, { frames: found }); }
};

// For each file: from a case to what it decodes to, in the notation of the file.
const decoders = {
  values: ({ hex }) => ({ value: shown(wire.decode(bytes(hex))) }),
  texts: ({ text }) => ({ text: wire.conform({ ...text_rule, minLength: 1, maxLength: 8 }, text) }),
  addresses: ({ hex }) => ({ hex: wire.address(bytes(hex)).toString("hex") }),
  frames: ({ hex }) => all_frames(bytes(hex)),
  messages: ({ message, id, body }) => {
    const value = wire.decode(bytes(body));
    if (message) wire.conform((messages[message] ??= read(`schema/message-${message}`)), value);
    else if (id % 2 === 0) throw new wire.WireError("an unknown message");
    return { value: shown(value) };
  },
  openings: ({ message, hex }) => {
    const value = wire.decode(bytes(hex));
    wire.conform((openings[message] ??= read(`schema/stream-${message}`)), value);
    return { value: shown(value) };
  },
  manifests: ({ hex }) => wire.manifest(bytes(hex)),
  statements: ({ hex }) => {
    const { id, kind, origin, incarnation, number, body } = wire.statement(bytes(hex));
    return { id, kind, origin: origin.toString("hex"), incarnation, number, body: shown(body) };
  },
  certificates: ({ hex, mesh, node, now_s }) => {
    const found = wire.certificate(bytes(hex), bytes(mesh), bytes(node), now_s);
    return { role: found.role, may_invite: found.may_invite ?? false, replaced: found.replaced };
  },
  providers: ({ hex, content_hash }) => {
    const { key, node, mesh, expires_at, addresses = [], first_layer = 0, layers = 0 } = wire.provider(bytes(hex));
    if (!wire.modelKey(bytes(content_hash), first_layer, layers).equals(key)) throw new Error("another key");
    const named = Object.entries({ key, node, mesh }).map(([name, value]) => [name, value.toString("hex")]);
    const where = addresses.map((each) => each.toString("hex"));
    return { ...Object.fromEntries(named), expires_at: shown(expires_at), addresses: where, first_layer, layers };
  },
  owners: ({ hex, node, now_s }) => ({ owner: wire.owner(bytes(hex), bytes(node), now_s).owner.toString("hex") }),
  pairing: ({ host, guest, exporter, guest_proof, secret, key }) => { // SPAKE2 needs a curve that Node does not give
    const nodes = [host, guest].sort().map(bytes);
    const context = Buffer.concat([Buffer.from("meshnode/1 pair\0"), ...nodes, bytes(exporter)]);
    const derived = Buffer.from(hkdfSync("sha256", bytes(secret), "", context, 32));
    const proof = (node) => createHmac("sha256", derived).update("confirm\0").update(bytes(node)).digest("hex");
    return { key: derived.toString("hex"), host_proof: proof(host), guest_proof: proof(guest) };
  },
  invites: ({ text }) => ({ hex: wire.invite(text).signed.toString("hex") }),
  quotes: ({ hex, node }) => ({ value: shown(payments.quote(bytes(hex), bytes(node))) }),
  receipts: ({ text }) => ({ receipt: payments.receipt(text, isShown) }),
  "paid-streams": ({ from, header, hex }) => payments.paidStream(bytes(header), bytes(hex), from),
  vouchers: ({ signature, ...said }) => payments.voucher(said, bytes(signature)),
  listings: ({ event, now_s, reason }) => {
    try { return judge(event, now_s, 8, isShown); } catch (error) {
      if (error instanceof Dropped && error.reason === reason) throw new wire.WireError(error.message);
      throw error;
    }
  },
  "rpc-requests": ({ hex }) => {
    const { found, left } = tunnel.requests(bytes(hex));
    return { requests: found.map(({ command, body }) => ({ command, bytes: 9 + body.length })), left_bytes: left };
  },
  "rpc-replies": ({ expected, hex }) => ({ complete: tunnel.replies(bytes(hex), expected) }),
  "tunnel-blocks": ({ hex }) => {
    const { found, left } = tunnel.blocks(bytes(hex));
    return { blocks: found.map(({ kind, body }) => ({ kind, hex: body.toString("hex") })), left_bytes: left };
  },
  "tunnel-packed": ({ bodies }) => ({ plain: tunnel.packed(bodies.map(bytes)).map((each) => each.toString("hex")) }),
  "tunnel-pushes": ({ hex }) => {
    const { found, left } = tunnel.pushes(bytes(hex));
    return { pushes: found.map(({ body, ...rest }) => ({ ...rest, hex: body.toString("hex") })), left_bytes: left };
  },
};

let cases = 0, wrong = 0;
const same = (one, other) => JSON.stringify(one) === JSON.stringify(other);
const report = (file, given, why) => {
  wrong++;
  console.error(`${file}: ${given.comment ?? JSON.stringify(given)}: ${why}`);
};
for (const [file, decoder] of Object.entries(decoders)) {
  const { valid, invalid } = read(`vectors/${file}`);
  for (const given of valid) {
    cases++;
    try {
      for (const [name, value] of Object.entries(decoder(given)))
        if (!same(value, given[name])) report(file, given, `${name} is ${JSON.stringify(value)}`);
    } catch (error) { report(file, given, `refused: ${error.stack}`); }
  }
  for (const given of file === "pairing" ? [] : invalid) {
    cases++;
    try {
      decoder(given);
      report(file, given, "accepted");
    } catch (error) {
      if (!(error instanceof wire.WireError)) report(file, given, error.stack);
      else if (error.code !== given.code) report(file, given, `${error.code} in place of ${given.code}`);
      if (given.frames && !same(error.frames, given.frames)) report(file, given, "other frames");
    }
  }
}
console.log(`${cases} cases, ${wrong} wrong`);
process.exitCode = wrong ? 1 : 0;
