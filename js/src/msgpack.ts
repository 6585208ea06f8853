/** MessagePack, as much of it as a client of rpcx meets. */

import type { Codec } from "./codec.js";
import { MSGPACK_TYPE, text, utf8, viewOf } from "./frame.js";

/** A value of an extension type that we do not know. */
export class Ext {
  constructor(readonly type: number, readonly data: Uint8Array) {}
}

export interface MsgpackOptions {
  /**
   * What integers become that have 64 bits on the wire; Go sends every `int64` and `uint64` so, even 1.
   * - `"auto"` (default): a number if it is exact (up to 2^53), else a `bigint`;
   * - `"bigint"`: always a `bigint`;
   * - `"number"`: always a number, rounded beyond 2^53.
   */
  int64?: "auto" | "bigint" | "number";
  /** False: times come as {@link Ext} of type -1, with their nanoseconds. Default true: as `Date`, to the millisecond. */
  dates?: boolean;
}

/** Values within values. More are refused in both directions: they would only be there to exhaust the stack. */
const DEPTH_MAX = 100;

/** Where numbers become bytes: they are its last ones. */
const scratch = /* @__PURE__ */ new DataView(/* @__PURE__ */ new ArrayBuffer(8));

function encode(value: unknown): Uint8Array {
  let bytes = new Uint8Array(256);
  let at = 0;

  const append = (more: ArrayLike<number>) => {
    const end = at + more.length;
    if (end > bytes.length) {
      const grown = new Uint8Array(2 * end);
      grown.set(bytes);
      bytes = grown;
    }
    bytes.set(more, at);
    at = end;
  };

  /** A head, and so many of the bytes of a number. */
  const tail = (head: number, size: number) => {
    append([head]);
    append(new Uint8Array(scratch.buffer, 8 - size));
  };

  /** A head, then 1, 2, 4 or 8 bytes for powers from 0 to 3; of a negative number its two's complement. */
  const number = (head: number, power: number, n: number | bigint) => {
    scratch.setBigInt64(0, BigInt(n));
    tail(head + power, 1 << power);
  };

  const powerOf = (n: number): number => (n < 256 ? 0 : n < 65536 ? 1 : n < 4294967296 ? 2 : 3);

  /** A head whose form depends on a length: for lengths below `below` it has that itself. Lists and maps have no form of one
   * byte. */
  const length = (length: number, head: number, below = 0, small = 0) => {
    if (length < below) append([small | length]);
    else number(head, Math.max(powerOf(length), Number(below == 16)), length);
  };

  const ext = (type: number, data: Uint8Array) => {
    length(data.length, 0xc7);
    append([type]);
    append(data);
  };

  const object = (value: object, depth: number) => {
    if (Array.isArray(value)) {
      length(value.length, 0xdb, 16, 0x90);
      for (const item of value) put(item, depth);
    } else if (value instanceof Uint8Array) {
      length(value.length, 0xc4);
      append(value);
    } else if (value instanceof Date) {
      const seconds = Math.floor(+value / 1000);
      if (isNaN(seconds)) throw new TypeError("no date");
      // The form of 12 bytes has room for all.
      const data = new Uint8Array(12);
      viewOf(data).setUint32(0, (+value - seconds * 1000) * 1e6);
      viewOf(data).setBigInt64(4, BigInt(seconds));
      ext(-1, data);
    } else if (value instanceof Ext) {
      ext(value.type, value.data);
    } else {
      // As in JSON, a field without a value is no field.
      const entries = value instanceof Map ? [...value] : Object.entries(value).filter(([, field]) => field !== undefined && typeof field != "function");
      length(entries.length, 0xdd, 16, 0x80);
      for (const [key, field] of entries) {
        put(key, depth);
        put(field, depth);
      }
    }
  };

  const put = (value: unknown, depth: number): void => {
    if (depth > DEPTH_MAX) throw new RangeError("too deep");
    if (value == null) {
      append([0xc0]);
    } else if (typeof value == "boolean") {
      append([value ? 0xc3 : 0xc2]);
    } else if (typeof value == "string") {
      const bytes = utf8(value);
      length(bytes.length, 0xd9, 32, 0xa0);
      append(bytes);
    } else if (Number.isSafeInteger(value) && !Object.is(value, -0)) {
      const n = value as number;
      // A negative number takes as many bytes as what it has beside its sign, doubled.
      if (n >= -32 && n < 128) append([n]);
      else if (n < 0) number(0xd0, powerOf(-2 * n - 1), n);
      else number(0xcc, powerOf(n), n);
    } else if (typeof value == "number") {
      // In four bytes where that is exact: a `float32` of Go takes no more, and a `float64` takes both.
      scratch.setFloat32(4, value);
      if (Object.is(scratch.getFloat32(4), value)) return tail(0xca, 4);
      scratch.setFloat64(0, value);
      tail(0xcb, 8);
    } else if (typeof value == "bigint") {
      if (value >> 64n && value >> 63n != -1n) throw new RangeError("more than 64 bits");
      number(value < 0 ? 0xd0 : 0xcc, 3, value);
    } else if (typeof value == "object") {
      object(value, depth + 1);
    } else {
      throw new TypeError(`no form of a ${typeof value}`);
    }
  };

  put(value, 0);
  return bytes.subarray(0, at);
}

function decode(bytes: Uint8Array, { int64, dates }: MsgpackOptions): unknown {
  const view = viewOf(bytes);
  let at = 0;

  /** Where so many bytes begin that are read with this. */
  const skip = (length: number): number => {
    at += length;
    if (at > bytes.length) throw new RangeError("bytes are missing");
    return at - length;
  };

  const block = (length: number): Uint8Array => bytes.subarray(skip(length), at);

  /** An unsigned number of 1, 2 or 4 bytes, for powers from 0 to 2. */
  const uint = (power: number): number => block(1 << power).reduce((sum, byte) => sum * 256 + byte, 0);

  /** An integer of 1, 2, 4 or 8 bytes. */
  const integer = (power: number, isSigned: boolean): number | bigint => {
    if (power < 3) {
      const [value, rest] = [uint(power), 32 - (8 << power)];
      return isSigned ? (value << rest) >> rest : value;
    }
    const value = view[isSigned ? "getBigInt64" : "getBigUint64"](skip(8));
    const number = Number(value);
    return int64 == "bigint" || (int64 != "number" && !Number.isSafeInteger(number)) ? value : number;
  };

  const list = (length: number, depth: number): unknown[] => {
    const list: unknown[] = [];
    // Each value has a byte at least: a length alone takes no memory.
    for (; length; length--) list.push(take(depth));
    return list;
  };

  const map = (length: number, depth: number): object => {
    const entries: [string, unknown][] = [];
    for (; length; length--) {
      const key = take(depth);
      if (typeof key == "object" && key) throw new TypeError("no scalar as a key");
      entries.push([`${key}`, take(depth)]);
    }
    // One called `__proto__` is a field like any other.
    return Object.fromEntries(entries);
  };

  const ext = (length: number): unknown => {
    const type = (uint(0) << 24) >> 24;
    // Copied: the frame that it is a part of may be much larger.
    const data = block(length).slice();
    if (type != -1 || dates === false || !/^(4|8|12)$/.test(`${length}`)) return new Ext(type, data);
    const view = viewOf(data);
    const first = view.getUint32(0);
    const [seconds, nanos] =
      length < 8 ? [first, 0]
      : length > 8 ? [Number(view.getBigInt64(4)), first]
      : [(first & 3) * 2 ** 32 + view.getUint32(4), first >>> 2];
    return new Date(seconds * 1000 + Math.floor(nanos / 1e6));
  };

  const take = (depth: number): unknown => {
    if (depth++ > DEPTH_MAX) throw new RangeError("too deep");
    const head = uint(0);
    if (head < 0x80) return head;
    if (head < 0x90) return map(head & 15, depth);
    if (head < 0xa0) return list(head & 15, depth);
    if (head < 0xc0) return text(block(head & 31));
    if (head > 0xdf) return head - 256;
    if (head == 0xc1) throw new TypeError("no value");
    if (head < 0xc4) return [null, 0, false, true][head & 3];
    if (head < 0xc7) return block(uint(head - 0xc4)).slice();
    if (head < 0xca) return ext(uint(head - 0xc7));
    if (head == 0xca) return view.getFloat32(skip(4));
    if (head == 0xcb) return view.getFloat64(skip(8));
    if (head < 0xd4) return integer(head & 3, head > 0xcf);
    if (head < 0xd9) return ext(1 << (head - 0xd4));
    if (head < 0xdc) return text(block(uint(head - 0xd9)));
    if (head < 0xde) return list(uint(head - 0xdb), depth);
    return map(uint(head - 0xdd), depth);
  };

  const value = take(0);
  if (at != bytes.length) throw new RangeError("bytes are left over");
  return value;
}

/**
 * MessagePack. Integers take the shortest form, a `bigint` eight bytes; `undefined` is nil, and as a field it is left
 * out. Go's `time.Time` is a `Date`.
 */
export const msgpack = (options: MsgpackOptions = {}): Codec => ({
  type: MSGPACK_TYPE,
  encode,
  // An empty payload is no value: the reply of a function that returns nothing.
  decode: (bytes) => (bytes.length ? decode(bytes, options) : undefined),
});
