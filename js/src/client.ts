/** One connection to one server that comes back by itself, and what is sent and received over it. */

import type { Answers } from "./answers.js";
import type { Codec } from "./codec.js";
import { Conn, CONTROL, now, timer } from "./conn.js";
import { as, BothwaysError, errorOf, tooMuch, type ErrorCode } from "./error.js";
import { isFailed, isPacked, OFFSET_MASK, ONEWAY, PUSH_BIT, type Frame, type Meta, type Said } from "./frame.js";
import { listen, type Listeners } from "./listeners.js";
import { Pushes, type Entry } from "./pushes.js";
import { ACK_MESSAGES, parseOffset, Session, type Failure } from "./session.js";
import type { Store } from "./store.js";
import type { Topics } from "./topics.js";
import type { CallOptions, Events, OnewayOptions, Options, PushHandler, Reply, State } from "./types.js";
import { webSocketDial, type Dial } from "./wire.js";

/** How long fewer messages than {@link ACK_MESSAGES} may wait for their acknowledgement. */
const ACK_DELAY = 50;
/** A connection that stood for so long has lived: the waiting before the next one begins anew. */
const LIVED = 1000;
/** Doublings of the wait between tries, at most, and while a call waits. */
const DOUBLINGS_MAX = 20;
const WANTED_DOUBLINGS = 4;
/** The longest wait that a server may ask for: an hour. */
const AFTER_MAX = 3_600_000;
/** Reported errors are so far apart. */
const CALM = 1000;

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

/** A call or a oneway request on its way. */
export interface Request {
  /** Sends it, or has it wait for the connection. */
  go_(): void;
  /** Once: later calls do nothing. */
  settle_(error: unknown, frame?: Frame | true): void;
  /** Its token was refused before. */
  again_?: boolean;
}

/** Throws for what belongs to the framework. Operators' tools may call `_bothways.Admin`: the server checks their token. */
export function checkReserved(path: string, meta?: Meta) {
  const wrong = [path, ...Object.keys(meta ?? {})].find((name) => /^(_bw\.|__|_bothways($|\.(?!Admin$)))/.test(name));
  if (wrong) throw new TypeError(`"${wrong}" is reserved`);
}

/**
 * A client of one server: what every entry of this package has. It connects with {@link connect} and comes back by itself
 * until it is closed. What else it can do is in modules of their own, which an application need not load: `handle`,
 * `subscribe`, `keepSession`, `followPage`, `heedGoodbye`. They hear what happens as the application does, and beside that
 * - `_hello`: a Hello is about to be sent, with these pairs and those of the session;
 * - `_save`: the session is not what it was;
 * - `_came`, `_done`: a push is about to wait for the application; it has ended, for this reason if it failed;
 * - `_over`: a connection is;
 * - `_failed`: a call, with this error for these reasons;
 * - `_bothways`, a line break and a method: the server says that on this connection.
 */
export class Core {
  /** @internal */
  settings_: Settings;
  /** @internal That of the framework's own calls. */
  control_: Codec;
  private codecs_: Codec[];
  /** @internal */
  dial_: Dial;
  private state_: State = { name: "idle" };
  /** @internal */
  session_ = new Session();
  /** @internal Of events by their names, and of pushes by path and method. */
  listeners_: Listeners = new Map();
  /** @internal */
  pushes_ = new Pushes(this);

  /** @internal What was added to it. */
  answers_?: Answers;
  /** @internal */
  topics_?: Topics;
  /** @internal */
  store_?: Store;
  /** @internal Another address than its own, for the next try. Only its own decides whether it is refused, and how long it
   * waits. */
  other_?: string;
  /** @internal A call may have been the last one of a connection that its server is about to end. */
  spare_?(conn: Conn): void;
  /** @internal A call failed: true if it is sent again. */
  renew_?(conn: Conn, request: Request, error: BothwaysError): boolean;

  /** @internal The newest connection; up or still being made. */
  conn_?: Conn;
  /** The connection on which the server last said which session this is. */
  private sessionConn_?: Conn;
  private waiting_ = new Set<Request>();
  private waitingBytes_ = 0;

  /** Of `connect()`: what it returned, and what settles that. */
  private first_?: Promise<void>;
  private ok_!: () => void;
  private no_!: (error: unknown) => void;
  /** @internal It was connected since then. */
  hasStood_?: boolean;
  private failures_!: number;
  private hasRenewed_?: boolean;
  private retry_?: ReturnType<typeof setTimeout>;
  private retryAt_!: number;
  /** @internal The server wants no try before that. */
  notBefore_!: number;
  private ackTimer_?: ReturnType<typeof setTimeout>;
  private ackDue_!: number;
  private reported_ = -CALM;

  /** `codecs`: the first one is that of arguments, and of the framework's own calls. */
  constructor(/** @internal */ readonly address_: string, options: Options, codecs: Codec[], dial?: Dial) {
    this.settings_ = { ...DEFAULTS };
    for (const name in options) {
      const given = options[name as keyof Options];
      if (given !== undefined) (this.settings_ as Record<string, unknown>)[name] = given;
    }
    this.control_ = codecs[0]!;
    this.codecs_ = [this.settings_.codec ?? this.control_, ...codecs];
    this.dial_ = this.settings_.dial ?? dial ?? webSocketDial(options.WebSocket);
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
  emit_(listeners: Listeners, name: string, ...event: unknown[]) {
    for (const listener of listeners.get(name) ?? []) {
      try {
        listener(...event);
      } catch (error) {
        this.report_(error, `a listener of "${name}"`);
      }
    }
  }

  /** @internal */
  tell_(name: string, ...event: unknown[]) {
    this.emit_(this.listeners_, name, ...event);
  }

  /**
   * Connects. Resolves when the server has let this client in. Rejects if the first try fails, unless
   * `reconnect: "always"`; later losses are told by `on("state", …)`. A client that is closed may connect again.
   */
  connect(): Promise<void> {
    if (this.first_ && this.isOn_()) return this.first_;
    const first = (this.first_ = new Promise((ok, no) => ([this.ok_, this.no_] = [ok, no])));
    first.catch(() => {});
    this.hasStood_ = this.hasRenewed_ = false;
    this.failures_ = this.notBefore_ = 0;
    this.enter_({ name: "connecting" });
    this.attempt_();
    return first;
  }

  /**
   * Leaves the session and ends the connection: pushes that are not handled are lost, calls under way reject as
   * `closed`. Handled pushes are acknowledged before that.
   */
  close(): void {
    this.goAway_("closed", "closed");
  }

  /** Calls a method of the server. Rejects with a {@link BothwaysError}, or with the reason of its signal. */
  async call<T = unknown>(path: string, method: string, args?: unknown, options?: CallOptions): Promise<T> {
    return (await this.request<T>(path, method, args, options)).value;
  }

  /** As {@link call}, with the metadata of the reply. */
  async request<T = unknown>(path: string, method: string, args?: unknown, options: CallOptions = {}): Promise<Reply<T>> {
    checkReserved(path, options.meta);
    const frame = await this.send_(path, method, args, options);
    return as("decode", () => ({ value: this.decode_(frame) as T, meta: frame.meta_ }));
  }

  /** Sends a request that wants no reply: at most once. Resolves when it is on its way. */
  async oneway(path: string, method: string, args?: unknown, options: OnewayOptions = {}): Promise<void> {
    checkReserved(path, options.meta);
    await this.send_(path, method, args, options, ONEWAY);
  }

  /**
   * Runs the handler for each push to this path and method, one after the other in the order of their arrival. A method
   * `"*"` takes those that have no handler of their own, and so does a path `"*"`. Returns a function that ends it.
   */
  onPush(path: string, method: string, handler: PushHandler): () => void {
    return listen(this.listeners_, `${path}\n${method}`, handler);
  }

  // ---- The link -----------------------------------------------------------------------------------------------------

  /** @internal */
  enter_(state: State) {
    this.state_ = state;
    this.tell_("state", state);
  }

  /** @internal True from `connect()` until it is closed. */
  isOn_(): boolean {
    return !/idle|closed/.test(this.state_.name);
  }

  /** @internal */
  attempt_() {
    this.plan_();
    this.conn_ = new Conn(this);
    void this.conn_.open_();
  }

  /** @internal Says in a Hello who this client was. */
  greet_(hello: Meta) {
    // What an earlier connection still brings does not count from here on: if it is new, it comes again.
    this.sessionConn_ = undefined;
    this.tell_("_hello", hello);
    Object.assign(hello, this.session_.hello_());
    this.tell_("_save");
  }

  /** @internal */
  welcomed_(conn: Conn, said?: Said): void {
    this.hasRenewed_ = false;
    this.sessionConn_ = conn;
    const { sid = "", key, res, why, code, words, off } = said ?? {};
    const had = this.session_.sid_;
    const resumed = !!(had && key && res);
    if (resumed) this.session_.resume_();
    else this.session_ = new Session(parseOffset(off));
    if (key) [this.session_.sid_, this.session_.key_] = [sid, key];
    this.session_.outcomes_ = conn.can_("outcomes");

    if (had && !resumed) {
      const lost = said ? why || "unknown" : "plain";
      this.tell_("session", { lost });
      // It was sent away while it was away: it does not begin another session. With this reason `code` is one of those.
      if (lost == "kicked" || code == lost) return this.goAway_(lost, words ?? lost);
    }
    // A listener may have closed the client.
    if (conn != this.conn_) return;

    this.tell_("_save");
    this.hasStood_ = true;
    this.enter_({ name: "connected", resumed });
    this.ok_();
    for (const request of [...this.waiting_]) request.go_();
    this.ackSoon_();
  }

  /** @internal */
  ended_(conn: Conn, error: BothwaysError): void {
    this.tell_("_over", conn);
    if (conn == this.sessionConn_) this.sessionConn_ = undefined;
    if (conn != this.conn_) return;

    this.conn_ = undefined;
    const { code, retryAfter } = error;
    // Whatever happens elsewhere, the client goes on.
    if (this.other_) this.down_(error, 1);
    else if (code == "unauthenticated" && typeof this.settings_.token == "function" && !this.hasRenewed_) {
      // The token may just have run out.
      this.hasRenewed_ = true;
      this.attempt_();
    } else if (/^(unauth|not_c)/.test(code)) this.finish_(error, code);
    else this.down_(error, retryAfter, conn);
  }

  /** @internal There is no connection: the next try is planned. */
  down_(error: BothwaysError, after = 0, conn?: Conn) {
    const { reconnect, backoffBase, backoffMax } = this.settings_;
    if (now() - conn?.upSince_! >= LIVED) this.failures_ = 0;
    if (reconnect == "never" || (reconnect == "lost" && !this.hasStood_ && !after)) return this.finish_(error, error.code);

    const doublings = Math.min(this.failures_++, this.waiting_.size ? WANTED_DOUBLINGS : DOUBLINGS_MAX);
    const asked = Math.min(after, AFTER_MAX);
    this.notBefore_ = now() + asked;
    const wait = Math.round(asked + Math.random() * Math.min(backoffMax, backoffBase * 2 ** doublings));
    this.plan_(wait);
    this.enter_({ name: "reconnecting", in: wait, why: error });
  }

  /** @internal The next try is in so many milliseconds; without a number, none is planned. */
  plan_(wait?: number) {
    clearTimeout(this.retry_);
    this.retryAt_ = now() + wait!;
    if (wait! >= 0) this.retry_ = timer(wait!, () => this.attempt_());
  }

  /** @internal Something waits for the connection, or the network is back: the next try is not later than this. */
  hurry_(most: number) {
    const wait = Math.max(this.notBefore_ - now(), 0) + Math.random() * most;
    if (now() + wait < this.retryAt_) this.plan_(wait);
  }

  /** It is over, until the application connects again. */
  private finish_(error: BothwaysError, code: string) {
    if (!this.isOn_()) return;
    this.plan_();
    const { conn_ } = this;
    this.conn_ = this.sessionConn_ = undefined;
    this.enter_({ name: "closed", code, why: error });
    const closed = new BothwaysError("closed", error.message, { cause: error });
    conn_?.end_(closed);
    for (const request of this.waiting_) request.settle_(closed);
    this.no_(error);
  }

  // ---- The session --------------------------------------------------------------------------------------------------

  /** @internal For good. The server is told that nobody comes back to the session; without a connection, it keeps that for a
   * time. */
  goAway_(code: string, text: string) {
    if (this.session_.sid_) this.sessionConn_?.say_("Leave", this.session_.ack_());
    this.forget_();
    this.finish_(new BothwaysError("closed", text), code);
  }

  /** @internal */
  forget_() {
    this.session_ = new Session();
    this.tell_("_save");
  }

  private ackSoon_() {
    const untold = this.sessionConn_ && this.session_.untold_();
    if (!untold) return;
    if (!this.ackTimer_) {
      this.ackDue_ = now() + ACK_DELAY;
      this.ackTimer_ = timer(ACK_DELAY, () => this.ackNow_());
    }
    // Timers of hidden pages come late: what is due is sent with whatever happens next.
    if (untold >= ACK_MESSAGES || now() >= this.ackDue_) this.ackNow_();
  }

  /** @internal */
  ackNow_() {
    clearTimeout(this.ackTimer_);
    this.ackTimer_ = undefined;
    if (!this.sessionConn_ || !this.session_.untold_()) return;
    this.sessionConn_.say_("Ack", this.session_.ack_());
    this.tell_("_save");
  }

  // ---- What comes ---------------------------------------------------------------------------------------------------

  /** @internal */
  pushed_(conn: Conn, frame: Frame): void {
    const { said_: said, method_: method, isOurs_, payload_ } = frame;
    const name = `${CONTROL}\n${method}`;
    const isSkip = isOurs_ && method == "Skip";
    if (isOurs_ && method == "Gap" && conn == this.sessionConn_) {
      const missed = this.session_.miss_(Number(said.missed) || 0);
      this.pushes_.dropped_ += missed;
      if (missed) this.tell_("gap", { missed });
    }
    // Who is there comes with the pushes, in their order. What is of a later version is not for applications.
    if (isOurs_ && !isSkip && (method != "Presence" || !this.listeners_.has(name))) return this.tell_(name, conn, said);

    const offset = conn.isNegotiated_ && frame.seq_ & PUSH_BIT ? frame.seq_ & OFFSET_MASK : 0n;
    const { session_: session } = this;
    if (offset && (conn != this.sessionConn_ || !session.receive_(offset))) return;
    // A Skip is counted, and acknowledged with that: there is nothing to handle.
    if (isSkip) session.done_(offset);
    else if (this.pushes_.hasRoom_(payload_.length)) this.pushes_.add_(frame, session, offset);
    else if (offset) {
      // A resume brings it again.
      session.refuse_();
      throw tooMuch();
    } else this.pushes_.dropped_++;
    this.ackSoon_();
  }

  /** @internal */
  done_(entry: Entry, why?: Failure) {
    this.tell_("_done", entry, why);
    entry.session_.done_(entry.offset_, why);
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
  send_(path: string, method: string, args: unknown, options: CallOptions, flags = 0): Promise<Frame> {
    const { callsMax, sendBytesMax, connectionWait, backoffBase } = this.settings_;
    const { codec = this.codecs_[0]!, meta, signal, timeout = this.settings_.timeout } = options;
    const until = now() + timeout;
    return new Promise((ok, no) => {
      signal?.throwIfAborted();
      const { state_: state } = this;
      if (state.name == "idle") throw new BothwaysError("not_connected", "connect() was not called");
      if (state.name == "closed") throw new BothwaysError("closed", state.why.message);
      const payload = as("encode", () => codec.encode(args));
      let conn: Conn | undefined;
      let seq: bigint;
      let late: ReturnType<typeof setTimeout>;

      const rest = () => {
        clearTimeout(late);
        if (this.waiting_.delete(request)) this.waitingBytes_ -= payload.length;
      };
      const wait = (ms: number, code: ErrorCode, what: string) => {
        late = timer(ms, () => request.settle_(new BothwaysError(code, `no ${what} in time`)));
      };
      const send = (up: Conn) => {
        const left = until - now();
        const all = { ...meta, ...up.token_ };
        if (!flags) all.__ServerTimeout = `${Math.max(1, Math.ceil(left))}`;
        seq = up.request_(flags, codec.type, path, method, all, payload);
        if (flags) return request.settle_(0, true);
        conn = up;
        conn.calls_.set(seq, request);
        wait(left, "timeout", `reply of ${path}.${method}`);
      };
      const request: Request = {
        go_: () => {
          const up = this.conn_?.isUp_ && this.conn_;
          rest();
          conn = undefined;
          try {
            if ((up ? up.calls_ : this.waiting_).size >= callsMax) throw tooMuch();
            if (up) return send(up);
            if (this.waitingBytes_ + payload.length > sendBytesMax) throw tooMuch();
            this.waiting_.add(request);
            this.waitingBytes_ += payload.length;
            wait(Math.min(until - now(), connectionWait), "not_connected", "connection");
            this.hurry_(backoffBase * 2 ** WANTED_DOUBLINGS);
          } catch (error) {
            request.settle_(error);
          }
        },
        settle_: (error, frame) => {
          rest();
          signal?.removeEventListener("abort", abort);
          if (frame) ok(frame as Frame);
          else no(error);
          if (!conn) return;
          conn.giveUp_(seq);
          this.spare_?.(conn);
        },
      };
      const abort = () => request.settle_(signal!.reason);
      signal?.addEventListener("abort", abort);
      request.go_();
    });
  }

  /** @internal */
  replied_(conn: Conn, request: Request, frame: Frame) {
    if (!isFailed(frame)) return request.settle_(0, frame);
    const error = errorOf(frame.said_);
    if (this.renew_?.(conn, request, error)) return;
    this.tell_("_failed", error, frame.said_);
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
