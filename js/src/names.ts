/** Names as Go's fields have them. */

import type { Codec } from "./codec.js";
import { Ext } from "./msgpack.js";

/** A value whose names, at any depth, have another first letter. One called `__proto__` is a field like any other. */
function renamed(value: any, rename: (letter: string) => string): unknown {
  if (Array.isArray(value)) return value.map((item) => renamed(item, rename));
  if (value instanceof Map) return new Map([...value].map(([key, field]) => [key, renamed(field, rename)]));
  const isWhole = [Uint8Array, Date, Ext].some((kind) => value instanceof kind) || value?.toJSON;
  if (typeof value != "object" || !value || isWhole) return value;
  return Object.fromEntries(Object.entries(value).map(([name, field]) => [rename(name.charAt(0)) + name.slice(1), renamed(field, rename)]));
}

/**
 * A codec as it is, but for names: `userName` here is `UserName` on the wire, as Go's fields are. Only the first letter
 * changes, and of the keys of a `Map` none does.
 */
export const pascal = (codec: Codec): Codec => ({
  type: codec.type,
  encode: (value) => codec.encode(renamed(value, (letter) => letter.toUpperCase())),
  decode: (bytes) => renamed(codec.decode(bytes), (letter) => letter.toLowerCase()),
});
