/** One connection: frames in and out, numbers, pending replies, Hello, heartbeats. It knows nothing of sessions. */

import type { Answers, Run } from "./answers.js";
import type { Request } from "./client.js";
import { BothwaysError, errorOf, textOf, tooMuch, type ErrorCode } from "./error.js";
import {
  broken, deframer, EMPTY, encodeFrame, HEARTBEAT, HEARTBEAT_BYTES_MAX, isFailed, MSGPACK_TYPE, ONEWAY, OTHER_BIT, PUSH_BIT,
  RAW, RESPONSE, type Frame, type Meta, type Parts, type Said,
} from "./frame.js";
import type { Dial, Wire, WireEvents } from "./wire.js";

export const CONTROL = "_bothways";

/** A connection is looked after so often, in milliseconds, or more often if its heartbeats are, but not more than that. */
const TICK = 5000;
const TICK_MIN = 20;

const SILENT = "the server does not answer";

/** Milliseconds, on a clock that nobody sets. */
export const now = () => performance.now();

export interface ConnOptions {
  frameBytesMax: number;
  sendBytesMax: number;
  connectTimeout: number;
  heartbeat: number;
  heartbeatTimeout: number;
}

export interface ConnEvents {
  /** The Hello is answered. `meta` is `undefined` at a plain server. */
  welcomed_(conn: Conn, said?: Said): void;
  replied_(conn: Conn, request: Request, frame: Frame): void;
  pushed_(conn: Conn, frame: Frame): void;
  /** Who answers the server's calls, if they were agreed on. */
  answers_?: Answers;
  /** A server that lets nobody in may name others. */
  named_?(others: string | undefined): void;
  /** It is over, told once. */
  ended_(conn: Conn, error: BothwaysError): void;
}

export class Conn {
  private wire_?: Wire;
  private numbers_ = 0n;
  private hello_ = -1n;
  /** Calls that wait for their replies. */
  calls_ = new Map<bigint, Request>();
  /** Calls of the server that run, by their numbers. */
  runs_ = new Map<bigint, Run>();
  private caps_: string[] = [];
  private most_: number;
  private timer_?: ReturnType<typeof setInterval>;
  private lastRead_ = 0;
  private probe_ = 0;
  private ticks_ = 0;
  private isOver_ = false;

  /** The server speaks more than rpcx. */
  isNegotiated_ = false;
  /** The Hello is answered, and the connection is not over. */
  isUp_ = false;
  upSince_ = Infinity;

  /** All requests on a connection carry the token of its Hello. */
  constructor(private token_: Meta, private options_: ConnOptions, private events_: ConnEvents) {
    this.most_ = options_.frameBytesMax;
  }

  /** Begins to connect. An address that is none ends it as `not_connected`. */
  open_(address: string, dial: Dial, hello: Meta) {
    const { connectTimeout, frameBytesMax } = this.options_;
    const feed = deframer(frameBytesMax, (frame) => this.isOver_ || this.frame_(frame));
    this.timer_ = setTimeout(() => this.lost_(SILENT), connectTimeout);
    const events: WireEvents = {
      opened: () => this.try_(() => (this.hello_ = this.request_(HEARTBEAT, MSGPACK_TYPE, "", "", hello, EMPTY))),
      received: (bytes) => {
        this.lastRead_ = now();
        this.try_(() => feed(bytes));
      },
      closed: (why) => this.lost_(why),
    };
    this.try_(() => (this.wire_ = dial(address, events)), "not_connected");
  }

  /** Does what ends the connection if it fails, and throws nothing. */
  private try_(run: () => void, code: ErrorCode = "lost") {
    if (this.isOver_) return;
    try {
      run();
    } catch (error) {
      this.end_(error instanceof BothwaysError ? error : new BothwaysError(code, textOf(error), { cause: error }));
    }
  }

  can_(capability: string): boolean {
    return this.caps_.includes(capability);
  }

  /** Sends a request with the token, and returns its number. Throws if it cannot be sent; then nothing of it was. */
  request_(flags: number, type: number, path: string, method: string, meta: Meta, payload: Uint8Array): bigint {
    const seq = (flags & ONEWAY ? OTHER_BIT : 0n) | ++this.numbers_;
    this.put_(flags, type, seq, path, method, { ...meta, ...this.token_ }, payload);
    return seq;
  }

  /** Sends what the framework has to say. Where it cannot, the connection is of no use: it ends. */
  say_(method: string, meta: Meta) {
    this.try_(() => this.put_(ONEWAY, RAW, OTHER_BIT | ++this.numbers_, CONTROL, method, meta, EMPTY));
  }

  /** Answers a request of the server. Throws as {@link request_}. */
  reply_({ seq_, path_, method_ }: Frame, flags: number, type: number, meta: Meta, payload: Uint8Array) {
    this.put_(RESPONSE | flags, type, seq_, path_, method_, meta, payload);
  }

  /** Nobody waits for this reply any more. */
  giveUp_(seq: bigint) {
    if (this.calls_.delete(seq) && this.can_("cancel")) this.say_("Cancel", { "_bw.seq": `${seq}` });
  }

  private put_(...parts: Parts) {
    const bytes = encodeFrame(this.most_, ...parts);
    if (this.wire_!.buffered + bytes.length > this.options_.sendBytesMax) throw tooMuch();
    this.wire_!.send(bytes);
  }

  /** Takes out of its metadata what the framework says. What a plain server says there is none of ours. */
  private part_(frame: Frame, isBelieved: boolean) {
    const all = frame.meta_;
    frame.meta_ = Object.create(null);
    frame.said_ = {};
    for (const key in all) {
      const [, prefix, name] = /^(_bw\.|__)([^]*)/.exec(key) ?? [];
      if (!prefix) frame.meta_[key] = all[key]!;
      else if (isBelieved || prefix == "__") frame.said_[name!] = all[key];
    }
    frame.isOurs_ = isBelieved && frame.path_ == CONTROL;
  }

  private frame_(frame: Frame) {
    const { flags_: flags, seq_: seq, payload_: payload } = frame;
    const { answers_ } = this.events_;
    const isHello = !!(flags & HEARTBEAT) && seq == this.hello_;
    // The answer to a heartbeat has what the heartbeat had.
    if (flags & RESPONSE || !(flags & HEARTBEAT)) this.part_(frame, this.isNegotiated_ || isHello);
    if (flags & RESPONSE) {
      if (flags & HEARTBEAT) return isHello ? this.answered_(frame) : undefined;
      const call = this.calls_.get(seq);
      this.calls_.delete(seq);
      if (call) this.events_.replied_(this, call, frame);
    } else if (flags & HEARTBEAT && this.can_("ping") && payload.length <= HEARTBEAT_BYTES_MAX) {
      this.reply_(frame, flags & (HEARTBEAT | ONEWAY), frame.type_, frame.meta_, payload);
    } else if ((flags & (HEARTBEAT | ONEWAY)) == ONEWAY) {
      // What names a call of the server is known here; the rest is for whoever keeps this connection.
      this.events_.pushed_(this, frame);
    } else if (!(flags & HEARTBEAT) && answers_ && this.can_("calls") && seq >= (PUSH_BIT | OTHER_BIT)) {
      answers_.called_(this, frame);
    } else {
      throw broken("what was not agreed on");
    }
  }

  private answered_(frame: Frame) {
    const { said_: said } = frame;
    this.hello_ = -1n;
    if (isFailed(frame)) {
      // Without a kind it is a plain server, whatever it says.
      if (said.err) {
        this.events_.named_?.(said.alt);
        throw errorOf(said);
      }
    } else if (said.ok) {
      this.isNegotiated_ = true;
      this.caps_ = (said.caps ?? "").split(",");
      this.most_ = Math.min(this.most_, Number(said.max) || Infinity);
    }
    this.isUp_ = true;
    this.upSince_ = now();
    this.watch_();
    this.events_.welcomed_(this, this.isNegotiated_ ? said : undefined);
  }

  /** Looks after the connection every so many milliseconds. */
  private watch_(period = Math.min(TICK, this.options_.heartbeat / 2 || TICK)) {
    clearInterval(this.timer_);
    this.timer_ = setInterval(() => this.tick_(), Math.max(TICK_MIN, period));
  }

  private tick_() {
    const { heartbeat, heartbeatTimeout } = this.options_;
    // Timers of hidden and sleeping pages come late, and what has arrived is handed out after them: nobody is found dead
    // before the second tick after the question.
    if (this.probe_ > this.lastRead_) return ++this.ticks_ > 1 ? this.lost_(SILENT) : undefined;
    if (this.probe_) this.watch_();
    this.probe_ = 0;
    if (heartbeat && now() - this.lastRead_ >= heartbeat) this.probeNow_(heartbeatTimeout);
  }

  /** Asks whether the server is there; it has so many milliseconds to send anything. */
  probeNow_(patience: number) {
    if (!this.isUp_) return;
    this.probe_ = now();
    this.ticks_ = 0;
    this.watch_(patience / 2);
    this.try_(() => this.put_(HEARTBEAT, RAW, ++this.numbers_, "", "", {}, EMPTY));
  }

  private lost_(why: string) {
    this.end_(new BothwaysError("lost", why));
  }

  /** Ends the connection; those who wait for replies hear that it was lost. */
  end_(error: BothwaysError) {
    if (this.isOver_) return;
    this.isOver_ = true;
    this.isUp_ = false;
    clearInterval(this.timer_);
    this.wire_?.close();

    const calls = [...this.calls_.values()];
    this.calls_.clear();
    this.events_.ended_(this, error);
    const lost = new BothwaysError("lost", `before the reply: ${error.message}`, { cause: error });
    for (const call of calls) call.settle_(lost);
  }
}
