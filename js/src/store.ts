/** A session that outlives its page, in a storage of the browser. */

import type { Core } from "./client.js";
import { parseOffset, type Failure } from "./session.js";
import type { SessionStorage } from "./types.js";

/**
 * Keeps the session in a storage when the page is left: `sessionStorage`, to go on with it after a reload. The session's
 * secret is there for every script of the page. Before `connect()`; register push handlers and subscriptions before that
 * too, as what was missed comes at once. `key` is the name in the storage, `"bothways:"` and the address by default.
 */
export function keepSession(client: Core, storage: SessionStorage, key?: string): void {
  client.store_ = new Store(client, storage, key ?? "bothways:" + client.address_);
}

export class Store {
  /** Where an earlier page was in its topics. */
  positions_: Record<string, [epoch: string, offset: string]> = {};

  constructor(private client_: Core, private storage_: SessionStorage, private key_: string) {}

  save_() {
    const { session_: session, topics_ } = this.client_;
    const { sid_: sid, key_: key, handled_, attempts_ } = session;
    const pos = topics_ ? topics_.save_() : this.positions_;
    const saved = { sid, key, off: `${handled_}`, try: attempts_, fails: session.helloFails_(), pos };
    try {
      if (!sid) this.storage_.removeItem(this.key_);
      else this.storage_.setItem(this.key_, JSON.stringify(saved));
    } catch (error) {
      this.report_(error);
    }
  }

  /** Goes on with the session of an earlier page: what that one had received and not handled comes again. */
  restore_() {
    const { session_: session, topics_ } = this.client_;
    if (session.sid_) return;
    try {
      const saved = JSON.parse(this.storage_.getItem(this.key_) || "null");
      if (!saved?.sid) return;
      session.begin_(parseOffset(saved.off));
      [session.sid_, session.key_, session.attempts_] = [saved.sid, saved.key, saved.try];
      // What exactly had failed is only in the text; the runs are made from it once more.
      for (const part of saved.fails.split(",")) {
        const found = /^(\d+)(?:-(\d+))?:(\w+)$/.exec(part);
        if (found) session.fails_.push([BigInt(found[1]!), BigInt(found[2] ?? found[1]!), found[3] as Failure]);
      }
      this.positions_ = saved.pos ?? {};
      topics_?.restore_();
    } catch (error) {
      // Whatever is there, it is no session.
      session.lose_();
      this.report_(error);
    }
  }

  private report_(error: unknown) {
    this.client_.report_(error, "the session's storage");
  }
}
