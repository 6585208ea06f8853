export { json, raw, type Codec } from "./codec.js";
export { BothwaysError, type ErrorCode } from "./error.js";
export type { Meta } from "./frame.js";
export { pascal } from "./names.js";
export { followOthers } from "./others.js";
export { keepSession } from "./store.js";
export type { Subscription } from "./topics.js";
export type * from "./types.js";
export type { Dial, WebSocketClass, WebSocketLike, Wire, WireEvents } from "./wire.js";
