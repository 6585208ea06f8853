/** A client with everything. */

import { answersOf, handle } from "./answers.js";
import { Core } from "./client.js";
import { json, raw } from "./codec.js";
import { dropRepeats } from "./keys.js";
import { msgpack } from "./msgpack.js";
import { followPage } from "./page.js";
import { subscribe, topicsOf, type Subscription } from "./topics.js";
import type { CallHandler, Options, PushHandler, SubscribeOptions } from "./types.js";
import type { Dial } from "./wire.js";

/** What `Bothways` of `bothways` and of `bothways/node` have in common. */
export class Client extends Core {
  constructor(address: string, options: Options, dial: Dial) {
    const codec = msgpack();
    super(address, options, { codecs: [codec, json(), raw()], dial });
    this.detail_ = (error, packed) => {
      try {
        error.detail = codec.decode(Uint8Array.from(atob(packed), (char) => char.charCodeAt(0)));
      } catch {
        // An error whose detail cannot be read is an error all the same.
      }
    };
    answersOf(this);
    topicsOf(this);
    dropRepeats(this);
    followPage(this);
  }

  /**
   * Answers the server's calls to these methods with what the functions return or resolve to. What one throws is the
   * error of the call. Before `connect()`: the server is told the names when it is greeted.
   */
  handle(path: string, methods: Record<string, CallHandler>): void {
    handle(this, path, methods);
  }

  /**
   * Subscribes to a topic or a pattern: `*` is one segment, `>` at the end one or more. Lasts until it is ended, over lost
   * connections and sessions. The options of the first subscription to a topic count for all of them. It may begin before
   * `connect()`.
   */
  subscribe(topic: string, handler: PushHandler, options?: SubscribeOptions): Subscription {
    return subscribe(this, topic, handler, options);
  }
}
