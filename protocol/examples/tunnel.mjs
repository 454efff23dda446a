// RPC tunnels (10-rpc-tunnels.md): frames of llama.cpp's RPC, blocks, packed blocks, pushes.
import { constants, inflateRawSync } from "node:zlib";
import { WireError } from "./decode.mjs";

const insist = (condition, why) => {
  if (!condition) throw new WireError(why);
};
const TENSOR = 296, SET = TENSOR + 9, GET = TENSOR + 16;
const FIXED = {
  0: 12, 1: 4, 2: 4, 3: 8, 4: 8, 5: 9, 7: GET, 8: GET, 9: 2 * TENSOR, 11: 4, 12: TENSOR, 13: 4 + 11 * TENSOR, 14: 24,
  15: 0, 16: 4, 17: TENSOR + 17, 64: 16 + GET, 65: 16 + SET, 66: 32 + GET,
};
const RANGE = { 6: [SET, SET + 2 ** 40], 10: [12, 64 * 2 ** 20] };
const BODY = { 0: [2, 2], 1: [1, 2 ** 20 + 1024], 2: [5, 2 ** 20 + 1024], 3: [4, 4], 4: [4, 4], 5: [0, 0], 6: [16, 16],
  7: [0, 500] };

// What `head` finds at each place, until the bytes do not suffice: {found, left}.
const cut = (data, head_bytes, head) => {
  const found = [];
  let at = 0;
  while (data.length - at >= head_bytes) {
    const { size, ...rest } = head(data, at, found.at(-1));
    if (data.length - at < head_bytes + size) break;
    found.push({ ...rest, body: data.subarray(at + head_bytes, at + head_bytes + size) });
    at += head_bytes + size;
  }
  return { found, left: data.length - at };
};

export const requests = (data) => cut(data, 9, (bytes, at) => {
  const command = bytes[at], size = Number(bytes.readBigUInt64LE(at + 1));
  const [least, most] = RANGE[command] ?? [FIXED[command], FIXED[command]];
  insist(least !== undefined, "an unknown command");
  insist(size >= least && size <= most, "a command of a wrong size");
  return { command, size };
});

export const replies = (data, expected) => {
  let next = 0;
  const { found, left } = cut(data, 8, (bytes, at) => {
    const size = Number(bytes.readBigUInt64LE(at));
    insist(next < expected.length && size === expected[next++], "a reply that nobody asked for");
    return { size };
  });
  insist(!left || found.length < expected.length, "a reply that nobody asked for");
  return found.length;
};

export const blocks = (data) => cut(data, 5, (bytes, at) => {
  const kind = bytes[at], size = bytes.readUInt32BE(at + 1), bounds = BODY[kind];
  insist(bounds && size >= bounds[0] && size <= bounds[1], "a block that cannot be");
  return { kind, size };
});

export const pushes = (data) => {
  let last = -1n;
  return cut(data, 13, (bytes, at) => {
    const id = bytes.readBigUInt64BE(at), flags = bytes[at + 8], size = bytes.readUInt32BE(at + 9);
    insist(id > last && flags <= 1 && size > 0 && size <= 2 ** 28, "a push that cannot be");
    last = id;
    return { id: Number(id), flags, size };
  });
};

// Node has no stream that inflates in step, so all bodies so far are inflated anew for each.
export const packed = (bodies) => {
  const slots = new Map(), plain = [];
  let deflated = Buffer.alloc(0), before = 0;
  for (const body of bodies) {
    insist(body.length > 4, "a packed block without data");
    const size = body.readUInt32BE(0);
    insist(size <= 2 ** 20, "a packed block that is too large");
    deflated = Buffer.concat([deflated, body.subarray(4)]);
    let all;
    try {
      const { buffer, engine } = inflateRawSync(deflated, { finishFlush: constants.Z_SYNC_FLUSH, info: true });
      insist(engine.bytesWritten === deflated.length && deflated.subarray(-4).equals(Buffer.from([0, 0, 255, 255])),
        "DEFLATE that goes on, or has ended");
      all = buffer;
    } catch (error) {
      throw error instanceof WireError ? error : new WireError(error.message);
    }
    insist(all.length - before === size, "a packed block of another length than it says");
    plain.push(records(all.subarray(before), slots));
    before = all.length;
  }
  return plain;
};

const records = (data, slots) => {
  const found = [];
  for (let at = 0; at < data.length; ) {
    const kind = data[at], head = kind ? 6 : 5;
    insist(kind <= 2 && data.length - at >= head, "a broken record");
    const size = data.readUInt32BE(at + head - 4), slot = data[at + 1];
    let bytes = data.subarray(at + head, at + head + size);
    insist(bytes.length === size, "a record longer than the rest");
    if (kind) {
      insist(slot < 64 && size <= 256 * 1024, "a record that cannot be kept");
      if (kind === 2) {
        const kept = slots.get(slot);
        insist(kept?.length === size, "nothing of that length in the slot");
        bytes = bytes.map((byte, place) => byte ^ kept[place]);
      }
      slots.set(slot, bytes);
    }
    found.push(bytes);
    at += head + size;
  }
  return Buffer.concat(found);
};
