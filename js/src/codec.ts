import { EMPTY, JSON_TYPE, RAW, text, utf8 } from "./frame.js";

/** Values ↔ payloads. `type` is rpcx's serialize type: 0 raw, 1 JSON, 2 Protocol Buffers, 3 MessagePack, 5 to 15 free. */
export interface Codec {
  readonly type: number;
  encode(value: unknown): Uint8Array;
  decode(bytes: Uint8Array): unknown;
}

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

/** JSON. Bytes become base64 and dates RFC 3339, as in Go; neither comes back by itself. Numbers have 53 bits. */
export const json = (): Codec => plain;

/** Bytes as they are; a text is sent in UTF-8. What comes is a `Uint8Array`. */
export const raw = (): Codec => ({
  type: RAW,
  encode: (value = EMPTY) => {
    if (typeof value == "string") return utf8(value);
    if (value instanceof Uint8Array) return value;
    throw new TypeError("no bytes, and no text");
  },
  decode: (bytes) => bytes,
});
