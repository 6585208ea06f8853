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

/** Where numbers become bytes. */
const scratch = /* @__PURE__ */ new DataView(/* @__PURE__ */ new ArrayBuffer(12));

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

  /** A head, and the last bytes of the first so many of those. */
  const tail = (head: number, size: number, end: number) => {
    append([head]);
    append(new Uint8Array(scratch.buffer, end - size, size));
  };

  /** A head, then a number of 1, 2, 4 or 8 bytes; of a negative one its two's complement. */
  const number = (head: number, size: number, value: number | bigint) => {
    if (size < 8) scratch.setUint32(4, Number(value));
    else scratch.setBigUint64(0, BigInt.asUintN(64, BigInt(value)));
    tail(head, size, 8);
  };

  /** A head whose form depends on a length: for lengths below `below` it has that itself, where `h8` is 0 there is no form
   * of one byte. */
  const length = (length: number, small: number, below: number, h8: number, h16: number) => {
    if (length < below) append([small | length]);
    else if (h8 && length < 256) number(h8, 1, length);
    else if (length < 65536) number(h16, 2, length);
    else number(h16 + 1, 4, length);
  };

  const integer = (n: number) => {
    if (n >= -32 && n < 128) return append([n & 255]);
    // A negative number takes as many bytes as what it has beside its sign, doubled.
    const span = n < 0 ? -2 * n - 1 : n;
    const power = span < 256 ? 0 : span < 65536 ? 1 : span < 4294967296 ? 2 : 3;
    number((n < 0 ? 0xd0 : 0xcc) + power, 1 << power, n);
  };

  /** In four bytes where that is exact: a `float32` of Go takes no more, and a `float64` takes both. */
  const float = (n: number) => {
    scratch.setFloat32(0, n);
    if (Object.is(scratch.getFloat32(0), n)) return tail(0xca, 4, 4);
    scratch.setFloat64(0, n);
    tail(0xcb, 8, 8);
  };

  const ext = (type: number, data: Uint8Array) => {
    length(data.length, 0, 0, 0xc7, 0xc8);
    append([type & 255]);
    append(data);
  };

  const date = (date: Date) => {
    const millis = date.getTime();
    if (isNaN(millis)) throw new TypeError("an invalid date has no form in MessagePack");
    const seconds = Math.floor(millis / 1000);
    scratch.setUint32(0, (millis - seconds * 1000) * 1e6);
    scratch.setBigInt64(4, BigInt(seconds));
    // The form of 12 bytes has room for all. Copied, as the head of the value needs the room.
    ext(-1, new Uint8Array(scratch.buffer).slice());
  };

  const object = (value: object, depth: number) => {
    if (Array.isArray(value)) {
      length(value.length, 0x90, 16, 0, 0xdc);
      for (const item of value) put(item, depth);
    } else if (value instanceof Uint8Array) {
      length(value.length, 0, 0, 0xc4, 0xc5);
      append(value);
    } else if (value instanceof Date) {
      date(value);
    } else if (value instanceof Ext) {
      ext(value.type, value.data);
    } else {
      // As in JSON, a field without a value is no field.
      const entries = value instanceof Map ? [...value] : Object.entries(value).filter(([, field]) => field !== undefined && typeof field != "function");
      length(entries.length, 0x80, 16, 0, 0xde);
      for (const [key, field] of entries) {
        put(key, depth);
        put(field, depth);
      }
    }
  };

  const put = (value: unknown, depth: number): void => {
    if (depth > DEPTH_MAX) throw new RangeError("values are nested too deeply");
    if (value == null) {
      append([0xc0]);
    } else if (typeof value == "boolean") {
      append([value ? 0xc3 : 0xc2]);
    } else if (typeof value == "string") {
      const bytes = utf8(value);
      length(bytes.length, 0xa0, 32, 0xd9, 0xda);
      append(bytes);
    } else if (typeof value == "number") {
      if (Number.isSafeInteger(value) && !Object.is(value, -0)) integer(value);
      else float(value);
    } else if (typeof value == "bigint") {
      if (value >> 64n && value >> 63n != -1n) throw new RangeError("an integer has more than 64 bits");
      number(value < 0 ? 0xd3 : 0xcf, 8, value);
    } else if (typeof value == "object") {
      object(value, depth + 1);
    } else {
      throw new TypeError(`a ${typeof value} has no form in MessagePack`);
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

  /** An unsigned number of at most 4 bytes. */
  const uint = (size: number): number => block(size).reduce((sum, byte) => sum * 256 + byte, 0);

  /** An integer by its head: of 1, 2, 4 or 8 bytes, and with a sign from 0xd0 on. */
  const integer = (head: number): number | bigint => {
    const bits = 8 << (head & 3);
    const isSigned = head > 0xcf;
    if (bits < 64) {
      const value = uint(bits / 8);
      return isSigned ? (value << (32 - bits)) >> (32 - bits) : value;
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
      if (typeof key == "object" && key) throw new TypeError("a key of a map is no scalar");
      entries.push([`${key}`, take(depth)]);
    }
    // One called `__proto__` is a field like any other.
    return Object.fromEntries(entries);
  };

  const ext = (length: number): unknown => {
    const type = (uint(1) << 24) >> 24;
    // Copied: the frame that it is a part of may be much larger.
    const data = block(length).slice();
    const view = viewOf(data);
    if (type != -1 || dates === false || !/^(4|8|12)$/.test(`${length}`)) return new Ext(type, data);
    const seconds =
      length == 4 ? view.getUint32(0)
      : length == 8 ? BigInt.asUintN(34, view.getBigUint64(0))
      : view.getBigInt64(4);
    const nanos = length == 4 ? 0 : length == 8 ? view.getUint32(0) >>> 2 : view.getUint32(0);
    return new Date(Number(seconds) * 1000 + Math.floor(nanos / 1e6));
  };

  const take = (depth: number): unknown => {
    if (depth++ > DEPTH_MAX) throw new RangeError("values are nested too deeply");
    const head = uint(1);
    if (head < 0x80) return head;
    if (head < 0x90) return map(head & 15, depth);
    if (head < 0xa0) return list(head & 15, depth);
    if (head < 0xc0) return text(block(head & 31));
    if (head > 0xdf) return head - 256;
    if (head == 0xc1) throw new TypeError("193 begins no value");
    if (head < 0xc4) return [null, 0, false, true][head & 3];
    if (head < 0xc7) return block(uint(1 << (head - 0xc4))).slice();
    if (head < 0xca) return ext(uint(1 << (head - 0xc7)));
    if (head == 0xca) return view.getFloat32(skip(4));
    if (head == 0xcb) return view.getFloat64(skip(8));
    if (head < 0xd4) return integer(head);
    if (head < 0xd9) return ext(1 << (head - 0xd4));
    if (head < 0xdc) return text(block(uint(1 << (head - 0xd9))));
    if (head < 0xde) return list(uint(2 << (head - 0xdc)), depth);
    return map(uint(2 << (head - 0xde)), depth);
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
