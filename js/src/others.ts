/** Where a client goes whose server stops, if that names other addresses. */

import type { Core } from "./client.js";
import { now } from "./conn.js";
import { heedGoodbye } from "./goodbye.js";
import { listen } from "./listeners.js";
import { urlOf } from "./wire.js";

/** How many of the addresses that a server names count, and for how many milliseconds. */
const NAMED_MAX = 12;
const NAMED_TIME = 600_000;

/** Network, host, port and path of an address. A host of other letters could mean another one to those who read it later. */
const partsOf = (address: string): string[] =>
  /^(\w+(?:@|:\/\/))(\[[\w:.]+]|[\w.-]+)(:\d+)?(\/.*)?$/.exec(urlOf(address)) ?? [];

/**
 * Has the client go where its server says when it stops (`_bw.alt`): to each of these addresses in turn, then to its own,
 * and so on until it is connected; to twelve of them at most, and for ten minutes. Its network and its path stay what they
 * are: from `wss:` it never goes to `ws:`. `goes` says of an address in the form of the client's own whether it goes there;
 * by default it does if the host is that of its own address, or below it: from `chat.example.org` to
 * `node7.chat.example.org`. Before `connect()`.
 */
export function followOthers(client: Core, goes?: (address: string) => boolean): void {
  let others: string[] = [];
  let until = 0;
  let turn = 0;
  const [, network, home, , path = ""] = partsOf(client.address_);
  // What its server says when it stops is heard here too.
  heedGoodbye(client);
  client.on("state", (state) => {
    if (state.name == "connected") others = [];
    // Two that name each other would keep the client for ever.
    if (state.name == "reconnecting" && state.why.others_ && !client.other_) {
      turn = 0;
      until = now() + NAMED_TIME;
      others = state.why.others_.split(" ").slice(0, NAMED_MAX).flatMap((other) => {
        const [, itsNetwork, host, port = ""] = partsOf(other);
        const address = network! + host + port + path;
        const isThere = host && itsNetwork == network && (goes ? goes(address) : host == home || host.endsWith("." + home));
        return isThere ? [address] : [];
      });
    }
    if (state.name != "reconnecting") client.other_ = undefined;
  });
  listen(client.listeners_, "_hello", () => {
    client.other_ = now() < until ? others[turn++] : undefined;
    if (!client.other_) turn = 0;
  });
}
