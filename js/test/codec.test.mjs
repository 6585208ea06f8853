import assert from "node:assert/strict";
import { test } from "node:test";
import { values } from "./golden.mjs";
import { seeds } from "./random.mjs";
import { Ext, json, msgpack, pascal as named, raw } from "./built/internals.mjs";

const plain = msgpack();

/** A value as Go would write it in JSON. */
const asJson = (value) =>
  JSON.stringify(value, function (key, shown) {
    const own = this[key];
    if (own instanceof Uint8Array) return Buffer.from(own).toString("base64");
    if (own instanceof Date) return own.toISOString().replace(/\.?0*Z$/, "Z");
    return typeof own == "bigint" ? `big:${own}` : shown;
  });

/** JSON as Go wrote it, whose integers may have 64 bits. */
const ofGo = (text) => JSON.parse(text.replaceAll(/(?<=[:[,]|^)(-?\d{16,})(?=[,\]}]|$)/g, (digits) =>
  Number.isSafeInteger(Number(digits)) ? digits : `"big:${digits}"`));

test("every value of Go is read as Go means it", () => {
  let read = 0;
  for (const { file, go, json: text, bytes } of values("msgpack_")) {
    // What JSON has no form for, Go says in words. Names that a tag gives differ between the two.
    if (text === undefined || /_(rpcx_own|tags)/.test(file)) continue;
    const value = plain.decode(bytes);
    let want;
    try {
      want = ofGo(text);
    } catch {
      continue;
    }
    // A map with keys that are no texts, and times, are compared in JSON's form of them.
    const got = JSON.parse(asJson(value) ?? "null");
    const rounded = (value) => JSON.parse(JSON.stringify(value, (_, v) => typeof v == "number" ? Math.fround(v) : v));
    assert.deepEqual(rounded(withoutZones(got)), rounded(withoutZones(want)), `${file}: ${go}`);
    read++;
  }
  assert.ok(read >= 130, `${read} values`);
});

/** Times to the millisecond, in UTC. */
const withoutZones = (value) => JSON.parse(JSON.stringify(value), (_, v) =>
  typeof v == "string" && /^\d{4}-\d\d-\d\dT/.test(v) ? new Date(v).toISOString() : v);

test("integers of 64 bits are exact, or what the application asked for", () => {
  const wide = (n) => plain.encode(BigInt(n));
  for (const [n, auto] of [[1, 1], [2n ** 53n - 1n, 2 ** 53 - 1], [2n ** 53n + 1n, 2n ** 53n + 1n], [2n ** 64n - 1n, 2n ** 64n - 1n], [-(2n ** 63n), -(2n ** 63n)]]) {
    assert.equal(wide(n).length, 9);
    assert.equal(plain.decode(wide(n)), auto);
    assert.equal(msgpack({ int64: "bigint" }).decode(wide(n)), BigInt(n));
    assert.equal(msgpack({ int64: "number" }).decode(wide(n)), Number(n));
  }
  assert.equal(msgpack({ int64: "bigint" }).decode(plain.encode(7)), 7, "a short one is a number");
  assert.throws(() => wide(2n ** 64n), RangeError);
});

const randomValue = (random, depth = 0) => {
  const kinds = [
    () => null, () => true, () => false, () => random.text(40), () => random.bytes(300),
    () => random.below(2 ** 31) * random.one([1, -1, 2 ** 20, -(2 ** 20), 0]), () => Math.fround(random.below(1e6) / 7),
    () => random.below(2 ** 31) / 3, () => new Date(random.below(2 ** 31) * random.one([1, 1000, 100000, -1000])),
    () => (1n << 63n) + BigInt(random.below(1000)), () => new Ext(random.below(100), random.bytes(20)),
  ];
  if (depth < 4) {
    kinds.push(
      () => Array.from({ length: random.below(random.one([3, 20])) }, () => randomValue(random, depth + 1)),
      () => Object.fromEntries(Array.from({ length: random.below(20) }, () => [random.text(9), randomValue(random, depth + 1)])),
    );
  }
  return random.one(kinds)();
};

test("random values come back as they were", () => {
  seeds(500, (random) => {
    const value = randomValue(random);
    assert.deepEqual(plain.decode(plain.encode(value)), Object.is(value, -0) ? 0 : value);
  });
});

test("long texts, lists, maps and bytes come back", () => {
  for (const length of [0, 15, 16, 31, 32, 255, 256, 65535, 65536]) {
    const value = {
      text: "x".repeat(length), bytes: new Uint8Array(length), list: new Array(length).fill(1),
      map: Object.fromEntries(Array.from({ length }, (_, n) => [`${n}k`, n])), ext: new Ext(5, new Uint8Array(length)),
    };
    assert.deepEqual(plain.decode(plain.encode(value)), value);
  }
});

test("whatever the bytes are, they are a value or an error", () => {
  seeds(3000, (random) => {
    const bytes = random.below(2) ? random.bytes(60) : plain.encode(randomValue(random));
    if (bytes.length) bytes[random.below(bytes.length)] = random.below(256);
    try {
      plain.decode(bytes);
    } catch (error) {
      assert.ok(error instanceof RangeError || error instanceof TypeError, String(error));
    }
  });
});

test("a length alone takes no memory, and depth no stack", () => {
  for (const head of ["dd", "df", "c6", "db", "c9"]) {
    assert.throws(() => plain.decode(Buffer.from(head + "ffffffff00", "hex")));
  }
  assert.throws(() => plain.decode(new Uint8Array(100_000).fill(0x91)), RangeError);
  const self = [];
  self.push(self);
  assert.throws(() => plain.encode(self), RangeError);
  assert.throws(() => plain.decode(Buffer.from("0102", "hex")), /left over/);
});

test("a field called __proto__ is a field", () => {
  for (const codec of [plain, json()]) {
    const value = codec.decode(codec.encode(JSON.parse('{"__proto__":{"polluted":1}}')));
    assert.deepEqual(Object.keys(value), ["__proto__"]);
    assert.equal({}.polluted, undefined);
    assert.equal(value.polluted, undefined);
  }
});

test("names can be Go's on the wire", () => {
  for (const of of [msgpack, json]) {
    const [bare, pascal] = [of(), named(of())];
    const here = { userName: "ann", items: [{ itemId: 1 }] };
    const wire = { UserName: "ann", Items: [{ ItemId: 1 }] };
    assert.deepEqual(bare.decode(pascal.encode(here)), wire);
    assert.deepEqual(pascal.decode(bare.encode(wire)), here);
  }
  const map = new Map([["userName", { itemId: 1 }]]);
  assert.deepEqual(plain.decode(named(msgpack()).encode(map)), { userName: { ItemId: 1 } });
});

test("times are dates, or what they were on the wire", () => {
  const date = new Date("2024-02-29T12:34:56.789Z");
  assert.deepEqual(plain.decode(plain.encode(date)), date);
  const kept = msgpack({ dates: false }).decode(plain.encode(date));
  assert.equal(kept.type, -1);
  assert.deepEqual(plain.encode(kept), plain.encode(date));
  assert.throws(() => plain.encode(new Date(NaN)), TypeError);
});

test("what has no form is refused, and a field without a value is none", () => {
  assert.throws(() => plain.encode(() => {}), TypeError);
  assert.throws(() => plain.encode([Symbol("s")]), TypeError);
  assert.deepEqual(plain.decode(plain.encode({ a: undefined, f: () => {}, b: null })), { b: null });
  assert.throws(() => raw().encode({}), TypeError);
  assert.deepEqual(raw().encode("ß"), new Uint8Array([0xc3, 0x9f]));
  assert.equal(plain.decode(new Uint8Array(0)), undefined);
});

test("JSON has bytes and times as Go has them", () => {
  const value = { b: new Uint8Array([0, 1, 254]), n: Buffer.from("hi"), m: new Map([["k", 1]]) };
  assert.deepEqual(json().decode(json().encode(value)), { b: "AAH+", n: "aGk=", m: { k: 1 } });
});
