/** One connection to one server that comes back by itself, and what is sent and received over it. */

import type { Answers } from "./answers.js";
import type { Codec } from "./codec.js";
import { Conn, now } from "./conn.js";
import { BothwaysError, errorOf, textOf, tooMuch } from "./error.js";
import { isFailed, isPacked, OFFSET_MASK, ONEWAY, PUSH_BIT, type Frame, type Meta, type Said } from "./frame.js";
import { listen, type Listeners } from "./listeners.js";
import { Pushes, type Entry } from "./pushes.js";
import { ACK_MESSAGES, parseOffset, Session, type Failure } from "./session.js";
import type { Store } from "./store.js";
import type { Topics } from "./topics.js";
import type { CallOptions, Events, OnewayOptions, Options, PushHandler, Reply, State } from "./types.js";
import type { Dial } from "./wire.js";

/** How long fewer messages than {@link ACK_MESSAGES} may wait for their acknowledgement. */
const ACK_DELAY = 50;
/** A connection that stood for so long has lived: the waiting before the next one begins anew. */
const LIVED = 1000;
/** Doublings of the wait between tries, at most, and while a call waits. */
const DOUBLINGS_MAX = 20;
const WANTED_DOUBLINGS = 4;
/** The longest wait that a server may ask for: an hour. */
const AFTER_MAX = 3_600_000;
/** What a timer takes. */
const TIMER_MAX = 2 ** 31 - 1;
/** Reported errors are so far apart. */
const CALM = 1000;

/** A page whose session the next page of its tab has taken is about to be left: it waits so long before it begins another. */
const TAKEN_WAIT = 10_000;

const GOODBYE = "the server said goodbye: ";
const CAPABILITIES = "cancel,goodbye,ping,sessions,outcomes";

const DEFAULTS = {
  timeout: 30_000,
  connectTimeout: 10_000,
  connectionWait: 5000,
  reconnect: "lost" as "lost" | "always" | "never",
  backoffBase: 50,
  backoffMax: 10_000,
  heartbeat: 15_000,
  heartbeatTimeout: 10_000,
  frameBytesMax: 8 << 20,
  sendBytesMax: 16 << 20,
  callsMax: 65_536,
  queueMessagesMax: 16_384,
  queueBytesMax: 16 << 20,
  handlersMax: 16,
  onError: (error: unknown, where: string) => console.error(`bothways: ${where}:`, error),
};

/** Options with their defaults. */
export type Settings = typeof DEFAULTS & Omit<Options, keyof typeof DEFAULTS>;

/** What an entry of the package brings along. */
export interface Parts {
  /** The first one is that of arguments, and of the framework's own calls. */
  codecs: Codec[];
  dial: Dial;
}

/** A call or a oneway request on its way. */
export interface Request {
  path_: string;
  method_: string;
  meta_: Meta;
  type_: number;
  payload_: Uint8Array;
  isOneway_: boolean;
  /** When it is given up, as {@link now} counts. */
  until_: number;
  timer_?: ReturnType<typeof setTimeout>;
  conn_?: Conn;
  seq_?: bigint;
  /** Its token was refused before. */
  again_?: boolean;
  /** Once: later calls do nothing. */
  settle_(error: unknown, frame?: Frame | true): void;
}

/** Runs later; a time as a timer takes it. */
export const timer = (run: () => void, ms: number): ReturnType<typeof setTimeout> => setTimeout(run, Math.min(ms, TIMER_MAX));

/** Throws for what belongs to the framework. Operators' tools may call `_bothways.Admin`: the server checks their token. */
export function checkReserved(path: string, meta?: Meta) {
  const wrong = [path, ...Object.keys(meta ?? {})].find((name) => /^(_bw\.|__|_bothways($|\.(?!Admin$)))/.test(name));
  if (wrong) throw new TypeError(`"${wrong}" belongs to the framework`);
}

/** A code of a Goodbye after which a client stays away. */
const isForGood = (code: string | undefined) => /^(kicked|expired|revoked)$/.test(code!);

/**
 * A client of one server: what every entry of this package has. It connects with {@link connect} and comes back by itself
 * until it is closed. What else it can do is in modules of their own, which an application need not load: `handle`,
 * `subscribe`, `keepSession`, `followPage`.
 */
export class Core {
  /** @internal */
  settings_: Settings;
  /** @internal That of the framework's own calls. */
  control_: Codec;
  private codecs_: Codec[];
  private dial_: Dial;
  private state_: State = { name: "idle" };
  /** @internal */
  session_ = new Session();
  /** @internal Of events by their names, and of pushes by path and method. */
  listeners_: Listeners = new Map();
  private pushes_ = new Pushes(this);

  /** @internal What was added to it. */
  topics_?: Topics;
  /** @internal */
  answers_?: Answers;
  /** @internal */
  store_?: Store;
  /** @internal Begins to follow the page, and returns what ends that. */
  follow_?: () => () => void;
  private unfollow_?: () => void;
  /** @internal Hears where else its server says that it may go, and says where the next try goes. */
  named_?(others: string | undefined): void;
  /** @internal */
  where_?(): string;
  /** @internal It tries an address that its server named: only its own decides whether it is refused, and how long it waits. */
  isAway_?: boolean;
  /** @internal Looks at the keys of a push; true if it is dealt with. */
  keyed_?(pushes: Pushes, entry: Entry, said: Said): boolean;
  /** @internal Gives an error its value. */
  detail_?(error: BothwaysError, packed: string): void;

  /** @internal The newest connection; up or still being greeted. */
  conn_?: Conn;
  /** The connection on which the server last said which session this is. */
  private sessionConn_?: Conn;
  /** The one before, while it still brings replies although its server is about to end it. */
  private former_?: Conn;
  private waiting_ = new Set<Request>();
  private waitingBytes_ = 0;

  /** Of `connect()`: what it returned, and what settles that. */
  private first_?: Promise<void>;
  private ok_!: () => void;
  private no_!: (error: unknown) => void;
  private hasStood_ = false;
  private round_ = 0;
  private failures_ = 0;
  private hasRenewed_ = false;
  private retry_?: ReturnType<typeof setTimeout>;
  private retryAt_ = 0;
  /** @internal The server wants no try before that. */
  notBefore_ = 0;
  private ackTimer_?: ReturnType<typeof setTimeout>;
  private ackDue_ = 0;
  /** @internal The page sleeps: no connection is made. */
  isPaused_ = false;
  private reported_ = -CALM;

  constructor(/** @internal */ readonly address_: string, options: Options, parts: Parts) {
    this.settings_ = { ...DEFAULTS };
    for (const name in options) {
      const given = options[name as keyof Options];
      if (given !== undefined) (this.settings_ as Record<string, unknown>)[name] = given;
    }
    const { codec, dial } = this.settings_;
    this.control_ = parts.codecs[0]!;
    this.codecs_ = codec ? [codec, ...parts.codecs] : parts.codecs;
    this.dial_ = dial ?? parts.dial;
  }

  /** What the client does now. Changes are told by `on("state", …)`. */
  get state(): State {
    return this.state_;
  }

  /** The id of its session at the server; empty without one. */
  get sessionId(): string {
    return this.session_.sid_;
  }

  /** Calls the listener for each event of this name, and returns a function that ends that. */
  on<N extends keyof Events>(name: N, listener: (event: Events[N]) => void): () => void {
    return listen(this.listeners_, name, listener);
  }

  /** @internal What a listener throws is reported and hurts nobody else. */
  emit_(listeners: Listeners, name: string, event: unknown) {
    for (const listener of listeners.get(name) ?? []) {
      try {
        listener(event);
      } catch (error) {
        this.report_(error, `a listener of "${name}"`);
      }
    }
  }

  private tell_<N extends keyof Events>(name: N, event: Events[N]) {
    this.emit_(this.listeners_, name, event);
  }

  /**
   * Connects. Resolves when the server has let this client in. Rejects if the first try fails, unless
   * `reconnect: "always"`; later losses are told by `on("state", …)`. A client that is closed may connect again.
   */
  connect(): Promise<void> {
    if (this.first_ && this.isOn_()) return this.first_;
    const first = (this.first_ = new Promise((ok, no) => ([this.ok_, this.no_] = [ok, no])));
    first.catch(() => {});
    this.hasStood_ = this.isPaused_ = this.hasRenewed_ = false;
    this.failures_ = this.notBefore_ = 0;
    this.answers_?.announce_();
    this.unfollow_ = this.follow_?.();
    this.enter_({ name: "connecting" });
    void this.attempt_();
    return first;
  }

  /**
   * Leaves the session and ends the connection: pushes that are not handled are lost, calls under way reject as
   * `closed`. Handled pushes are acknowledged before that.
   */
  close(): void {
    this.goAway_("closed", "the client was closed");
  }

  /** Calls a method of the server. Rejects with a {@link BothwaysError}, or with the reason of its signal. */
  async call<T = unknown>(path: string, method: string, args?: unknown, options?: CallOptions): Promise<T> {
    return (await this.request<T>(path, method, args, options)).value;
  }

  /** As {@link call}, with the metadata of the reply. */
  async request<T = unknown>(path: string, method: string, args?: unknown, options: CallOptions = {}): Promise<Reply<T>> {
    checkReserved(path, options.meta);
    const frame = await this.send_(path, method, args, options);
    try {
      return { value: this.decode_(frame) as T, meta: frame.meta_ };
    } catch (error) {
      throw new BothwaysError("decode", `the reply of ${path}.${method}: ${textOf(error)}`, { cause: error });
    }
  }

  /** Sends a request that wants no reply: at most once. Resolves when it is on its way. */
  async oneway(path: string, method: string, args?: unknown, options: OnewayOptions = {}): Promise<void> {
    checkReserved(path, options.meta);
    await this.send_(path, method, args, options, true);
  }

  /**
   * Runs the handler for each push to this path and method, one after the other in the order of their arrival. A method
   * `"*"` takes those that have no handler of their own, and so does a path `"*"`. Returns a function that ends it.
   */
  onPush(path: string, method: string, handler: PushHandler): () => void {
    return listen(this.listeners_, `${path}\n${method}`, handler);
  }

  // ---- The link -----------------------------------------------------------------------------------------------------

  private enter_(state: State) {
    this.state_ = state;
    this.tell_("state", state);
  }

  /** True from `connect()` until it is closed. */
  private isOn_(): boolean {
    return !/idle|closed/.test(this.state_.name);
  }

  private async attempt_(): Promise<void> {
    const round = ++this.round_;
    const { token: ask, connectTimeout, frameBytesMax, device } = this.settings_;
    const fail = (error: unknown) => {
      if (round == this.round_) this.down_(new BothwaysError("lost", "there is no token: " + textOf(error), { cause: error }));
    };
    this.plan_(connectTimeout, () => fail("none in time"));
    let token: string | undefined;
    try {
      token = typeof ask == "function" ? await ask() : ask;
    } catch (error) {
      return fail(error);
    }
    if (round != this.round_) return;
    this.plan_();

    // As late as it can be: the page before this one may still acknowledge.
    if (!this.hasStood_) this.store_?.restore_();
    // What an earlier connection still brings does not count from here on: if it is new, it comes again.
    this.sessionConn_ = undefined;
    const hello = {
      "_bw.v": "1",
      "_bw.caps": (this.answers_ ? "calls," : "") + CAPABILITIES,
      "_bw.max": `${frameBytesMax}`,
      ...(device && { "_bw.dev": device }),
      ...(this.answers_?.methods_() ?? { "_bw.fns": "" }),
      ...this.session_.hello_(),
    };
    this.store_?.save_();
    const conn = (this.conn_ = new Conn(token ? { __AUTH: `${token}` } : {}, this.settings_, this));
    conn.open_(this.where_?.() ?? this.address_, this.dial_, hello);
  }

  /** @internal */
  welcomed_(conn: Conn, said?: Said): void {
    this.hasRenewed_ = false;
    this.sessionConn_ = conn;
    const { sid, key, res, why, code, words, off } = said ?? {};
    const had = this.session_.sid_;
    const resumed = !!(had && key && res);
    if (resumed) this.session_.resume_();
    else this.session_ = new Session(parseOffset(off));
    if (key) [this.session_.sid_, this.session_.key_] = [sid ?? "", key];
    this.session_.outcomes_ = conn.can_("outcomes");

    if (had && !resumed) {
      const lost = said ? why || "unknown" : "plain";
      this.tell_("session", { lost });
      // It was sent away while it was away: it does not begin another session.
      if (lost == "kicked" || (code == lost && isForGood(code))) return this.goAway_(lost, words);
    }
    // A listener may have closed the client.
    if (conn != this.conn_) return;

    this.store_?.save_();
    this.hasStood_ = true;
    this.enter_({ name: "connected", resumed });
    this.ok_();
    if (conn != this.conn_) return;
    this.topics_?.begin_(resumed);
    for (const request of [...this.waiting_]) this.dispatch_(request);
    this.ackSoon_();
  }

  /** @internal */
  ended_(conn: Conn, error: BothwaysError): void {
    this.answers_?.lost_(conn);
    if (conn == this.sessionConn_) this.sessionConn_ = undefined;
    if (conn != this.conn_) return;

    this.conn_ = undefined;
    const { code, retryAfter } = error;
    // Whatever happens elsewhere, the client goes on.
    if (this.isAway_) return this.down_(error, 1);
    if (!/^(unauthenticated|not_connected)$/.test(code)) return this.down_(error, retryAfter, conn);
    // The token may just have run out.
    if (code == "not_connected" || typeof this.settings_.token != "function" || this.hasRenewed_) return this.finish_(error, code);
    this.hasRenewed_ = true;
    void this.attempt_();
  }

  /** There is no connection: the next try is planned. */
  private down_(error: BothwaysError, after = 0, conn?: Conn) {
    const { reconnect, backoffBase, backoffMax } = this.settings_;
    this.round_++;
    if (now() - conn?.upSince_! >= LIVED) this.failures_ = 0;
    if (reconnect == "never" || (reconnect == "lost" && !this.hasStood_ && !after)) return this.finish_(error, error.code);

    const doublings = Math.min(this.failures_++, this.waiting_.size ? WANTED_DOUBLINGS : DOUBLINGS_MAX);
    const asked = Math.min(after, AFTER_MAX);
    this.notBefore_ = now() + asked;
    const wait = Math.round(asked + Math.random() * Math.min(backoffMax, backoffBase * 2 ** doublings));
    this.plan_(wait);
    this.enter_({ name: "reconnecting", in: wait, why: error });
  }

  /** @internal The next try is in so many milliseconds, or something else; without a number, nothing is planned. */
  plan_(wait?: number, late?: () => void) {
    clearTimeout(this.retry_);
    this.retryAt_ = late ? 0 : now() + wait!;
    if (wait! >= 0 && !this.isPaused_) this.retry_ = timer(late ?? (() => void this.attempt_()), wait!);
  }

  /** @internal Something waits for the connection, or the network is back: the next try is not later than this. */
  hurry_(most: number) {
    const wait = Math.max(this.notBefore_ - now(), 0) + Math.random() * most;
    if (now() + wait < this.retryAt_) this.plan_(wait);
  }

  /** It is over, until the application connects again. */
  private finish_(error: BothwaysError, code: string) {
    if (!this.isOn_()) return;
    this.round_++;
    this.plan_();
    clearTimeout(this.ackTimer_);
    this.unfollow_?.();

    const { conn_, former_ } = this;
    this.conn_ = this.sessionConn_ = this.ackTimer_ = undefined;
    this.enter_({ name: "closed", code, why: error });
    const closed = new BothwaysError("closed", error.message, { cause: error });
    conn_?.end_(closed);
    former_?.end_(closed);
    for (const request of this.waiting_) request.settle_(closed);
    this.topics_?.close_(closed);
    this.no_(error);
  }

  /** The server is about to end this connection: the next one is made, and this one still brings replies. */
  private detach_(conn: Conn) {
    this.ackNow_();
    this.conn_ = undefined;
    this.former_?.end_(farewell());
    this.former_ = conn;
    this.spare_(conn);
  }

  /** A connection that its server is about to end is of no use without calls. */
  private spare_(conn: Conn) {
    if (conn != this.conn_ && !conn.calls_.size) conn.end_(farewell());
  }

  private goodbye_(conn: Conn, { code, why: text, after, alt }: Said) {
    if (conn != this.conn_) return;
    if (isForGood(code)) return this.goAway_(code!, text);
    this.named_?.(alt);
    const why = new BothwaysError("closed", text || GOODBYE + code);
    this.detach_(conn);
    // Another page has taken it over: two that take it from each other would go on so for ever, and this one begins anew.
    if (code == "moved" || code == "ended") {
      this.forget_();
      this.tell_("session", { lost: code });
      if (!this.isOn_()) return;
    }
    if (code == "unauthenticated") this.renew_(why);
    else this.down_(why, Number(after) || (this.store_?.isTaken_() ? TAKEN_WAIT : 0), conn);
  }

  /** The token has run out: the next connection has another one. */
  private renew_(why: BothwaysError) {
    this.enter_({ name: "reconnecting", in: 0, why });
    if (!this.conn_ && this.state_.name == "reconnecting") void this.attempt_();
  }

  // ---- The session --------------------------------------------------------------------------------------------------

  /** For good. The server is told that nobody comes back to the session; without a connection, it keeps that for a time. */
  private goAway_(code: string, text = GOODBYE + code) {
    if (this.session_.sid_) this.sessionConn_?.say_("Leave", this.session_.ack_());
    this.forget_();
    this.finish_(new BothwaysError("closed", text), code);
  }

  private forget_() {
    this.session_ = new Session();
    this.topics_?.lost_();
    this.store_?.save_();
  }

  private ackSoon_() {
    const untold = this.session_.untold_();
    if (!untold || !this.sessionConn_) return;
    if (!this.ackTimer_) {
      this.ackDue_ = now() + ACK_DELAY;
      this.ackTimer_ = timer(() => this.ackNow_(), ACK_DELAY);
    }
    // Timers of hidden pages come late: what is due is sent with whatever happens next.
    if (untold >= ACK_MESSAGES || now() >= this.ackDue_) this.ackNow_();
  }

  /** @internal */
  ackNow_() {
    clearTimeout(this.ackTimer_);
    this.ackTimer_ = undefined;
    if (!this.sessionConn_ || !this.session_.sid_ || !this.session_.untold_()) return;
    this.sessionConn_.say_("Ack", this.session_.ack_());
    this.store_?.save_();
  }

  // ---- What comes ---------------------------------------------------------------------------------------------------

  /** @internal */
  pushed_(conn: Conn, frame: Frame): void {
    const { said_: said, method_: method } = frame;
    const isOurs = frame.isOurs_ && method != "Presence";
    if (isOurs && method == "Cancel") return this.answers_?.giveUp_(conn, said.seq, said.id);
    if (isOurs && method == "Goodbye") return this.goodbye_(conn, said);
    if (isOurs && method == "Gap" && conn == this.sessionConn_) {
      const missed = this.session_.miss_(Number(said.missed) || 0);
      this.pushes_.dropped_ += missed;
      if (missed) {
        this.tell_("gap", { missed });
        this.topics_?.gap_();
      }
    }
    // Of a later version: it is not for applications.
    if (isOurs && method != "Skip") return;

    const offset = conn.isNegotiated_ && frame.seq_ & PUSH_BIT ? frame.seq_ & OFFSET_MASK : 0n;
    if (offset) {
      if (conn != this.sessionConn_) return;
      if (!isOurs && this.session_.isNew_(offset) && !this.pushes_.hasRoom_(frame)) {
        // A resume brings it again.
        throw tooMuch();
      }
      if (!this.session_.receive_(offset)) return;
    }
    // A Skip is counted, and acknowledged with that: there is nothing to handle.
    if (isOurs) this.session_.done_(offset);
    else this.pushes_.add_(frame, this.session_, offset);
    this.ackSoon_();
  }

  /** @internal */
  done_({ session_, offset_ }: Entry, why?: Failure) {
    session_.done_(offset_, why);
    this.ackSoon_();
  }

  /** @internal */
  codec_(type: number): Codec | undefined {
    return this.codecs_.find((codec) => codec.type == type);
  }

  /** @internal The value of a frame. That of a codec which this entry does not know is given as bytes. */
  decode_(frame: Frame, codec = this.codec_(frame.type_)): unknown {
    // Nobody is asked for packed payloads, so nobody may send them.
    if (isPacked(frame)) throw new BothwaysError("decode", "it is packed");
    return codec ? codec.decode(frame.payload_) : frame.payload_;
  }

  // ---- What is sent -------------------------------------------------------------------------------------------------

  /** @internal */
  send_(path_: string, method_: string, args: unknown, options: CallOptions, isOneway_ = false): Promise<Frame> {
    const { codec = this.codecs_[0]!, meta: meta_ = {}, signal, timeout = this.settings_.timeout } = options;
    return new Promise((ok, no) => {
      signal?.throwIfAborted();
      if (!this.first_) throw new BothwaysError("not_connected", "connect() was not called");
      if (this.state_.name == "closed") throw new BothwaysError("closed", this.state_.why.message);
      let payload_: Uint8Array;
      try {
        payload_ = codec.encode(args);
      } catch (error) {
        throw new BothwaysError("encode", textOf(error), { cause: error });
      }

      const abort = () => request.settle_(signal!.reason);
      const request: Request = {
        path_, method_, meta_, payload_, isOneway_,
        type_: codec.type,
        until_: now() + timeout,
        settle_: (error, frame) => {
          clearTimeout(request.timer_);
          signal?.removeEventListener("abort", abort);
          this.unwait_(request);
          if (frame) ok(frame as Frame);
          else no(error);
          const { conn_: conn } = request;
          if (!conn) return;
          conn.giveUp_(request.seq_!);
          this.spare_(conn);
        },
      };
      signal?.addEventListener("abort", abort);
      this.dispatch_(request);
    });
  }

  /** Sends a request, or has it wait for the connection. */
  private dispatch_(request: Request) {
    const { type_, path_, method_, payload_, isOneway_ } = request;
    const { callsMax, sendBytesMax, connectionWait, backoffBase } = this.settings_;
    const { conn_: conn } = this;
    const left = request.until_ - now();
    this.unwait_(request);
    clearTimeout(request.timer_);
    request.conn_ = undefined;
    try {
      if (conn?.isUp_) {
        if (conn.calls_.size >= callsMax) throw tooMuch();
        const meta = isOneway_ ? request.meta_ : { ...request.meta_, __ServerTimeout: `${Math.max(1, Math.ceil(left))}` };
        const seq = conn.request_(isOneway_ ? ONEWAY : 0, type_, path_, method_, meta, payload_);
        if (isOneway_) return request.settle_(0, true);
        [request.conn_, request.seq_] = [conn, seq];
        conn.calls_.set(seq, request);
        const late = () => new BothwaysError("timeout", `no reply of ${path_}.${method_} in time`);
        request.timer_ = timer(() => request.settle_(late()), left);
      } else {
        if (this.waiting_.size >= callsMax || this.waitingBytes_ + payload_.length > sendBytesMax) throw tooMuch();
        this.waiting_.add(request);
        this.waitingBytes_ += payload_.length;
        const late = () => new BothwaysError("not_connected", "no connection in time");
        request.timer_ = timer(() => request.settle_(late()), Math.min(left, connectionWait));
        this.hurry_(backoffBase * 2 ** WANTED_DOUBLINGS);
      }
    } catch (error) {
      request.settle_(error);
    }
  }

  private unwait_(request: Request) {
    if (this.waiting_.delete(request)) this.waitingBytes_ -= request.payload_.length;
  }

  /** @internal */
  replied_(conn: Conn, request: Request, frame: Frame) {
    if (!isFailed(frame)) return request.settle_(0, frame);
    const error = errorOf(frame.said_);
    if (error.code == "unauthenticated" && typeof this.settings_.token == "function" && !request.again_) {
      // The token of the Hello was accepted: it has run out, and the call was not run.
      request.again_ = true;
      const isHere = conn == this.conn_;
      if (isHere) this.detach_(conn);
      this.dispatch_(request);
      return isHere ? this.renew_(error) : this.spare_(conn);
    }
    this.detail_?.(error, frame.said_.detail ?? "");
    request.settle_(error);
  }

  /** @internal */
  report_(error: unknown, where: string) {
    if (now() - this.reported_ < CALM) return;
    this.reported_ = now();
    try {
      this.settings_.onError(error, where);
    } catch {
      // There is nobody left to tell.
    }
  }
}

const farewell = () => new BothwaysError("lost", GOODBYE);
