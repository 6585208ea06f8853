/** One connection: frames in and out, numbers, pending replies, Hello, heartbeats. It knows nothing of sessions. */

import { BothwaysError, remoteCode } from "./error.js";
import {
  broken, Deframer, EMPTY, encodeFrame, HEARTBEAT, HEARTBEAT_BYTES_MAX, isFailed, isHeartbeat, isOneway, isResponse,
  join, MSGPACK_TYPE, ONEWAY, OTHER_BIT, PUSH_BIT, RAW, RESPONSE, type Frame, type FrameLimits, type Header, type Meta,
} from "./frame.js";
import type { Dial, Wire } from "./wire.js";

export const CONTROL = "_bothways";

export interface ConnOptions extends FrameLimits {
  sendBytesMax: number;
  heartbeat: number;
  heartbeatTimeout: number;
}

/** Whoever waits for a reply. */
export interface Waiter {
  reply_(frame: Frame): void;
  lost_(error: BothwaysError): void;
}

export interface ConnEvents {
  /** The Hello is answered. `meta` is `undefined` at a plain server. */
  welcomed_(conn: Conn, meta?: Meta): void;
  pushed_(conn: Conn, frame: Frame): void;
  /** Who answers the server's calls, if they were agreed on. */
  answers_?: { called_(conn: Conn, frame: Frame): void };
  /** A oneway request was too large to be read. */
  passedOver_(conn: Conn, header: Header): void;
  /** It is over, told once. */
  ended_(conn: Conn, error: BothwaysError): void;
}

export class Conn {
  private wire_: Wire;
  private deframer_: Deframer;
  private out_: Uint8Array[] = [];
  private outBytes_ = 0;
  private numbers_ = 0n;
  private oneways_ = 0n;
  private hello_ = -1n;
  private calls_ = new Map<bigint, Waiter>();
  private caps_ = new Set<string>();
  private peerMax_ = Infinity;
  private timer_?: ReturnType<typeof setInterval>;
  private lastRead_ = 0;
  private probe_ = 0;
  private ticks_ = 0;
  private patience_ = 0;

  /** The server speaks more than rpcx. */
  isNegotiated_ = false;
  /** The Hello is answered. */
  isUp_ = false;
  isOver_ = false;
  upSince_ = 0;

  /** All requests on a connection carry the token of its Hello. Throws if the address is not one. */
  constructor(
    address: string,
    dial: Dial,
    readonly token_: string,
    private options_: ConnOptions,
    hello: Meta,
    private events_: ConnEvents,
  ) {
    this.deframer_ = new Deframer(options_, (frame) => this.frame_(frame), (header) => this.tooLarge_(header));
    this.wire_ = dial(address, {
      opened: () => {
        this.hello_ = this.number_();
        this.say_(HEARTBEAT, MSGPACK_TYPE, this.hello_, "", "", this.withToken_(hello), EMPTY);
        this.flush_();
      },
      received: (bytes) => this.received_(bytes),
      closed: (why) => this.end_(new BothwaysError("lost", why)),
    });
  }

  can_(capability: string): boolean {
    return this.caps_.has(capability);
  }

  private withToken_(meta: Meta): Meta {
    return this.token_ ? { ...meta, __AUTH: this.token_ } : meta;
  }

  private number_(): bigint {
    return ++this.numbers_;
  }

  /** Calls that wait for their replies. */
  get pending_(): number {
    return this.calls_.size;
  }

  /** Sends a call. Throws if it cannot be sent; then nothing of it was. */
  call_(type: number, path: string, method: string, meta: Meta, payload: Uint8Array, waiter: Waiter): bigint {
    const seq = this.number_();
    this.put_(0, type, seq, path, method, this.withToken_(meta), payload, true);
    this.calls_.set(seq, waiter);
    return seq;
  }

  /** Sends a oneway request. Throws as {@link call_}. */
  oneway_(type: number, path: string, method: string, meta: Meta, payload: Uint8Array): void {
    this.put_(ONEWAY, type, OTHER_BIT | ++this.oneways_, path, method, this.withToken_(meta), payload, true);
  }

  /** A oneway request of the framework. */
  control_(method: string, meta: Meta): void {
    this.say_(ONEWAY, RAW, OTHER_BIT | ++this.oneways_, CONTROL, method, meta, EMPTY);
  }

  /** Sends what the framework has to say. Where it cannot, the connection is of no use: it ends, and nothing is thrown. */
  private say_(...parts: [number, number, bigint, string, string, Meta, Uint8Array]) {
    if (this.isOver_) return;
    try {
      this.put_(...parts);
    } catch (error) {
      this.end_(error as BothwaysError);
    }
  }

  /** Answers a request of the server. Throws as {@link call_}. */
  reply_(to: Frame, flags: number, type: number, meta: Meta, payload: Uint8Array): void {
    if (!this.isOver_) this.put_(RESPONSE | flags, type, to.seq_, to.path_, to.method_, meta, payload);
  }

  /** Nobody waits for this reply any more. */
  giveUp_(seq: bigint): void {
    if (this.calls_.delete(seq) && this.can_("cancel")) this.control_("Cancel", { "_bw.seq": `${seq}` });
  }

  private put_(
    flags: number, type: number, seq: bigint, path: string, method: string, meta: Meta, payload: Uint8Array, waits = false,
  ) {
    const bytes = encodeFrame(flags, type, seq, path, method, meta, payload, this.options_, this.peerMax_);
    // A server that asks much and reads nothing must not fill our memory with answers.
    if (this.wire_ && this.wire_.buffered + this.outBytes_ + bytes.length > this.options_.sendBytesMax) {
      const error = new BothwaysError("queue_full", "too much waits to be sent");
      if (!waits) this.end_(error);
      throw error;
    }
    this.out_.push(bytes);
    this.outBytes_ += bytes.length;
    // What one task of the application sends goes out in one write.
    if (this.out_.length == 1) queueMicrotask(() => this.flush_());
  }

  flush_(): void {
    const [out, length] = [this.out_, this.outBytes_];
    if (!length || this.isOver_) return;
    this.out_ = [];
    this.outBytes_ = 0;
    try {
      this.wire_.send(out.length > 1 ? join(out, length) : out[0]!);
    } catch (error) {
      this.end_(new BothwaysError("lost", "the connection takes no bytes", { cause: error }));
    }
  }

  private received_(bytes: Uint8Array) {
    if (this.isOver_) return;
    this.lastRead_ = Date.now();
    try {
      this.deframer_.feed_(bytes);
    } catch (error) {
      this.end_(error instanceof BothwaysError ? error : new BothwaysError("protocol", "a frame", { cause: error }));
    }
    this.flush_();
  }

  private frame_(frame: Frame) {
    if (this.isOver_) return;
    if (isResponse(frame)) {
      if (!isHeartbeat(frame)) return this.waiter_(frame)?.reply_(frame);
      return frame.seq_ == this.hello_ ? this.answered_(frame) : undefined;
    }

    if (isHeartbeat(frame)) {
      if (frame.payload_.length > HEARTBEAT_BYTES_MAX) throw broken("a long heartbeat");
      if (!this.can_("ping")) throw broken("a heartbeat that was not agreed on");
      return this.reply_(frame, frame.flags_ & (HEARTBEAT | ONEWAY), frame.type_, frame.meta_, frame.payload_);
    }
    if (isOneway(frame)) {
      // What names a call of the server is known here; the rest is for whoever keeps this connection.
      return this.events_.pushed_(this, frame);
    }
    const { answers_ } = this.events_;
    if (!answers_ || !this.can_("calls") || frame.seq_ < (PUSH_BIT | OTHER_BIT)) {
      throw broken("a call that was not agreed on");
    }
    answers_.called_(this, frame);
  }

  private waiter_({ seq_ }: Header): Waiter | undefined {
    const waiter = this.calls_.get(seq_);
    this.calls_.delete(seq_);
    return waiter;
  }

  private answered_(frame: Frame) {
    this.hello_ = -1n;
    const meta = frame.meta_;
    const kind = meta["_bw.err"];
    if (isFailed(frame) && kind) {
      const error = new BothwaysError(remoteCode(kind), meta["__rpcx_error__"] || "the server says no more");
      error.retryAfter = Number(meta["_bw.after"]) || 0;
      throw error;
    }
    if (meta["_bw.ok"] && !isFailed(frame)) {
      this.isNegotiated_ = true;
      this.caps_ = new Set(meta["_bw.caps"]?.split(","));
      this.peerMax_ = Number(meta["_bw.max"]) || Infinity;
    }
    this.isUp_ = true;
    this.upSince_ = Date.now();
    this.watch_();
    this.events_.welcomed_(this, this.isNegotiated_ ? meta : undefined);
  }

  private tooLarge_(header: Header) {
    if (!isResponse(header)) {
      if (isOneway(header)) return this.events_.passedOver_(this, header);
      // A call: its answer needs neither path nor method.
      const frame = { ...header, path_: "", method_: "", meta_: {}, payload_: EMPTY };
      const meta = { __rpcx_error__: "the call is larger than this client takes", "_bw.err": "bad_arguments" };
      return this.can_("calls") ? this.reply_(frame, 1, header.type_, meta, EMPTY) : undefined;
    }
    this.waiter_(header)?.lost_(new BothwaysError("too_large", "the reply is larger than this client takes", { maybeExecuted: true }));
  }

  private watch_() {
    const { heartbeat, heartbeatTimeout } = this.options_;
    if (!heartbeat) return;
    const period = Math.max(20, Math.min(5000, heartbeat / 2, heartbeatTimeout / 2));
    this.timer_ = setInterval(() => this.tick_(), period);
  }

  /** Timers of hidden and sleeping pages come late, and what has arrived is handed out after them: nobody is found dead
   * before the second tick after the question. */
  private tick_() {
    const now = Date.now();
    if (this.probe_) {
      if (this.lastRead_ >= this.probe_) this.probe_ = 0;
      else if (++this.ticks_ > 1 && now - this.probe_ >= this.patience_) {
        return this.end_(new BothwaysError("lost", "the server does not answer"));
      }
    }
    if (!this.probe_ && now - this.lastRead_ >= this.options_.heartbeat) this.probeNow_(this.options_.heartbeatTimeout);
  }

  /** Asks whether the server is there; it has so many milliseconds to send anything. */
  probeNow_(patience: number) {
    if (!this.isUp_ || this.isOver_) return;
    this.probe_ = Date.now();
    this.ticks_ = 0;
    this.patience_ = patience;
    this.say_(HEARTBEAT, RAW, this.number_(), "", "", {}, EMPTY);
  }

  /** Ends the connection; those who wait for replies hear that it was lost. */
  end_(error: BothwaysError): void {
    if (this.isOver_) return;
    this.flush_();
    // Sending may have found the end.
    if (this.isOver_) return;
    this.isOver_ = true;
    clearInterval(this.timer_);
    try {
      this.wire_?.close();
    } catch {
      // It was not open yet.
    }

    const waiters = [...this.calls_.values()];
    this.calls_.clear();
    this.events_.ended_(this, error);
    const lost = new BothwaysError("lost", `the connection was lost before the reply: ${error.message}`, {
      cause: error,
      maybeExecuted: true,
    });
    for (const waiter of waiters) waiter.lost_(lost);
  }
}
