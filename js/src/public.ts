export { json, raw, type Codec, type NameOptions } from "./codec.js";
export { BothwaysError, type ErrorCode } from "./error.js";
export type { Meta } from "./frame.js";
export type { Subscription } from "./topics.js";
export type * from "./types.js";
export type { Dial, WebSocketClass, WebSocketLike, Wire, WireEvents } from "./wire.js";
