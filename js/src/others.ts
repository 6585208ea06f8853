/** Where a client goes whose server stops, if that names other addresses. */

import type { Core } from "./client.js";
import { urlOf } from "./wire.js";

/** Network, host, port and path of an address. A host of other letters could mean another one to those who read it later. */
const partsOf = (address: string): string[] =>
  /^(\w+(?:@|:\/\/))(\[[\w:.]+]|[\w.-]+)(:\d+)?(\/.*)?$/.exec(urlOf(address)) ?? [];

/**
 * Has the client go where its server says when it stops (`_bw.alt`): to each of these addresses in turn, then to its own,
 * and so on until it is connected. Its network and its path stay what they are: from `wss:` it never goes to `ws:`. `goes`
 * says of an address in the form of the client's own whether it goes there; by default it does if the host is that of its
 * own address, or below it: from `chat.example.org` to `node7.chat.example.org`. Before `connect()`.
 */
export function followOthers(client: Core, goes?: (address: string) => boolean): void {
  let others: string[] = [];
  let turn = 0;
  client.on("state", ({ name }) => name == "connected" && (others = []));
  client.named_ = (said) => {
    const [, network, home, , path = ""] = partsOf(client.address_);
    turn = 0;
    others = said.split(" ").flatMap((other) => {
      const [, itsNetwork, host, port = ""] = partsOf(other);
      const address = network! + host + port + path;
      const isThere = host && itsNetwork == network && (goes ? goes(address) : host == home || host.endsWith("." + home));
      return isThere ? [address] : [];
    });
  };
  client.where_ = () => others[turn++] ?? ((turn = 0), client.address_);
}
