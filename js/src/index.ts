/**
 * Calls a Bothways or a Go rpcx server from a browser, and is called and pushed to by it: over WebSocket, in MessagePack,
 * JSON or raw bytes.
 */
export type { Core } from "./client.js";
export { Client, Client as Bothways } from "./full.js";
export * from "./public.js";
export { Ext, msgpack, type MsgpackOptions } from "./msgpack.js";
