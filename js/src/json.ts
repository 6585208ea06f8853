/** As `bothways`, without MessagePack: arguments are JSON, and pushes in MessagePack come as bytes. Changes of presence are
 * MessagePack: `presence` shows who is there when the client subscribes or connects, and no changes. */
import { json } from "./codec.js";
import { Client } from "./client.js";
import { webSocketDial } from "./wire.js";
import type { Options } from "./types.js";

export * from "./public.js";

export class Bothways extends Client {
  /** `address`: `wss://host/_rpcx_`, rpcx's `ws@host:port`, or `/_rpcx_` on the server that the page came from. */
  constructor(address: string, options: Options = {}) {
    super(address, options, { codecs: [json()], dial: webSocketDial(options.WebSocket) });
  }
}
