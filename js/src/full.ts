/** A client with MessagePack, calls of the server and topics. */

import { answersOf } from "./answers.js";
import { Core } from "./client.js";
import { json, raw } from "./codec.js";
import type { BothwaysError } from "./error.js";
import type { Said } from "./frame.js";
import { listen } from "./listeners.js";
import { msgpack } from "./msgpack.js";
import { topicsOf, type Subscription } from "./topics.js";
import type { CallHandler, Options, PushHandler, SubscribeOptions } from "./types.js";
import type { Dial } from "./wire.js";

/** What `Bothways` of `bothways` and of `bothways/node` have in common. */
export class Client extends Core {
  /** `address`: `wss://host/_rpcx_`, rpcx's `ws@host:port`, or `/_rpcx_` on the server that the page came from. */
  constructor(address: string, options: Options = {}, dial?: Dial) {
    const codec = msgpack();
    super(address, options, [codec, json(), raw()], dial);
    listen(this.listeners_, "_failed", (error: BothwaysError, { detail = "" }: Said) => {
      // One that cannot be read is reported as what a listener throws, and the error is told without it.
      error.detail = codec.decode(Uint8Array.from(atob(detail), (char) => char.charCodeAt(0)));
    });
    answersOf(this);
    topicsOf(this);
  }

  /**
   * Answers the server's calls to these methods with what the functions return or resolve to. What one throws is the
   * error of the call. Before `connect()`: the server is told the names when it is greeted.
   */
  handle(path: string, methods: Record<string, CallHandler>): void {
    answersOf(this).handle_(path, methods);
  }

  /**
   * Subscribes to a topic or a pattern: `*` is one segment, `>` at the end one or more. Lasts until it is ended, over lost
   * connections and sessions. The options of the first subscription to a topic count for all of them. It may begin before
   * `connect()`.
   */
  subscribe(topic: string, handler: PushHandler, options?: SubscribeOptions): Subscription {
    return topicsOf(this).join_(topic, handler, options);
  }
}
