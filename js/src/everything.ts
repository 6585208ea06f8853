/** What nearly every page wants, at once. */

import type { Core } from "./client.js";
import { heedGoodbye } from "./goodbye.js";
import { dropRepeats } from "./keys.js";
import { followPage } from "./page.js";

/** Adds {@link heedGoodbye}, {@link dropRepeats} and {@link followPage} to a client, and returns it. Before `connect()`. */
export function everything<C extends Core>(client: C): C {
  heedGoodbye(client);
  dropRepeats(client);
  followPage(client);
  return client;
}
