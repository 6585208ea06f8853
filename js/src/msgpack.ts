/** MessagePack, as much of it as a client of rpcx meets. */

import { fromWire, put, toWire, type Codec, type NameOptions } from "./codec.js";
import { MSGPACK_TYPE, text, utf8 } from "./frame.js";

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

class Writer {
  bytes_ = new Uint8Array(256);
  view_ = new DataView(this.bytes_.buffer);
  at_ = 0;

  constructor(private pascal_: boolean) {}

  private room_(more: number): number {
    const at = this.at_;
    if (at + more > this.bytes_.length) {
      const grown = new Uint8Array(Math.max(2 * this.bytes_.length, at + more));
      grown.set(this.bytes_);
      this.bytes_ = grown;
      this.view_ = new DataView(grown.buffer);
    }
    this.at_ += more;
    return at;
  }

  private byte_(byte: number) {
    // The room first: it may change the bytes.
    const at = this.room_(1);
    this.bytes_[at] = byte;
  }

  /** A head, then a number of 1, 2, 4 or 8 bytes; of a negative one its two's complement. */
  private head_(head: number, size: number, value: number | bigint) {
    this.byte_(head);
    const at = this.room_(size);
    if (size == 1) this.bytes_[at] = Number(value);
    else if (size == 2) this.view_.setUint16(at, Number(value));
    else if (size == 4) this.view_.setUint32(at, Number(value));
    else this.view_.setBigUint64(at, BigInt.asUintN(64, BigInt(value)));
  }

  /** A head whose form depends on a length; `small` is that of lengths below `below`, `h8` is 0 where there is none. */
  private length_(length: number, small: number, below: number, h8: number, h16: number) {
    if (length < below) this.byte_(small | length);
    else if (h8 && length < 256) this.head_(h8, 1, length);
    else if (length < 65536) this.head_(h16, 2, length);
    else this.head_(h16 + 1, 4, length);
  }

  private block_(bytes: Uint8Array) {
    const at = this.room_(bytes.length);
    this.bytes_.set(bytes, at);
  }

  private int_(n: number) {
    if (n >= -32 && n < 128) return this.byte_(n & 255);
    // A negative number takes as many bytes as what it has beside its sign, doubled.
    const span = n < 0 ? -2 * n - 1 : n;
    const power = span < 256 ? 0 : span < 65536 ? 1 : span < 4294967296 ? 2 : 3;
    this.head_((n < 0 ? 0xd0 : 0xcc) + power, 1 << power, n);
  }

  /** In four bytes where that is exact: a `float32` of Go takes no more, and a `float64` takes both. */
  private float_(n: number) {
    const isShort = Math.fround(n) === n;
    this.byte_(isShort ? 0xca : 0xcb);
    const at = this.room_(isShort ? 4 : 8);
    if (isShort) this.view_.setFloat32(at, n);
    else this.view_.setFloat64(at, n);
  }

  private ext_(type: number, data: Uint8Array) {
    const fixed = [1, 2, 4, 8, 16].indexOf(data.length);
    if (fixed >= 0) this.byte_(0xd4 + fixed);
    else this.length_(data.length, 0, 0, 0xc7, 0xc8);
    this.byte_(type & 255);
    this.block_(data);
  }

  private date_(date: Date) {
    const millis = date.getTime();
    if (Number.isNaN(millis)) throw new TypeError("an invalid date has no form in MessagePack");
    const seconds = Math.floor(millis / 1000);
    const nanos = (millis - seconds * 1000) * 1e6;
    const data = new DataView(new ArrayBuffer(12));
    data.setUint32(0, nanos);
    data.setBigInt64(4, BigInt(seconds));
    // The short form is for whole seconds of 32 bits, that of eight bytes for seconds of 34 bits.
    if (seconds >= 0 && seconds < 2 ** 34) {
      if (!nanos && seconds < 2 ** 32) return this.ext_(-1, new Uint8Array(data.buffer, 8));
      data.setBigUint64(4, (BigInt(nanos) << 34n) | BigInt(seconds));
      return this.ext_(-1, new Uint8Array(data.buffer, 4));
    }
    this.ext_(-1, new Uint8Array(data.buffer));
  }

  private entries_(entries: [unknown, unknown][], depth: number, pascal: boolean) {
    this.length_(entries.length, 0x80, 16, 0, 0xde);
    for (const [key, value] of entries) {
      this.value_(pascal ? toWire(key as string) : key, depth);
      this.value_(value, depth);
    }
  }

  value_(value: unknown, depth = 0): void {
    if (depth > DEPTH_MAX) throw new RangeError("values are nested too deeply");
    switch (typeof value) {
      case "undefined":
        return this.byte_(0xc0);
      case "boolean":
        return this.byte_(value ? 0xc3 : 0xc2);
      case "string": {
        const bytes = utf8(value);
        this.length_(bytes.length, 0xa0, 32, 0xd9, 0xda);
        return this.block_(bytes);
      }
      case "number":
        if (Number.isSafeInteger(value) && !Object.is(value, -0)) return this.int_(value);
        return this.float_(value);
      case "bigint":
        if (value >= 2n ** 64n || value < -(2n ** 63n)) throw new RangeError("an integer has more than 64 bits");
        return this.head_(value < 0 ? 0xd3 : 0xcf, 8, value);
      case "object":
        return this.object_(value, depth + 1);
    }
    throw new TypeError(`a ${typeof value} has no form in MessagePack`);
  }

  private object_(value: object | null, depth: number): void {
    if (value === null) return this.byte_(0xc0);
    if (Array.isArray(value)) {
      this.length_(value.length, 0x90, 16, 0, 0xdc);
      return value.forEach((item) => this.value_(item, depth));
    }
    if (value instanceof Uint8Array) {
      this.length_(value.length, 0, 0, 0xc4, 0xc5);
      return this.block_(value);
    }
    if (value instanceof Date) return this.date_(value);
    if (value instanceof Ext) return this.ext_(value.type, value.data);
    if (value instanceof Map) return this.entries_([...value], depth, false);
    // As in JSON, a field without a value is no field.
    const fields = Object.entries(value).filter(([, field]) => field !== undefined && typeof field != "function");
    this.entries_(fields, depth, this.pascal_);
  }
}

class Reader {
  private view_: DataView;
  at_ = 0;

  constructor(private bytes_: Uint8Array, private options_: MsgpackOptions) {
    this.view_ = new DataView(bytes_.buffer, bytes_.byteOffset, bytes_.byteLength);
  }

  private int64_(value: bigint): number | bigint {
    const mode = this.options_.int64;
    const number = Number(value);
    return mode == "bigint" || (mode != "number" && !Number.isSafeInteger(number)) ? value : number;
  }

  /** An unsigned number of 1, 2 or 4 bytes. A view throws where bytes are missing. */
  private uint_(size: number): number {
    const at = this.at_;
    this.at_ += size;
    return size == 1 ? this.view_.getUint8(at) : size == 2 ? this.view_.getUint16(at) : this.view_.getUint32(at);
  }

  private block_(length: number): Uint8Array {
    const from = this.at_;
    if (length > this.bytes_.length - from) throw new RangeError("bytes are missing");
    return this.bytes_.subarray(from, (this.at_ += length));
  }

  private text_(length: number): string {
    return text(this.block_(length));
  }

  private list_(length: number, depth: number): unknown[] {
    // Each value has a byte at least: a length alone takes no memory.
    if (length > this.bytes_.length - this.at_) throw new RangeError("bytes are missing");
    const list: unknown[] = [];
    for (; length; length--) list.push(this.value_(depth));
    return list;
  }

  private map_(length: number, depth: number): Record<string, unknown> {
    const map: Record<string, unknown> = {};
    for (; length; length--) {
      const key = this.value_(depth);
      if (typeof key == "object" && key !== null) throw new TypeError("a key of a map is no scalar");
      put(map, this.options_.rename ? fromWire(String(key)) : String(key), this.value_(depth));
    }
    return map;
  }

  private ext_(length: number): unknown {
    const type = (this.uint_(1) << 24) >> 24;
    // Copied: the frame that it is a part of may be much larger.
    const data = this.block_(length).slice();
    if (type != -1 || this.options_.dates === false) return new Ext(type, data);

    const view = new DataView(data.buffer);
    if (length == 4) return new Date(view.getUint32(0) * 1000);
    if (length == 8) {
      const both = view.getBigUint64(0);
      return new Date(Number(both & 0x3ffffffffn) * 1000 + Math.floor(Number(both >> 34n) / 1e6));
    }
    if (length == 12) return new Date(Number(view.getBigInt64(4)) * 1000 + Math.floor(view.getUint32(0) / 1e6));
    return new Ext(type, data);
  }

  value_(depth = 0): unknown {
    if (depth > DEPTH_MAX) throw new RangeError("values are nested too deeply");
    const head = this.uint_(1);
    depth++;
    if (head < 0x80) return head;
    if (head < 0x90) return this.map_(head & 15, depth);
    if (head < 0xa0) return this.list_(head & 15, depth);
    if (head < 0xc0) return this.text_(head & 31);
    if (head >= 0xe0) return head - 256;

    const { view_: view, at_: at } = this;
    switch (head) {
      case 0xc0: return null;
      case 0xc2: return false;
      case 0xc3: return true;
      case 0xc4: case 0xc5: case 0xc6: return this.block_(this.uint_(1 << (head - 0xc4))).slice();
      case 0xc7: case 0xc8: case 0xc9: return this.ext_(this.uint_(1 << (head - 0xc7)));
      case 0xca: this.at_ += 4; return view.getFloat32(at);
      case 0xcb: this.at_ += 8; return view.getFloat64(at);
      case 0xcc: case 0xcd: case 0xce: return this.uint_(1 << (head - 0xcc));
      case 0xcf: this.at_ += 8; return this.int64_(view.getBigUint64(at));
      case 0xd0: this.at_ += 1; return view.getInt8(at);
      case 0xd1: this.at_ += 2; return view.getInt16(at);
      case 0xd2: this.at_ += 4; return view.getInt32(at);
      case 0xd3: this.at_ += 8; return this.int64_(view.getBigInt64(at));
      case 0xd4: case 0xd5: case 0xd6: case 0xd7: case 0xd8: return this.ext_(1 << (head - 0xd4));
      case 0xd9: case 0xda: case 0xdb: return this.text_(this.uint_(1 << (head - 0xd9)));
      case 0xdc: case 0xdd: return this.list_(this.uint_(2 << (head - 0xdc)), depth);
      case 0xde: case 0xdf: return this.map_(this.uint_(2 << (head - 0xde)), depth);
    }
    throw new TypeError(`${head} begins no value`);
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
