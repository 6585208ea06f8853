/** The bytes of a frame: docs/protocol.md, "One frame". No other file knows a bit position or reads a length. */

import { BothwaysError } from "./error.js";

/** Pairs beside a payload. Without a prototype where it comes from a peer, so that no key is special. */
export type Meta = Record<string, string>;

export const RESPONSE = 0x80;
export const HEARTBEAT = 0x40;
export const ONEWAY = 0x20;
export const GZIP = 0x04;
const COMPRESS = 0x1c;
const STATUS = 0x03;

/** Serialize types. */
export const RAW = 0;
export const JSON_TYPE = 1;
export const MSGPACK_TYPE = 3;

/** Marks of a frame's number: a push, and with the other one a server's call. */
export const PUSH_BIT = 1n << 63n;
export const OTHER_BIT = 1n << 62n;
export const OFFSET_MASK = OTHER_BIT - 1n;

export interface Frame {
  flags_: number;
  type_: number;
  seq_: bigint;
  path_: string;
  method_: string;
  meta_: Meta;
  payload_: Uint8Array;
}

/** What is known of a frame that is too large to be read. */
export type Header = Pick<Frame, "flags_" | "type_" | "seq_">;

export const isResponse = (f: Header) => (f.flags_ & RESPONSE) != 0;
export const isHeartbeat = (f: Header) => (f.flags_ & HEARTBEAT) != 0;
export const isOneway = (f: Header) => (f.flags_ & ONEWAY) != 0;
export const isFailed = (f: Header) => (f.flags_ & STATUS) != 0;
export const compression = (f: Header) => f.flags_ & COMPRESS;

/** Bytes before the body, the length among them. */
const PREFIX = 16;
/** A body has four lengths at least. */
const BODY_MIN = 16;
/** A frame beyond `frameBytesMax` is passed over up to so many times that. */
const PASSED_OVER_TIMES = 16;
/** What a heartbeat may have after its prefix; longer ones end the connection. A Hello's answer may be longer. */
export const HEARTBEAT_BYTES_MAX = 4096;

export interface FrameLimits {
  /** Most bytes of a frame after its first 16. */
  frameBytesMax: number;
  /** Most bytes of the metadata of a frame. */
  metaBytesMax: number;
  /** Most pairs of metadata. */
  metaPairsMax: number;
}

export const EMPTY = new Uint8Array(0);

/** These parts as one; `length` is that of all of them. */
export function join(parts: Uint8Array[], length: number): Uint8Array {
  const all = new Uint8Array(length);
  let at = 0;
  for (const part of parts) {
    all.set(part, at);
    at += part.length;
  }
  return all;
}

const encoder = new TextEncoder();
const decoder = new TextDecoder();
export const utf8 = (text: string): Uint8Array => encoder.encode(text);
export const text = (bytes: Uint8Array): string => decoder.decode(bytes);
const viewOf = (bytes: Uint8Array) => new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
export const broken = (what: string) => new BothwaysError("protocol", "the server sent " + what);

/** A frame as bytes. Throws if it is larger than what one side takes. */
export function encodeFrame(
  flags: number, type: number, seq: bigint, path: string, method: string, meta: Meta, payload: Uint8Array,
  limits: FrameLimits, peerMax = Infinity,
): Uint8Array {
  const pairs = Object.entries(meta).map(([key, value]) => [utf8(key), utf8(value)] as const);
  const metaBytes = pairs.reduce((sum, [key, value]) => sum + 8 + key.length + value.length, 0);
  const names = [utf8(path), utf8(method)];
  const body = BODY_MIN + names[0]!.length + names[1]!.length + metaBytes + payload.length;

  const check = (what: string, count: number, max: number) => {
    if (count > max) throw new BothwaysError("too_large", `${count} ${what}, at most ${max}`);
  };
  check("bytes of a frame", body, Math.min(limits.frameBytesMax, peerMax));
  check("bytes of metadata", metaBytes, limits.metaBytesMax);
  check("pairs of metadata", pairs.length, limits.metaPairsMax);

  const bytes = new Uint8Array(PREFIX + body);
  const view = viewOf(bytes);
  let at = PREFIX;
  const length = (value: number) => {
    view.setUint32(at, value);
    at += 4;
  };
  const block = (block: Uint8Array) => {
    length(block.length);
    bytes.set(block, at);
    at += block.length;
  };

  bytes[0] = 8;
  bytes[2] = flags;
  bytes[3] = type << 4;
  view.setBigUint64(4, seq);
  view.setUint32(12, body);
  names.forEach(block);
  length(metaBytes);
  for (const [key, value] of pairs) {
    block(key);
    block(value);
  }
  block(payload);
  return bytes;
}

const headerOf = (bytes: Uint8Array): Header => ({
  flags_: bytes[2]!,
  type_: bytes[3]! >> 4,
  seq_: viewOf(bytes).getBigUint64(4),
});

/** A whole frame, of which the first 16 bytes were checked. Its payload is a part of the same bytes. */
function decodeFrame(bytes: Uint8Array, limits: FrameLimits): Frame {
  const view = viewOf(bytes);
  let at = PREFIX;
  const block = (end: number): Uint8Array => {
    const length = at + 4 > end ? Infinity : view.getUint32(at);
    at += 4;
    if (length > end - at) throw broken("a length that is not that of its frame");
    return bytes.subarray(at, (at += length));
  };

  const path_ = text(block(bytes.length));
  const method_ = text(block(bytes.length));
  const metaBytes = block(bytes.length).length;
  const payloadAt = at;
  const meta_: Meta = Object.create(null);
  at -= metaBytes;
  for (let pairs = 0; at < payloadAt; pairs++) {
    if (metaBytes > limits.metaBytesMax || pairs == limits.metaPairsMax) throw broken("too much metadata");
    const key = text(block(payloadAt));
    meta_[key] = text(block(payloadAt));
  }

  const payload_ = block(bytes.length);
  if (at != bytes.length) throw broken("a length that is not that of its frame");
  return { ...headerOf(bytes), path_, method_, meta_, payload_ };
}

/** Cuts a stream of bytes into frames. Holds one frame at most, in memory that grows with the bytes that have come. */
export class Deframer {
  private held_ = EMPTY;
  private have_ = 0;
  /** Bytes of the frame that comes, once they are known. */
  private need_ = 0;
  private skip_ = 0;

  constructor(
    private limits_: FrameLimits,
    private onFrame_: (frame: Frame) => void,
    private onTooLarge_: (header: Header) => void,
  ) {}

  /** Throws a {@link BothwaysError} if the stream is no stream of frames; there is no going on after that. */
  feed_(chunk: Uint8Array): void {
    while (chunk.length) {
      const isSkipping = !!this.skip_;
      if (!isSkipping && !this.have_ && chunk[0] != 8) throw broken("no frame");
      // A step is the prefix, and then the whole frame.
      const want = this.skip_ || (this.need_ || PREFIX) - this.have_;
      let part = chunk.subarray(0, want);
      const rest = chunk.subarray(want);
      const isWhole = part.length == want;
      if (isSkipping) this.skip_ -= part.length;
      else if (this.have_ || !isWhole) part = this.hold_(part);

      if (isSkipping || !isWhole) {
        chunk = rest;
      } else if (this.need_) {
        chunk = rest;
        this.reset_();
        this.onFrame_(decodeFrame(part, this.limits_));
      } else {
        this.need_ = this.total_(part);
        // A frame that is in this chunk as a whole is not copied: its prefix stays where it is.
        if (this.have_ || this.skip_) chunk = rest;
        if (this.skip_) this.reset_();
      }
    }
  }

  /** Adds to what is held, and returns all of it. */
  private hold_(part: Uint8Array): Uint8Array {
    const have = this.have_ + part.length;
    if (have > this.held_.length) {
      const grown = new Uint8Array(Math.min(this.need_ || PREFIX, Math.max(have, 2 * this.held_.length)));
      grown.set(this.held_.subarray(0, this.have_));
      this.held_ = grown;
    }
    this.held_.set(part, this.have_);
    this.have_ = have;
    return this.held_.subarray(0, have);
  }

  private reset_() {
    this.held_ = EMPTY;
    this.have_ = this.need_ = 0;
  }

  /** Bytes of the frame that begins with this prefix; 0 if it is passed over. */
  private total_(prefix: Uint8Array): number {
    const { frameBytesMax } = this.limits_;
    const body = viewOf(prefix).getUint32(12);
    if (body < BODY_MIN) throw broken(`a frame of ${body} bytes`);
    if (body <= frameBytesMax) return PREFIX + body;

    const header = headerOf(prefix);
    if (isHeartbeat(header) || body > PASSED_OVER_TIMES * frameBytesMax) throw broken(`a frame of ${body} bytes`);
    this.skip_ = body;
    this.onTooLarge_(header);
    return 0;
  }
}
