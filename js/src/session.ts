/** A client's side of one session: the secret, the offsets, and what to acknowledge. */

import { broken, OFFSET_MASK, type Meta } from "./frame.js";

/** Why a push was not handled, as an acknowledgement says it. */
export type Failure = "no_handler" | "bad_arguments" | "error" | "superseded" | "unknown";

/** Messages after which an acknowledgement is due at once. */
export const ACK_MESSAGES = 32;
/**
 * Runs of failed messages that are kept, for acknowledgements and for the Hello of the next connection. Of those before
 * them only that they failed is known. With so many, either stays below 1 KiB.
 */
const FAILURES_MAX = 16;

export type Run = [first: bigint, last: bigint, why: Failure];

/** A decimal number of at most 64 bits. */
export const parseOffset = (text: string | undefined): bigint =>
  /^\d{1,20}$/.test(text!) ? BigInt.asUintN(64, BigInt(text!)) : 0n;

/** Each session has its own, so that a message of an earlier one acknowledges nothing of the next. */
export class Session {
  sid_ = "";
  key_ = "";
  attempts_ = 0;
  /** The server understands how each message ended. */
  outcomes_?: boolean;

  private received_: bigint;
  handled_: bigint;
  private ahead_ = new Set<bigint>();
  /** Messages that came, and that ended, since the last acknowledgement. */
  private came_ = 0;
  private ended_ = 0;
  private missed_ = 0;

  fails_: Run[] = [];
  /** So many of the first ones were told on this connection. */
  private told_ = 0;

  /** Begins after an offset. */
  constructor(offset = 0n) {
    this.received_ = this.handled_ = offset & OFFSET_MASK;
  }

  failsText_(from: number): string {
    return this.fails_.slice(from).map(([first, last, why]) => `${first}-${last}:${why}`).join();
  }

  /** The pairs of a Hello: who this client was, and how far it is. */
  hello_(): Meta {
    return this.sid_ ? {
      "_bw.sid": this.sid_,
      "_bw.key": this.key_,
      "_bw.off": `${this.handled_}`,
      "_bw.rcv": `${this.received_}`,
      "_bw.try": `${++this.attempts_}`,
      "_bw.nack": this.failsText_(0),
    } : {};
  }

  /** It goes on, on another connection: what the server heard last may have been lost with the old one. */
  resume_() {
    this.came_ = 1;
    this.told_ = 0;
  }

  /** Counts a message that comes. False: it is here already. Throws if one before it was left out. */
  receive_(offset: bigint): boolean {
    if (!this.sid_) return true;
    if (offset <= this.received_) return false;
    if (offset != this.received_ + 1n) throw broken();
    this.received_ = offset;
    this.came_++;
    return true;
  }

  /** There is no room for the message that came last: it has not come. */
  refuse_() {
    this.received_--;
  }

  /** The application has dealt with a message, once. */
  done_(offset: bigint, why?: Failure) {
    if (!this.sid_ || !offset) return;
    this.ended_++;
    if (why && this.outcomes_) this.fail_(offset, why);
    this.ahead_.add(offset);
    while (this.ahead_.delete(this.handled_ + 1n)) this.handled_++;
  }

  private fail_(offset: bigint, why: Failure) {
    const { fails_: fails } = this;
    const last = fails.length > this.told_ ? fails.at(-1) : undefined;
    if (last?.[2] == why && last[1] + 1n == offset) last[1] = offset;
    else this.ended_ += fails.push([offset, offset, why]) && 1;
    if (fails.length <= FAILURES_MAX) return;
    // The two oldest become one. Where one of them was not told yet, both are told as this.
    fails.splice(0, 2, [1n, fails[1]![1], "unknown"]);
    this.told_ = Math.max(0, this.told_ - 1);
  }

  /** How many messages the server does not know of yet, or how they ended. */
  untold_(): number {
    return Math.max(this.came_, this.ended_);
  }

  /** The next acknowledgement. */
  ack_(): Meta {
    const fails = this.failsText_(this.told_);
    this.told_ = this.fails_.length;
    this.came_ = this.ended_ = 0;
    return { "_bw.ack": `${this.received_},${this.handled_}`, ...(fails && { "_bw.nack": fails }) };
  }

  /** The server says how many messages it dropped since the session began. Returns how many of them are news. */
  miss_(sinceBeginning: number): number {
    const news = Math.max(0, sinceBeginning - this.missed_);
    this.missed_ += news;
    return news;
  }
}
