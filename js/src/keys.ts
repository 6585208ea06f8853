/** Messages with keys: repetitions, and values of which only the newest counts. */

import type { Core } from "./client.js";
import type { Said } from "./frame.js";
import type { Entry, Pushes } from "./pushes.js";
import type { Failure } from "./session.js";

/** Idempotency keys that are remembered, and the most characters of one. */
const KEYS_MAX = 1024;
const KEY_LENGTH_MAX = 64;
/** Repetitions of one message whose acknowledgements wait for it. More are never acknowledged. */
const REPEATS_MAX = 256;

/** A message with an idempotency key, and how many repetitions wait for its end. */
interface Keyed {
  ended_: Promise<Failure | undefined>;
  repeats_: number;
}

/**
 * Gives a message whose idempotency key the application has had no second time, unless it failed; and of values with the
 * same key only the newest, where several wait. Before `connect()`.
 */
export function dropRepeats(client: Core): void {
  const all = new Map<string, Keyed>();
  client.keyed_ = (pushes: Pushes, entry: Entry, { ik, lk }: Said) => {
    const known = all.get(ik!);
    if (known) {
      if (known.repeats_++ < REPEATS_MAX) void known.ended_.then((why) => {
        known.repeats_--;
        client.done_(entry, why);
      });
      return true;
    }
    if (ik && ik.length <= KEY_LENGTH_MAX) {
      const ended_ = new Promise<Failure | undefined>((end) => (entry.end_ = end));
      const keyed = { ended_, repeats_: 0 };
      all.set(ik, keyed);
      for (const oldest of all.keys()) if (all.size > KEYS_MAX) all.delete(oldest);
      // One that failed may come again.
      void ended_.then((why) => why && why != "superseded" && all.get(ik) == keyed && all.delete(ik));
    }

    const older = lk && pushes.queue_.get(lk);
    if (older) pushes.leave_(older, "superseded");
    entry.id_ = lk || entry.id_;
    return false;
  };
}
