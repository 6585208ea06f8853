import { BothwaysError } from "./error.js";
import { EMPTY, join, JSON_TYPE, RAW, text, utf8 } from "./frame.js";

/** Values ↔ payloads. `type` is rpcx's serialize type: 0 raw, 1 JSON, 2 Protocol Buffers, 3 MessagePack, 5 to 15 free. */
export interface Codec {
  readonly type: number;
  encode(value: unknown): Uint8Array;
  decode(bytes: Uint8Array): unknown;
}

export interface NameOptions {
  /** `"pascal"`: `userName` here is `UserName` on the wire, as Go's fields are. Only the first letter changes. Not for
   * the keys of a `Map`. Default: names stay. */
  rename?: "pascal";
}

export const toWire = (name: string) => name.charAt(0).toUpperCase() + name.slice(1);
export const fromWire = (name: string) => name.charAt(0).toLowerCase() + name.slice(1);

const isRecord = (value: unknown): value is Record<string, unknown> =>
  typeof value == "object" && value !== null && !Array.isArray(value);

/** An object with these names; one called `__proto__` is a field like any other. */
const renamed = (value: unknown, rename: (name: string) => string): unknown => {
  if (!isRecord(value)) return value;
  const result: Record<string, unknown> = {};
  for (const name of Object.keys(value)) put(result, rename(name), value[name]);
  return result;
};

export function put(into: Record<string, unknown>, name: string, value: unknown) {
  if (name == "__proto__") {
    Object.defineProperty(into, name, { value, enumerable: true, configurable: true, writable: true });
  } else {
    into[name] = value;
  }
}

/** Bytes in base64, as Go has them in JSON. */
const base64 = (bytes: Uint8Array): string => {
  let binary = "";
  for (const byte of bytes) binary += String.fromCharCode(byte);
  return btoa(binary);
};

/** JSON. Bytes become base64 and dates RFC 3339, as in Go; neither comes back by itself. Numbers have 53 bits. */
export function json(options: NameOptions = {}): Codec {
  const pascal = options.rename == "pascal";
  return {
    type: JSON_TYPE,
    encode: (value) =>
      utf8(
        JSON.stringify(value ?? null, function (this: Record<string, unknown>, key, value) {
          // Before `toJSON`, which Node's buffers have.
          const field = this[key];
          if (field instanceof Uint8Array) return base64(field);
          if (value instanceof Map) return Object.fromEntries(value);
          return pascal ? renamed(value, toWire) : value;
        }),
      ),
    decode: (bytes) =>
      bytes.length ? JSON.parse(text(bytes), pascal ? (_, value) => renamed(value, fromWire) : undefined) : undefined,
  };
}

/** Bytes as they are; a text is sent in UTF-8. What comes is a `Uint8Array`. */
export const raw = (): Codec => ({
  type: RAW,
  encode: (value) => {
    if (value === undefined) return EMPTY;
    if (typeof value == "string") return utf8(value);
    if (value instanceof Uint8Array) return value;
    throw new TypeError("the raw codec takes bytes or a text");
  },
  decode: (bytes) => bytes,
});

/** Unpacks gzip, up to so many bytes. */
export async function gunzip(bytes: Uint8Array, max: number): Promise<Uint8Array> {
  const parts: Uint8Array[] = [];
  let length = 0;
  const stream = new Blob([bytes as Uint8Array<ArrayBuffer>]).stream().pipeThrough(new DecompressionStream("gzip"));
  const reader = stream.getReader();
  for (;;) {
    const { done, value } = await reader.read();
    if (done) break;
    length += value.length;
    if (length > max) {
      void reader.cancel().catch(() => {});
      throw new BothwaysError("decode", `a payload has more than ${max} bytes unpacked`);
    }
    parts.push(value);
  }
  return join(parts, length);
}
