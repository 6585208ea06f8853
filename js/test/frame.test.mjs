import assert from "node:assert/strict";
import { test } from "node:test";
import { gunzipSync } from "node:zlib";
import { documented, frames } from "./golden.mjs";
import { seeds } from "./random.mjs";
import { deframer, encodeFrame, isFailed, isHeartbeat, isOneway, isPacked, isResponse } from "./built/internals.mjs";

const MOST = 1 << 20;
const GZIP = 1;

/** The frames of a stream of bytes, fed in these parts. */
function read(parts, most = MOST) {
  const frames = [];
  const feed = deframer(most, (frame) => frames.push(frame));
  for (const part of parts) feed(part);
  return frames;
}

const encode = ({ flags_, type_, seq_, path_, method_, meta_, payload_ }, most = MOST) =>
  encodeFrame(most, flags_, type_, seq_, path_, method_, meta_, payload_);

test("every golden frame of Go is read as Go reads it, and written as Go wrote it", () => {
  let written = 0;
  for (const { file, bytes, decoded } of frames()) {
    // Go writes numbers beyond 2^53 as they are.
    const want = JSON.parse(decoded.replace(/"seq":(\d+)/, '"seq":"$1"'));
    const [frame, ...more] = read([bytes]);
    assert.equal(more.length, 0, file);
    assert.equal(isResponse(frame), want.type === "response", file);
    assert.equal(isHeartbeat(frame), want.heartbeat, file);
    assert.equal(isOneway(frame), want.oneway, file);
    assert.equal(isPacked(frame) >> 2, want.compress, file);
    assert.equal(isFailed(frame), want.status, file);
    assert.equal(frame.type_, want.serialize, file);
    assert.equal(frame.seq_, BigInt(want.seq), file);
    assert.equal(frame.path_, want.path, file);
    assert.equal(frame.method_, want.method, file);
    assert.deepEqual({ ...frame.meta_ }, want.metadata ?? {}, file);

    const packed = isPacked(frame) >> 2 === GZIP && frame.payload_.length;
    const payload = packed ? gunzipSync(frame.payload_) : frame.payload_;
    assert.equal(Buffer.from(payload).toString("hex"), want.payload, file);
    // Versions and reserved bits are not ours to write.
    if (want.version === 0 && want.reserved === 0) {
      assert.deepEqual(encode(frame), bytes, file);
      written++;
    }
  }
  assert.ok(written >= 60, `${written} frames`);
});

test("every frame of docs/protocol.md is read, and written the same", () => {
  const all = documented();
  assert.ok(all.length >= 15, `${all.length} frames`);
  for (const { name, bytes } of all) {
    const [frame] = read([bytes]);
    assert.deepEqual(encode(frame), bytes, name);
  }
});

const randomFrame = (random) => ({
  flags_: random.one([0, 0x20, 0x40, 0x80, 0x81, 0xc0]),
  type_: random.below(16),
  seq_: (BigInt(random.below(2 ** 31)) << 33n) | BigInt(random.below(2 ** 31)),
  path_: random.text(20),
  method_: random.text(20),
  meta_: Object.fromEntries(Array.from({ length: random.below(5) }, () => [random.text(8), random.text(30)])),
  payload_: random.bytes(random.one([0, 10, 3000])),
});

const cut = (random, bytes) => {
  const parts = [];
  for (let at = 0; at < bytes.length; ) {
    const length = 1 + random.below(random.one([1, 20, 5000]));
    parts.push(bytes.subarray(at, at + length));
    at += length;
  }
  return parts;
};

test("random frames come through however their bytes are cut", () => {
  seeds(300, (random) => {
    const sent = Array.from({ length: 1 + random.below(6) }, () => randomFrame(random));
    const bytes = Buffer.concat(sent.map((frame) => encode(frame)));
    const frames = read(cut(random, new Uint8Array(bytes)));
    assert.equal(frames.length, sent.length);
    frames.forEach((frame, at) => assert.deepEqual(encode(frame), encode(sent[at])));
  });
});

/** Runs, and returns the most bytes of one array that was made meanwhile by its length. */
function largest(run) {
  const { Uint8Array: Own } = globalThis;
  let most = 0;
  globalThis.Uint8Array = class extends Own {
    constructor(first, ...rest) {
      super(first, ...rest);
      if (typeof first == "number") most = Math.max(most, first);
    }
  };
  try {
    run();
  } finally {
    globalThis.Uint8Array = Own;
  }
  return most;
}

test("whatever the bytes are, they are frames or an error, and take no more memory than came", () => {
  seeds(2000, (random) => {
    const bytes = encode(randomFrame(random));
    for (let changes = 1 + random.below(4); changes; changes--) bytes[random.below(bytes.length)] = random.below(256);
    const most = largest(() => {
      try {
        read(cut(random, bytes));
      } catch (error) {
        assert.equal(error.code, "protocol", String(error.stack));
      }
    });
    assert.ok(most <= 2 * bytes.length, `${most} for ${bytes.length}`);
  });
});

test("a length alone takes no memory, and one that is too large ends the stream", () => {
  const prefix = (body) => {
    const bytes = new Uint8Array(16);
    bytes[0] = 8;
    new DataView(bytes.buffer).setUint32(12, body);
    return bytes;
  };
  assert.ok(largest(() => read([prefix(MOST)])) < 1000);
  for (const wrong of [prefix(15), prefix(0), prefix(MOST + 1), prefix(2 ** 32 - 1)]) {
    assert.throws(() => read([wrong, new Uint8Array(20)]), { code: "protocol" });
  }
  assert.throws(() => read([new TextEncoder().encode("HTTP/1.1 400 Bad Request\r\n")]), { code: "protocol" });
});

test("many lengths of nothing are not many parts", () => {
  const empty = new Uint8Array(encode({ flags_: 0, type_: 0, seq_: 1n, path_: "", method_: "", meta_: {}, payload_: new Uint8Array(40_000) }));
  // The payload's zeros are the metadata now: 10,000 texts without a character.
  new DataView(empty.buffer).setUint32(24, 40_000);
  assert.throws(() => read([empty]), { code: "protocol" });
});

test("nothing larger than either side takes is written", () => {
  const frame = (meta_, length) => ({ flags_: 0, type_: 0, seq_: 1n, path_: "p", method_: "m", meta_, payload_: new Uint8Array(length) });
  const many = Object.fromEntries(Array.from({ length: 129 }, (_, n) => [`k${n}`, ""]));
  assert.throws(() => encode(frame({}, 1 << 20)), { code: "too_large" });
  assert.throws(() => encode(frame({}, 1000), 1000), { code: "too_large" });
  assert.throws(() => encode(frame({ k: "v".repeat(65530) }, 0)), { code: "too_large" });
  assert.throws(() => encode(frame(many, 0)), { code: "too_large" });
});

test("a key may be called __proto__", () => {
  const meta = Object.create(null);
  meta.__proto__ = "polluted";
  const [frame] = read([encode({ flags_: 0x20, type_: 0, seq_: 1n, path_: "", method_: "", meta_: meta, payload_: new Uint8Array(0) })]);
  assert.equal(frame.meta_.__proto__, "polluted");
  assert.equal({}.polluted, undefined);
});
