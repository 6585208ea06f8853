/** Messages with keys: repetitions, and values of which only the newest counts. */

import type { Core } from "./client.js";
import { EMPTY } from "./frame.js";
import { listen } from "./listeners.js";
import type { Entry } from "./pushes.js";
import type { Failure } from "./session.js";

/** Idempotency keys that are remembered, and the most characters of one. */
const KEYS_MAX = 1024;
const KEY_LENGTH_MAX = 64;
/** Repetitions of one message whose acknowledgements wait for it. More are never acknowledged. */
const REPEATS_MAX = 256;

/**
 * Gives a message whose idempotency key the application has had no second time, unless it failed; and of values with the
 * same key only the newest, where several wait. Before `connect()`.
 */
export function dropRepeats(client: Core): void {
  /** Of each key the message that came first, until it has ended; how that was; and the repetitions that wait for it. */
  const all = new Map<string, { entry_?: Entry; why_?: Failure; repeats_: Entry[] }>();
  const newest = new Map<string, Entry>();

  listen(client.listeners_, "_came", (entry: Entry) => {
    const { ik, lk } = entry.frame_.said_;
    const known = all.get(ik!);
    if (known) {
      entry.isTaken_ = true;
      // It waits for a time, and what it says is known.
      entry.frame_.payload_ = EMPTY;
      if (!known.entry_) client.done_(entry, known.why_);
      else if (known.repeats_.length < REPEATS_MAX) known.repeats_.push(entry);
      return;
    }
    if (ik && ik.length <= KEY_LENGTH_MAX) {
      all.set(ik, { entry_: entry, repeats_: [] });
      for (const oldest of all.keys()) if (all.size > KEYS_MAX) all.delete(oldest);
    }
    if (!lk) return;
    const older = newest.get(lk);
    if (older) client.pushes_.leave_(older, "superseded");
    newest.set(lk, entry);
  });

  listen(client.listeners_, "_done", (entry: Entry, why?: Failure) => {
    const { ik, lk } = entry.frame_.said_;
    if (newest.get(lk!) == entry) newest.delete(lk!);
    const known = all.get(ik!);
    if (known?.entry_ != entry) return;
    // One that failed may come again.
    if (why && why != "superseded") all.delete(ik!);
    known.entry_ = undefined;
    known.why_ = why;
    for (const repeat of known.repeats_.splice(0)) client.done_(repeat, why);
  });
}
