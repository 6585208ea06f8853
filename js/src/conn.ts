/** One connection: frames in and out, numbers, pending replies, Hello, heartbeats. It knows nothing of sessions. */

import type { Run } from "./answers.js";
import type { Core, Request } from "./client.js";
import { as, BothwaysError, errorOf, textOf, tooMuch, type ErrorCode } from "./error.js";
import {
  broken, deframer, EMPTY, encodeFrame, HEARTBEAT, HEARTBEAT_BYTES_MAX, isFailed, MSGPACK_TYPE, ONEWAY, OTHER_BIT, PUSH_BIT,
  RAW, RESPONSE, type Frame, type Meta, type Parts,
} from "./frame.js";
import type { Wire } from "./wire.js";

export const CONTROL = "_bothways";

const CAPABILITIES = "cancel,ping,sessions,outcomes";
const SILENT = "the server does not answer";

/** Milliseconds, on a clock that nobody sets. */
export const now = () => performance.now();

/** What a timer takes. */
const TIMER_MAX = 2 ** 31 - 1;

/** Runs later. */
export const timer = (ms: number, run: () => void) => setTimeout(run, Math.min(ms, TIMER_MAX));
const every = (ms: number, run: () => void) => setInterval(run, Math.min(ms, TIMER_MAX));

export class Conn {
  private wire_?: Wire;
  private numbers_ = 0n;
  private hello_?: bigint | null;
  /** Calls that wait for their replies. */
  calls_ = new Map<bigint, Request>();
  /** Calls of the server that run, by their numbers. */
  runs_ = new Map<bigint, Run>();
  private caps_?: string[];
  private most_: number;
  private timer_?: ReturnType<typeof setInterval>;
  /** Steps of the timer since the server was asked whether it is there; below zero: before that. */
  private steps_!: number;
  private isOver_?: boolean;

  /** The token of its Hello, which all requests carry. */
  token_?: Meta;
  /** The server speaks more than rpcx. */
  isNegotiated_?: boolean;
  /** The Hello is answered, and the connection is not over. */
  isUp_?: boolean;
  upSince_?: number;

  constructor(private client_: Core) {
    this.most_ = client_.settings_.frameBytesMax;
  }

  /** Begins to connect. An address that is none ends it as `not_connected`. */
  async open_() {
    const { client_: client, most_ } = this;
    const { token, connectTimeout, device } = client.settings_;
    this.timer_ = every(connectTimeout, () => this.lost_("no token, or no answer in time"));
    try {
      const given = typeof token == "function" ? await token() : token;
      if (given) this.token_ = { __AUTH: `${given}` };
    } catch (error) {
      this.lost_("no token: " + textOf(error), error);
    }
    if (this.isOver_) return;

    const hello: Meta = { "_bw.v": "1", "_bw.caps": CAPABILITIES, "_bw.max": `${most_}`, "_bw.fns": "", ...(device && { "_bw.dev": device }) };
    client.greet_(hello);
    const feed = deframer(most_, (frame) => this.isOver_ || this.frame_(frame));
    const opened = () => {
      this.hello_ = this.request_(HEARTBEAT, MSGPACK_TYPE, "", "", { ...hello, ...this.token_ }, EMPTY);
    };
    const received = (bytes: Uint8Array) => {
      if (this.steps_ < 0) this.steps_ = this.rest_();
      else if (this.isUp_) this.watch_();
      feed(bytes);
    };
    this.try_(() => {
      this.wire_ = client.dial_(client.other_ || client.address_, {
        opened: () => this.try_(opened),
        received: (bytes) => this.try_(() => received(bytes)),
        closed: (why) => this.lost_(why),
      });
    }, "not_connected");
  }

  /** Does what ends the connection if it fails, and throws nothing. */
  try_(run: () => void, code: ErrorCode = "lost") {
    if (this.isOver_) return;
    try {
      as(code, run);
    } catch (error) {
      this.end_(error as BothwaysError);
    }
  }

  can_(capability: string): boolean | undefined {
    return this.caps_?.includes(capability);
  }

  /** Sends a request, and returns its number. Throws if it cannot be sent; then nothing of it was. */
  request_(flags: number, type: number, path: string, method: string, meta: Meta, payload: Uint8Array): bigint {
    const seq = (flags & ONEWAY ? OTHER_BIT : 0n) | ++this.numbers_;
    this.put_(flags, type, seq, path, method, meta, payload);
    return seq;
  }

  /** Sends what the framework has to say. Where it cannot, the connection is of no use: it ends. */
  say_(method: string, meta: Meta) {
    this.try_(() => this.request_(ONEWAY, RAW, CONTROL, method, meta, EMPTY));
  }

  /** Nobody waits for this reply any more. */
  giveUp_(seq: bigint) {
    if (this.calls_.delete(seq) && this.can_("cancel")) this.say_("Cancel", { "_bw.seq": `${seq}` });
  }

  put_(...parts: Parts) {
    const bytes = encodeFrame(this.most_, ...parts);
    if (this.wire_!.buffered + bytes.length > this.client_.settings_.sendBytesMax) throw tooMuch();
    this.wire_!.send(bytes);
  }

  private frame_(frame: Frame) {
    const { flags_: flags, type_, seq_: seq, path_, method_, meta_, payload_ } = frame;
    const { client_: client } = this;
    const isHello = flags & HEARTBEAT && seq == this.hello_;
    const call = this.calls_.get(seq);

    // What the framework says is taken out of the metadata. What a plain server says there is none of ours.
    const isBelieved = this.isNegotiated_ || isHello;
    frame.isOurs_ = !!this.isNegotiated_ && path_ == CONTROL;
    frame.meta_ = Object.create(null);
    frame.said_ = {};
    for (const key in meta_) {
      const [, prefix, name] = /^(_bw\.|__)([^]*)/.exec(key) ?? [];
      if (!prefix) frame.meta_[key] = meta_[key]!;
      else if (isBelieved || prefix == "__") frame.said_[name!] = meta_[key];
    }

    if (flags & RESPONSE) {
      if (isHello) this.answered_(frame);
      else if (this.calls_.delete(seq)) client.replied_(this, call!, frame);
    } else if (flags & HEARTBEAT && payload_.length <= HEARTBEAT_BYTES_MAX) {
      // The answer has what the heartbeat had.
      this.put_(RESPONSE | (flags & (HEARTBEAT | ONEWAY)), type_, seq, path_, method_, meta_, payload_);
    } else if ((flags & (HEARTBEAT | ONEWAY)) == ONEWAY) {
      client.pushed_(this, frame);
    } else if (!(flags & HEARTBEAT) && client.answers_ && this.can_("calls") && seq >= (PUSH_BIT | OTHER_BIT)) {
      client.answers_.called_(this, frame);
    } else {
      throw broken();
    }
  }

  private answered_(frame: Frame) {
    const { said_: said } = frame;
    this.hello_ = null;
    // A refusal without a kind is a plain server's, whatever it says.
    if (isFailed(frame) && said.err) throw errorOf(said);
    if (!isFailed(frame) && said.ok) {
      this.isNegotiated_ = true;
      this.caps_ = said.caps?.split(",");
      this.most_ = Math.min(this.most_, Number(said.max) || Infinity);
    }
    this.isUp_ = true;
    this.upSince_ = now();
    this.watch_();
    this.client_.welcomed_(this, this.isNegotiated_ ? said : undefined);
  }

  /** Steps before a silent server is asked, as a number below zero. */
  private rest_(): number {
    const { heartbeat, heartbeatTimeout } = this.client_.settings_;
    return -Math.ceil((2 * heartbeat || Infinity) / heartbeatTimeout);
  }

  /**
   * Asks a server that was silent for so many steps whether it is there, and ends the connection two steps later. Timers of
   * hidden and sleeping pages come late, and what has arrived is handed out after them: nobody is found dead sooner.
   */
  watch_(patience = this.client_.settings_.heartbeatTimeout, steps = this.rest_()) {
    clearInterval(this.timer_);
    const ask = () => this.try_(() => this.request_(HEARTBEAT, RAW, "", "", {}, EMPTY));
    const step = () => {
      if (!this.steps_) ask();
      if (++this.steps_ > 2) this.lost_(SILENT);
    };
    this.steps_ = steps;
    this.timer_ = every(patience / 2, step);
    if (!steps) step();
  }

  private lost_(why: string, cause?: unknown) {
    this.end_(new BothwaysError("lost", why, { cause }));
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
    this.client_.ended_(this, error);
    const lost = new BothwaysError("lost", error.message, { cause: error });
    for (const call of calls) call.settle_(lost);
  }
}
