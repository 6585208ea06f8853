import { EMPTY, JSON_TYPE, RAW, text, utf8 } from "./frame.js";

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

const plain: Codec = {
  type: JSON_TYPE,
  encode: (value = null) =>
    utf8(
      JSON.stringify(value, function (this: Record<string, unknown>, key, value) {
        // Before `toJSON`, which Node's buffers have.
        const field = this[key];
        if (field instanceof Uint8Array) return btoa(field.reduce((text, byte) => text + String.fromCharCode(byte), ""));
        return value instanceof Map ? Object.fromEntries(value) : value;
      }),
    ),
  decode: (bytes) => (bytes.length ? JSON.parse(text(bytes)) : undefined),
};

/** A value whose names, at any depth, are changed. One called `__proto__` is a field like any other. */
function renamed(value: any, rename: (name: string) => string): unknown {
  if (Array.isArray(value)) return value.map((item) => renamed(item, rename));
  const isRecord = typeof value == "object" && value && !value.toJSON && !(value instanceof Map || value instanceof Uint8Array);
  if (!isRecord) return value;
  return Object.fromEntries(Object.entries(value).map(([name, field]) => [rename(name), renamed(field, rename)]));
}

/** JSON. Bytes become base64 and dates RFC 3339, as in Go; neither comes back by itself. Numbers have 53 bits. */
export const json = ({ rename }: NameOptions = {}): Codec =>
  rename
    ? { ...plain, encode: (value) => plain.encode(renamed(value, toWire)), decode: (bytes) => renamed(plain.decode(bytes), fromWire) }
    : plain;

/** {@link json} as it is, for what loads as little as it can. */
export { plain as plainJson };

/** Bytes as they are; a text is sent in UTF-8. What comes is a `Uint8Array`. */
export const raw = (): Codec => ({
  type: RAW,
  encode: (value = EMPTY) => {
    if (typeof value == "string") return utf8(value);
    if (value instanceof Uint8Array) return value;
    throw new TypeError("the raw codec takes bytes or a text");
  },
  decode: (bytes) => bytes,
});
