/** A session that outlives its page, in a storage of the browser. */

import type { Core } from "./client.js";
import { heedGoodbye } from "./goodbye.js";
import { listen } from "./listeners.js";
import { parseOffset, Session, type Run } from "./session.js";
import type { SessionStorage } from "./types.js";

/**
 * Keeps the session in a storage when the page is left: `sessionStorage`, to go on with it after a reload. The session's
 * secret is there for every script of the page. Before `connect()`; register push handlers and subscriptions before that
 * too, as what was missed comes at once. `key` is the name in the storage, `"bothways:"` and the address by default: two
 * clients of one page need one each.
 */
export function keepSession(client: Core, storage: SessionStorage, key?: string): void {
  client.store_ = new Store(client, storage, key ?? "bothways:" + client.address_);
  // Two pages that have one session must not take it from each other.
  heedGoodbye(client);
}

export class Store {
  /** Where an earlier page was in its topics. */
  positions_: Record<string, [epoch: string, offset: string]> = {};
  /** What this client has put there, or taken from there, last. */
  private own_: string | null = null;

  constructor(private client_: Core, private storage_: SessionStorage, private key_: string) {
    listen(client_.listeners_, "_save", () => this.save_());
    // As late as it can be: the page before this one may still acknowledge.
    listen(client_.listeners_, "_hello", () => client_.hasStood_ || this.restore_());
  }

  private try_<T>(run: () => T): T | undefined {
    try {
      return run();
    } catch (error) {
      // Whatever is there, it is no session.
      this.client_.report_(error, "the session's storage");
      return undefined;
    }
  }

  /**
   * Another page of this tab goes on with the session. A browser shows the next page while the one before may still run: for
   * a moment there are two.
   */
  isTaken_(): boolean {
    return !!this.own_ && this.try_(() => this.storage_.getItem(this.key_)) !== this.own_;
  }

  save_() {
    if (this.isTaken_()) return;
    const { session_: session, topics_ } = this.client_;
    const { sid_: sid, key_: key, handled_, attempts_ } = session;
    const pos = topics_ ? topics_.save_() : this.positions_;
    const saved = { sid, key, off: `${handled_}`, try: attempts_, fails: session.failsText_(0), pos };
    this.own_ = sid ? JSON.stringify(saved) : null;
    this.try_(() => (this.own_ ? this.storage_.setItem(this.key_, this.own_) : this.storage_.removeItem(this.key_)));
  }

  /** Goes on with the session of another page: what that one had received and not handled comes again. */
  restore_() {
    const { client_: client } = this;
    this.try_(() => {
      const text = this.storage_.getItem(this.key_);
      if (!text || text == this.own_) return;
      const saved = JSON.parse(text);
      if (!saved?.sid) return;
      const session = new Session(parseOffset(saved.off));
      [session.sid_, session.key_, session.attempts_] = [`${saved.sid}`, `${saved.key}`, Number(saved.try) || 0];
      for (const [, first, last, why] of saved.fails.matchAll(/(\d+)-(\d+):(\w+)/g)) {
        session.fails_.push([BigInt(first), BigInt(last), why] as Run);
      }
      client.session_ = session;
      this.own_ = text;
      this.positions_ = saved.pos ?? {};
      client.topics_?.restore_();
    });
  }
}
