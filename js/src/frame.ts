/** The bytes of a frame: docs/protocol.md, "One frame". No other file knows a bit position or reads a length. */

import { BothwaysError } from "./error.js";

/** Pairs beside a payload. Without a prototype where it comes from a peer, so that no key is special. */
export type Meta = Record<string, string>;

export const RESPONSE = 0x80;
export const HEARTBEAT = 0x40;
export const ONEWAY = 0x20;
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

/** What the framework says beside a payload: `_bw.sid` is `sid`, and `__rpcx_error__` is `rpcx_error__`. */
export type Said = { [name: string]: string | undefined };

export interface Frame {
  flags_: number;
  type_: number;
  seq_: bigint;
  path_: string;
  method_: string;
  meta_: Meta;
  /** A connection takes it out of the metadata; what is left is the application's. */
  said_: Said;
  /** It is for the framework. */
  isOurs_: boolean;
  payload_: Uint8Array;
}

export const isFailed = (frame: Frame) => frame.flags_ & STATUS;
export const isPacked = (frame: Frame) => frame.flags_ & COMPRESS;

/** Bytes before the body, the length among them. */
const PREFIX = 16;
/** What a heartbeat may have as its payload; longer ones end the connection. */
export const HEARTBEAT_BYTES_MAX = 4096;
/** Most bytes and most pairs of the metadata of one frame, in and out. A server with its defaults takes no more either. */
const META_BYTES_MAX = 64 << 10;
const META_PAIRS_MAX = 128;

export const EMPTY = new Uint8Array(0);

const encoder = new TextEncoder();
const decoder = new TextDecoder();
export const utf8 = (text: string): Uint8Array => encoder.encode(text);
export const text = (bytes: Uint8Array): string => decoder.decode(bytes);
export const viewOf = (bytes: Uint8Array) => new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
export const broken = (what = "no frame") => new BothwaysError("protocol", "the server sent " + what);

/** Some parts one after the other, each behind its length, with room before them. */
function join(parts: Uint8Array[], room: number): Uint8Array {
  const bytes = new Uint8Array(parts.reduce((sum, part) => sum + 4 + part.length, room));
  for (const part of parts) {
    viewOf(bytes).setUint32(room, part.length);
    bytes.set(part, room + 4);
    room += 4 + part.length;
  }
  return bytes;
}

/** The parts that {@link join} made these bytes of. */
function split(bytes: Uint8Array, most: number): Uint8Array[] {
  const parts: Uint8Array[] = [];
  for (let at = 0; at < bytes.length; ) {
    // A length that is cut off is as wrong as one of more bytes than there are.
    const length = at + 4 > bytes.length ? Infinity : viewOf(bytes).getUint32(at);
    at += 4 + length;
    if (at > bytes.length || parts.length == most) throw broken();
    parts.push(bytes.subarray(at - length, at));
  }
  return parts;
}

/** What a frame is made of. */
export type Parts = [flags: number, type: number, seq: bigint, path: string, method: string, meta: Meta, payload: Uint8Array];

/** A frame as bytes. Throws if it has more than `most` of them after its prefix, or too much metadata. */
export function encodeFrame(most: number, ...[flags, type, seq, path, method, meta, payload]: Parts): Uint8Array {
  const pairs = Object.entries(meta).flat().map(utf8);
  const metaBytes = join(pairs, 0);
  const bytes = join([utf8(path), utf8(method), metaBytes, payload], PREFIX);
  const body = bytes.length - PREFIX;
  if (pairs.length > 2 * META_PAIRS_MAX || metaBytes.length > META_BYTES_MAX || body > most) {
    throw new BothwaysError("too_large", `a frame of ${body} bytes, at most ${most}`);
  }

  bytes[0] = 8;
  bytes[2] = flags;
  bytes[3] = type << 4;
  viewOf(bytes).setBigUint64(4, seq);
  viewOf(bytes).setUint32(12, body);
  return bytes;
}

/** A whole frame. Its payload is a part of the same bytes. */
function decodeFrame(bytes: Uint8Array): Frame {
  const [path, method, metaBytes, payload_] = split(bytes.subarray(PREFIX), 4);
  if (!payload_ || metaBytes!.length > META_BYTES_MAX) throw broken();
  const pairs = split(metaBytes!, 2 * META_PAIRS_MAX).map(text);
  if (pairs.length % 2) throw broken();
  const meta_: Meta = Object.create(null);
  while (pairs.length) meta_[pairs.shift()!] = pairs.shift()!;
  return {
    flags_: bytes[2]!,
    type_: bytes[3]! >> 4,
    seq_: viewOf(bytes).getBigUint64(4),
    path_: text(path!),
    method_: text(method!),
    meta_,
    payload_,
  } as Frame;
}

/**
 * Cuts a stream of bytes into frames of at most `most` bytes after their prefixes. Holds one frame at most, in memory that
 * grows with the bytes that have come. What it returns throws a {@link BothwaysError} if the stream is no stream of frames;
 * there is no going on after that.
 */
export function deframer(most: number, take: (frame: Frame) => void) {
  let held = EMPTY;
  let have = 0;
  return (chunk: Uint8Array) => {
    const sum = have + chunk.length;
    if (sum > held.length) {
      const grown = new Uint8Array(have ? 2 * sum : sum);
      grown.set(held.subarray(0, have));
      held = grown;
    }
    held.set(chunk, have);

    let at = 0;
    for (have = sum; have; ) {
      const bytes = held.subarray(at, sum);
      const length = have < PREFIX ? 0 : viewOf(bytes).getUint32(12);
      if (bytes[0] != 8) throw broken();
      if (length > most) throw broken(`a frame of ${length} bytes, at most ${most}`);
      if (have < PREFIX + length) break;
      take(decodeFrame(bytes.subarray(0, PREFIX + length)));
      at += PREFIX + length;
      have -= PREFIX + length;
    }
    // What frames were taken from is theirs: it is not written to again.
    if (at) held = held.slice(at, sum);
  };
}
