/** A client's side of one session: the secret, the offsets, and what to acknowledge. */

import { broken, OFFSET_MASK, type Meta } from "./frame.js";

/** Why a push was not handled, as an acknowledgement says it. */
export type Failure = "no_handler" | "bad_arguments" | "error" | "superseded" | "unknown";

/** Messages after which an acknowledgement is due at once. */
export const ACK_MESSAGES = 32n;
/**
 * Runs of failed messages that are kept, for acknowledgements and for the Hello of the next connection. Of those before
 * them only that they failed is known. With so many, either stays below 1 KiB.
 */
const FAILURES_MAX = 16;

export type Run = [first: bigint, last: bigint, why: Failure];

/** A decimal number of at most 64 bits. */
export const parseOffset = (text: string | undefined): bigint =>
  /^\d{1,20}$/.test(text!) ? BigInt.asUintN(64, BigInt(text!)) : 0n;

const least = (a: bigint, b: bigint) => (a < b ? a : b);

/** Each session has its own, so that a message of an earlier one acknowledges nothing of the next. */
export class Session {
  sid_ = "";
  key_ = "";
  attempts_ = 0;
  /** The server understands how each message ended. */
  outcomes_ = false;

  received_: bigint;
  handled_: bigint;
  private ahead_ = new Set<bigint>();
  private toldReceived_: bigint;
  private toldHandled_: bigint;
  private missed_ = 0;

  fails_: Run[] = [];
  /** So many of the first ones were told on this connection. */
  private told_ = 0;

  /** Begins after an offset. */
  constructor(offset = 0n) {
    this.received_ = this.handled_ = this.toldReceived_ = this.toldHandled_ = least(offset, OFFSET_MASK);
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
    this.toldReceived_ = this.toldHandled_ = 0n;
    this.told_ = 0;
  }

  isNew_(offset: bigint): boolean {
    return offset > this.received_;
  }

  /** Counts a message that comes. False: it is here already. Throws if one before it was left out. */
  receive_(offset: bigint): boolean {
    if (!this.sid_ || !offset) return true;
    if (!this.isNew_(offset)) return false;
    if (offset != this.received_ + 1n) throw broken(`message ${offset} after ${this.received_}`);
    this.received_ = offset;
    return true;
  }

  /** The application has dealt with a message, once. */
  done_(offset: bigint, why?: Failure) {
    if (!this.sid_ || !offset) return;
    if (why && this.outcomes_) this.fail_(offset, why);
    this.ahead_.add(offset);
    while (this.ahead_.delete(this.handled_ + 1n)) this.handled_++;
  }

  private fail_(offset: bigint, why: Failure) {
    const { fails_: fails } = this;
    const last = fails.length > this.told_ ? fails.at(-1) : undefined;
    if (last?.[2] == why && last[1] + 1n == offset) last[1] = offset;
    else fails.push([offset, offset, why]);
    if (fails.length <= FAILURES_MAX) return;
    // The two oldest become one. Where one of them was not told yet, both are told as this.
    fails.splice(0, 2, [1n, fails[1]![1], "unknown"]);
    this.told_ = this.told_ < 2 ? 0 : this.told_ - 1;
  }

  /** How much the server does not know yet. */
  untold_(): bigint {
    const received = this.received_ - this.toldReceived_;
    const handled = this.handled_ - this.toldHandled_ + BigInt(this.fails_.length - this.told_);
    return received > handled ? received : handled;
  }

  /** The next acknowledgement. */
  ack_(): Meta {
    const fails = this.failsText_(this.told_);
    this.told_ = this.fails_.length;
    this.toldReceived_ = this.received_;
    this.toldHandled_ = this.handled_;
    return { "_bw.ack": `${this.received_},${this.handled_}`, ...(fails && { "_bw.nack": fails }) };
  }

  /** The server says how many messages it dropped since the session began. Returns how many of them are news. */
  miss_(sinceBeginning: number): number {
    const news = Math.max(0, sinceBeginning - this.missed_);
    this.missed_ += news;
    return news;
  }
}
