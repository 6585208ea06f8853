/** MessagePack, as much of it as a client of rpcx meets. */

import { fromWire, toWire, type Codec, type NameOptions } from "./codec.js";
import { MSGPACK_TYPE, text, utf8, viewOf } from "./frame.js";

/** A value of an extension type that we do not know. */
export class Ext {
  constructor(readonly type: number, readonly data: Uint8Array) {}
}

export interface MsgpackOptions extends NameOptions {
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
const scratch = new DataView(new ArrayBuffer(12));

class Writer {
  bytes_ = new Uint8Array(256);
  at_ = 0;

  constructor(private pascal_: boolean) {}

  private append_(bytes: ArrayLike<number>) {
    const end = this.at_ + bytes.length;
    if (end > this.bytes_.length) {
      const grown = new Uint8Array(2 * end);
      grown.set(this.bytes_);
      this.bytes_ = grown;
    }
    this.bytes_.set(bytes, this.at_);
    this.at_ = end;
  }

  /** A head, and the last bytes of these. */
  private tail_(head: number, size: number, end: number) {
    this.append_([head]);
    this.append_(new Uint8Array(scratch.buffer, end - size, size));
  }

  /** A head, then a number of 1, 2, 4 or 8 bytes; of a negative one its two's complement. */
  private head_(head: number, size: number, value: number | bigint) {
    if (size < 8) scratch.setUint32(4, Number(value));
    else scratch.setBigUint64(0, BigInt.asUintN(64, BigInt(value)));
    this.tail_(head, size, 8);
  }

  /** A head whose form depends on a length: for lengths below `below` it has that itself, where `h8` is 0 there is no form
   * of one byte. */
  private length_(length: number, small: number, below: number, h8: number, h16: number) {
    if (length < below) this.append_([small | length]);
    else if (h8 && length < 256) this.head_(h8, 1, length);
    else if (length < 65536) this.head_(h16, 2, length);
    else this.head_(h16 + 1, 4, length);
  }

  private int_(n: number) {
    if (n >= -32 && n < 128) return this.append_([n & 255]);
    // A negative number takes as many bytes as what it has beside its sign, doubled.
    const span = n < 0 ? -2 * n - 1 : n;
    const power = span < 256 ? 0 : span < 65536 ? 1 : span < 4294967296 ? 2 : 3;
    this.head_((n < 0 ? 0xd0 : 0xcc) + power, 1 << power, n);
  }

  /** In four bytes where that is exact: a `float32` of Go takes no more, and a `float64` takes both. */
  private float_(n: number) {
    scratch.setFloat32(0, n);
    if (Object.is(scratch.getFloat32(0), n)) return this.tail_(0xca, 4, 4);
    scratch.setFloat64(0, n);
    this.tail_(0xcb, 8, 8);
  }

  private ext_(type: number, data: Uint8Array) {
    const fixed = [1, 2, 4, 8, 16].indexOf(data.length);
    if (fixed < 0) this.length_(data.length, 0, 0, 0xc7, 0xc8);
    else this.append_([0xd4 + fixed]);
    this.append_([type & 255]);
    this.append_(data);
  }

  private date_(date: Date) {
    const millis = date.getTime();
    if (isNaN(millis)) throw new TypeError("an invalid date has no form in MessagePack");
    const seconds = Math.floor(millis / 1000);
    const nanos = (millis - seconds * 1000) * 1e6;
    // The short form is for whole seconds of 32 bits, that of eight bytes for seconds of 34 bits.
    const size = seconds < 0 || seconds >= 2 ** 34 ? 12 : nanos || seconds >= 2 ** 32 ? 8 : 4;
    scratch.setUint32(0, nanos);
    scratch.setBigInt64(4, size == 8 ? (BigInt(nanos) << 34n) | BigInt(seconds) : BigInt(seconds));
    // Copied, as the head of the value needs the room.
    this.ext_(-1, new Uint8Array(scratch.buffer, 12 - size).slice());
  }

  private entries_(entries: [unknown, unknown][], depth: number) {
    this.length_(entries.length, 0x80, 16, 0, 0xde);
    for (const part of entries.flat()) this.value_(part, depth);
  }

  value_(value: unknown, depth = 0): void {
    if (depth > DEPTH_MAX) throw new RangeError("values are nested too deeply");
    switch (typeof value) {
      case "undefined":
        return this.append_([0xc0]);
      case "boolean":
        return this.append_([value ? 0xc3 : 0xc2]);
      case "string": {
        const bytes = utf8(value);
        this.length_(bytes.length, 0xa0, 32, 0xd9, 0xda);
        return this.append_(bytes);
      }
      case "number":
        return Number.isSafeInteger(value) && !Object.is(value, -0) ? this.int_(value) : this.float_(value);
      case "bigint":
        if (value >> 64n && value >> 63n != -1n) throw new RangeError("an integer has more than 64 bits");
        return this.head_(value < 0 ? 0xd3 : 0xcf, 8, value);
      case "object":
        return this.object_(value, depth + 1);
    }
    throw new TypeError(`a ${typeof value} has no form in MessagePack`);
  }

  private object_(value: object | null, depth: number): void {
    if (value === null) return this.append_([0xc0]);
    if (Array.isArray(value)) {
      this.length_(value.length, 0x90, 16, 0, 0xdc);
      return value.forEach((item) => this.value_(item, depth));
    }
    if (value instanceof Uint8Array) {
      this.length_(value.length, 0, 0, 0xc4, 0xc5);
      return this.append_(value);
    }
    if (value instanceof Date) return this.date_(value);
    if (value instanceof Ext) return this.ext_(value.type, value.data);
    if (value instanceof Map) return this.entries_([...value], depth);
    // As in JSON, a field without a value is no field.
    const fields = Object.entries(value).filter(([, field]) => field !== undefined && typeof field != "function");
    this.entries_(fields.map(([name, field]) => [this.pascal_ ? toWire(name) : name, field]), depth);
  }
}

class Reader {
  private view_: DataView;
  at_ = 0;

  constructor(private bytes_: Uint8Array, private options_: MsgpackOptions) {
    this.view_ = viewOf(bytes_);
  }

  /** Where so many bytes begin that are read with this. */
  private skip_(length: number): number {
    if (length > this.bytes_.length - this.at_) throw new RangeError("bytes are missing");
    this.at_ += length;
    return this.at_ - length;
  }

  private block_(length: number): Uint8Array {
    const from = this.skip_(length);
    return this.bytes_.subarray(from, this.at_);
  }

  private int64_(value: bigint): number | bigint {
    const mode = this.options_.int64;
    const number = Number(value);
    return mode == "bigint" || (mode != "number" && !Number.isSafeInteger(number)) ? value : number;
  }

  /** An unsigned number of at most 4 bytes. */
  private uint_(size: number): number {
    return this.block_(size).reduce((sum, byte) => sum * 256 + byte, 0);
  }

  /** An integer by its head: of 1, 2, 4 or 8 bytes, and with a sign from 0xd0 on. */
  private int_(head: number): number | bigint {
    const bits = 8 << (head & 3);
    const isSigned = head > 0xcf;
    if (bits == 64) {
      const value = this.view_.getBigUint64(this.skip_(8));
      return this.int64_(isSigned ? BigInt.asIntN(64, value) : value);
    }
    const value = this.uint_(bits / 8);
    return isSigned ? (value << (32 - bits)) >> (32 - bits) : value;
  }

  private list_(length: number, depth: number): unknown[] {
    const list: unknown[] = [];
    // Each value has a byte at least: a length alone takes no memory.
    for (; length; length--) list.push(this.value_(depth));
    return list;
  }

  private map_(length: number, depth: number): Record<string, unknown> {
    const entries: [string, unknown][] = [];
    for (; length; length--) {
      const key = this.value_(depth);
      if (typeof key == "object" && key) throw new TypeError("a key of a map is no scalar");
      entries.push([this.options_.rename ? fromWire(`${key}`) : `${key}`, this.value_(depth)]);
    }
    // One called `__proto__` is a field like any other.
    return Object.fromEntries(entries);
  }

  private ext_(length: number): unknown {
    const type = (this.uint_(1) << 24) >> 24;
    // Copied: the frame that it is a part of may be much larger.
    const data = this.block_(length).slice();
    const view = viewOf(data);
    let seconds: bigint | number;
    let nanos = 0;
    if (type != -1 || this.options_.dates === false) return new Ext(type, data);
    if (length == 4) {
      seconds = view.getUint32(0);
    } else if (length == 8) {
      seconds = BigInt.asUintN(34, view.getBigUint64(0));
      nanos = view.getUint32(0) >>> 2;
    } else if (length == 12) {
      seconds = view.getBigInt64(4);
      nanos = view.getUint32(0);
    } else {
      return new Ext(type, data);
    }
    return new Date(Number(seconds) * 1000 + Math.floor(nanos / 1e6));
  }

  value_(depth = 0): unknown {
    if (depth++ > DEPTH_MAX) throw new RangeError("values are nested too deeply");
    const head = this.uint_(1);
    if (head < 0x80) return head;
    if (head < 0x90) return this.map_(head & 15, depth);
    if (head < 0xa0) return this.list_(head & 15, depth);
    if (head < 0xc0) return text(this.block_(head & 31));
    if (head > 0xdf) return head - 256;
    if (head == 0xc1) throw new TypeError(`${head} begins no value`);
    if (head < 0xc4) return [null, 0, false, true][head & 3];
    if (head < 0xc7) return this.block_(this.uint_(1 << (head - 0xc4))).slice();
    if (head < 0xca) return this.ext_(this.uint_(1 << (head - 0xc7)));
    if (head == 0xca) return this.view_.getFloat32(this.skip_(4));
    if (head == 0xcb) return this.view_.getFloat64(this.skip_(8));
    if (head < 0xd4) return this.int_(head);
    if (head < 0xd9) return this.ext_(1 << (head - 0xd4));
    if (head < 0xdc) return text(this.block_(this.uint_(1 << (head - 0xd9))));
    if (head < 0xde) return this.list_(this.uint_(2 << (head - 0xdc)), depth);
    return this.map_(this.uint_(2 << (head - 0xde)), depth);
  }
}

/**
 * MessagePack. Integers take the shortest form, a `bigint` eight bytes; `undefined` is nil, and as a field it is left
 * out. Go's `time.Time` is a `Date`.
 */
export const msgpack = (options: MsgpackOptions = {}): Codec => ({
  type: MSGPACK_TYPE,
  encode(value) {
    const writer = new Writer(options.rename == "pascal");
    writer.value_(value);
    return writer.bytes_.subarray(0, writer.at_);
  },
  decode(bytes) {
    // An empty payload is no value: the reply of a function that returns nothing.
    if (!bytes.length) return undefined;
    const reader = new Reader(bytes, options);
    const value = reader.value_();
    if (reader.at_ != bytes.length) throw new RangeError("bytes are left over");
    return value;
  },
});
