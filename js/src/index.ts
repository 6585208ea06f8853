/**
 * Calls a Bothways or a Go rpcx server from a browser, and is called and pushed to by it: over WebSocket, in MessagePack,
 * JSON or raw bytes.
 */
import { Client } from "./full.js";
import { webSocketDial } from "./wire.js";
import type { Options } from "./types.js";

export type { Core } from "./client.js";
export { Client } from "./full.js";
export * from "./public.js";
export { Ext, msgpack, type MsgpackOptions } from "./msgpack.js";

export class Bothways extends Client {
  /** `address`: `wss://host/_rpcx_`, rpcx's `ws@host:port`, or `/_rpcx_` on the server that the page came from. */
  constructor(address: string, options: Options = {}) {
    super(address, options, webSocketDial(options.WebSocket));
  }
}
