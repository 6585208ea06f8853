/** A page that is hidden, frozen, left, shown again, or off line. */

import type { Core } from "./client.js";
import { now } from "./conn.js";
import { BothwaysError } from "./error.js";

/** How long a server has to say anything after the page was shown, woken, or is on or off line: in milliseconds. */
const PATIENCE = 3000;

/**
 * Has the client follow its page: shown again, woken or back on line, it asks at once whether its connection lives, or
 * connects at once; frozen, it ends its connection, and its session waits; left, it leaves its session, unless a storage
 * or the browser keeps that. Before `connect()`. Does nothing where there is no page.
 */
export function followPage(client: Core): void {
  if (!globalThis.document) return;
  let controller: AbortController | undefined;
  client.on("state", ({ name }) => {
    if (name != "connecting" && name != "closed") return;
    controller?.abort();
    if (name == "closed") return;

    let isAsleep = false;
    const probe = () => client.conn_?.isUp_ && client.conn_.watch_(PATIENCE, 0);
    const wake = () => {
      if (isAsleep) {
        // Another page of this tab may have had the session meanwhile.
        client.store_?.restore_();
        client.plan_(Math.max(0, client.notBefore_ - now()));
      }
      isAsleep = false;
      probe();
      client.hurry_(0);
    };
    // Nothing is received from here on, and the server need not find that out by itself. No connection is made either.
    const sleep = () => {
      client.ackNow_();
      client.tell_("_save");
      isAsleep = true;
      client.conn_?.end_(new BothwaysError("lost", "the page sleeps"));
      client.plan_();
    };
    const steps: Record<string, (event: any) => void> = {
      online: wake,
      pageshow: wake,
      resume: wake,
      freeze: sleep,
      offline: probe,
      visibilitychange: () => document.visibilityState == "visible" && wake(),
      // Where the page may come back, and its session with it, the session waits for it.
      pagehide: ({ persisted }) => (persisted || client.store_ ? sleep() : client.close()),
    };
    controller = new AbortController();
    // What is for the document passes its window on the way.
    const options = { capture: true, signal: controller.signal };
    for (const name in steps) addEventListener(name, steps[name]!, options);
  });
}
