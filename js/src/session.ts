/** A client's side of its session: the secret, the offsets, and what to acknowledge. */

import { BothwaysError } from "./error.js";
import { OFFSET_MASK, PUSH_BIT, type Meta } from "./frame.js";

/** Why a push was not handled, as an acknowledgement says it. */
export type Failure = "no_handler" | "bad_arguments" | "error" | "superseded" | "unknown";

/** Messages after which an acknowledgement is due at once. */
export const ACK_MESSAGES = 32n;
/** Runs of failed messages in one acknowledgement: with them it stays below 1 KiB. */
const TOLD_AT_ONCE = 16;
/** Runs that were told and are kept for the Hello of the next connection. More become one of which nothing is known. */
const FAILURES_MAX = 48;
/** Runs that were not told yet. A message that fails beyond them is not acknowledged. */
const UNTOLD_MAX = 65536;

type Run = [first: bigint, last: bigint, why: Failure];

const written = ([first, last, why]: Run) => `${first}${first == last ? "" : "-" + last}:${why}`;
const least = (a: bigint, b: bigint) => (a < b ? a : b);

/** A decimal number of at most 64 bits. */
export const parseOffset = (text: string | undefined): bigint =>
  text && /^\d{1,20}$/.test(text) ? BigInt.asUintN(64, BigInt(text)) : 0n;

export class Session {
  /** Counts sessions, so that a message of an earlier one acknowledges nothing of this one. */
  epoch_ = 0;
  sid_ = "";
  key_ = "";
  attempts_ = 0;
  /** The server understands how each message ended. */
  private outcomes_ = false;

  received_!: bigint;
  handled_!: bigint;
  private ahead_!: Set<bigint>;
  private toldReceived_!: bigint;
  private toldHandled_!: bigint;
  private missed_!: number;

  fails_!: Run[];
  /** So many of the first ones were told on this connection. */
  private told_!: number;
  /** Up to here some were forgotten. */
  private forgotten_!: bigint;

  constructor() {
    this.begin_(0n);
  }

  /** Begins after an offset. */
  begin_(offset: bigint) {
    this.epoch_++;
    this.received_ = this.handled_ = this.toldReceived_ = this.toldHandled_ = least(offset, OFFSET_MASK);
    this.ahead_ = new Set();
    this.fails_ = [];
    this.told_ = this.missed_ = 0;
    this.forgotten_ = 0n;
  }

  /** The session is over: no Hello names it, and nothing that came in it is acknowledged. */
  lose_() {
    this.sid_ = "";
    this.begin_(0n);
  }

  helloFails_(): string {
    const runs = this.fails_.slice(0, FAILURES_MAX);
    if (this.forgotten_) runs.push([1n, this.forgotten_, "unknown"]);
    return runs.map(written).join(",");
  }

  /** The pairs of a Hello: who this client was, and how far it is. */
  hello_(): Meta {
    if (!this.sid_) return {};
    this.attempts_++;
    // An offset past a failure that the Hello cannot name would call it handled.
    let handled = this.handled_;
    for (const [first] of this.fails_.slice(FAILURES_MAX)) handled = least(handled, first - 1n);

    const fails = this.helloFails_();
    return {
      "_bw.sid": this.sid_,
      "_bw.key": this.key_,
      "_bw.off": `${handled}`,
      "_bw.rcv": `${this.received_}`,
      "_bw.try": `${this.attempts_}`,
      ...(fails && { "_bw.nack": fails }),
    };
  }

  /** Takes a Welcome in. True: this is the session that the client had. */
  welcome_(meta: Meta, outcomes: boolean): boolean {
    const had = this.sid_;
    const { "_bw.sid": sid = "", "_bw.key": key = "" } = meta;
    this.outcomes_ = outcomes;
    [this.sid_, this.key_] = key ? [sid, key] : ["", ""];
    if (had && this.sid_ && meta["_bw.res"]) {
      // What the server heard last may have been lost with the old connection.
      this.toldReceived_ = this.toldHandled_ = 0n;
      this.told_ = 0;
      return true;
    }
    if (had != this.sid_) this.attempts_ = 0;
    this.begin_(parseOffset(meta["_bw.off"]));
    return false;
  }

  isNew_(seq: bigint): boolean {
    return (seq & OFFSET_MASK) > this.received_;
  }

  /** The offset of a tracked message that is new; 0: it is not tracked. `null`: it is here already. */
  receive_(seq: bigint): bigint | null {
    const offset = seq & PUSH_BIT ? seq & OFFSET_MASK : 0n;
    if (!this.sid_ || !offset) return 0n;
    if (offset <= this.received_) return null;
    if (offset != this.received_ + 1n) {
      throw new BothwaysError("protocol", `the server left out a message: ${offset} follows ${this.received_}`);
    }
    return (this.received_ = offset);
  }

  /** The application has dealt with a message, once. */
  done_(epoch: number, offset: bigint, why?: Failure) {
    if (epoch != this.epoch_ || !offset) return;
    // One that is not noted would be acknowledged as handled.
    if (why && this.outcomes_ && !this.fail_(offset, why)) return;
    this.ahead_.add(offset);
    while (this.ahead_.delete(this.handled_ + 1n)) this.handled_++;
  }

  private fail_(offset: bigint, why: Failure): boolean {
    const last = this.fails_.length > this.told_ ? this.fails_.at(-1) : undefined;
    if (last && last[2] == why && last[1] + 1n == offset) {
      last[1] = offset;
      return true;
    }
    if (this.fails_.length - this.told_ >= UNTOLD_MAX) return false;
    this.fails_.push([offset, offset, why]);
    this.forget_();
    return true;
  }

  /** Forgets the oldest that were told, if there are too many. */
  private forget_() {
    for (; this.told_ && this.fails_.length > FAILURES_MAX; this.told_--) {
      const [, last] = this.fails_.shift()!;
      if (last > this.forgotten_) this.forgotten_ = last;
    }
  }

  /** How much the server does not know yet. */
  untold_(): bigint {
    const received = this.received_ - this.toldReceived_;
    const handled = this.handled_ - this.toldHandled_ + BigInt(this.fails_.length - this.told_);
    return received > handled ? received : handled;
  }

  /** The next acknowledgement; `undefined` if there is nothing to tell. */
  ack_(): Meta | undefined {
    if (!this.sid_ || !this.untold_()) return;
    const fails = this.fails_.slice(this.told_, this.told_ + TOLD_AT_ONCE);
    this.told_ += fails.length;
    this.toldReceived_ = this.received_;
    // While some are not told, no offset may be taken for handled that was not.
    if (this.told_ == this.fails_.length) this.toldHandled_ = this.handled_;
    const meta: Meta = { "_bw.ack": `${this.received_},${this.toldHandled_}` };
    if (fails.length) meta["_bw.nack"] = fails.map(written).join(",");
    this.forget_();
    return meta;
  }

  /** The server says how many messages it dropped since the session began. Returns how many of them are news. */
  miss_(sinceBeginning: number): number {
    const news = Math.max(0, sinceBeginning - this.missed_);
    this.missed_ += news;
    return news;
  }
}
