/**
 * As `bothways`, small: JSON, and what comes in another codec as bytes. It connects, calls, takes pushes and resumes. What
 * not every page needs is added to a client by a function, and a bundler leaves out what is not imported: {@link handle},
 * {@link followOthers}, {@link followPage}, {@link subscribe}, {@link keepSession}. Changes of presence are MessagePack: `presence` shows who is
 * there when the client subscribes or connects, and no changes.
 */
import { json } from "./codec.js";
import { Core } from "./client.js";
import type { Options } from "./types.js";

export { handle } from "./answers.js";
export { Core as Client } from "./client.js";
export * from "./public.js";
export { subscribe } from "./topics.js";

export class Bothways extends Core {
  /** `address`: `wss://host/_rpcx_`, rpcx's `ws@host:port`, or `/_rpcx_` on the server that the page came from. */
  constructor(address: string, options: Options = {}) {
    super(address, options, [json()]);
  }
}
