/** One connection to one server that comes back by itself, and what is sent and received over it. */

import { gunzip, raw, type Codec } from "./codec.js";
import { Conn, CONTROL, type ConnEvents } from "./conn.js";
import { Emitter } from "./emitter.js";
import { BothwaysError, remoteCode, textOf } from "./error.js";
import { compression, GZIP, isFailed, MSGPACK_TYPE, OFFSET_MASK, PUSH_BIT, type Frame, type Header, type Meta } from "./frame.js";
import type { Answers } from "./answers.js";
import { Pushes } from "./pushes.js";
import { ACK_MESSAGES, Session, type Failure } from "./session.js";
import type { Store } from "./store.js";
import type { Topics } from "./topics.js";
import type { CallOptions, CoreOptions, Events, OnewayOptions, PushHandler, Reply, State } from "./types.js";
import type { Dial } from "./wire.js";

/** How long fewer messages than {@link ACK_MESSAGES} may wait for their acknowledgement. */
const ACK_DELAY = 50;
/** A connection that stood for so long has lived: the waiting before the next one begins anew. */
const LIVED = 1000;
/** Doublings of the wait between tries while a call waits. */
const WANTED_DOUBLINGS = 4;
/** Connections that their servers are about to end, and how long such a one stays at most. */
const LEAVING_MAX = 2;
const LEAVING_TIME = 600_000;
/** The longest wait that a server may ask for: an hour. */
const AFTER_MAX = 3_600_000;
/** What a timer takes. */
const TIMER_MAX = 2 ** 31 - 1;
/** Most bytes of the names of the methods that the server may call. */
const METHODS_BYTES_MAX = 4096;
/** Reported errors are so far apart. */
const CALM = 1000;

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
  probeTimeout: 3000,
  frameBytesMax: 8 << 20,
  metaBytesMax: 64 << 10,
  metaPairsMax: 128,
  unpackedBytesMax: 32 << 20,
  sendBytesMax: 16 << 20,
  callsMax: 65_536,
  queueMessagesMax: 16_384,
  queueBytesMax: 16 << 20,
  handlersMax: 16,
  membersMax: 10_000,
};

/** Options with their defaults. */
export type Settings = typeof DEFAULTS & Omit<CoreOptions, keyof typeof DEFAULTS>;

/** What an entry of the package brings along. */
export interface Parts {
  /** The first one is that of arguments, and of the framework's own calls. */
  codecs: Codec[];
  dial: Dial;
}

/** A call or a oneway request on its way. */
interface Request {
  path: string;
  method: string;
  meta: Meta;
  type: number;
  payload: Uint8Array;
  oneway: boolean;
  /** When it is given up, in milliseconds since 1970. */
  until: number;
  timer?: ReturnType<typeof setTimeout>;
  conn?: Conn;
  seq?: bigint;
  /** Its token was refused before. */
  again?: boolean;
  settle(error: unknown, frame?: Frame): void;
}

/** A time as a timer takes it. */
const timer = (run: () => void, ms: number) => setTimeout(run, Math.min(Math.max(0, ms), TIMER_MAX));

/** The one path of the framework that applications may call: operators' tools, whose token the server checks. */
const ADMIN = CONTROL + ".Admin";

export const checkReserved = (path: string, meta?: Meta) => {
  if (path != ADMIN && (path == CONTROL || path.startsWith(CONTROL + "."))) throw new TypeError(`"${path}" belongs to the framework`);
  for (const key in meta) if (/^(_bw\.|__)/.test(key)) throw new TypeError(`"${key}" belongs to the framework`);
};

/**
 * A client of one server: what every entry of this package has. It connects with {@link connect} and comes back by itself
 * until it is closed. What else it can do is in modules of their own, which an application need not load: `handle`,
 * `subscribe`, `keepSession`.
 */
export class Core implements ConnEvents {
  /** @internal */
  settings_: Settings;
  /** @internal That of the framework's own calls. */
  control_: Codec;
  private codecs_: Codec[];
  private dial_: Dial;
  /** @internal */
  emitter_: Emitter<Events>;
  private state_: State = { name: "idle" };
  /** @internal */
  session_ = new Session();
  private pushes_: Pushes;

  /** @internal What was added to it. */
  topics_?: Topics;
  /** @internal */
  answers_?: Answers;
  /** @internal */
  store_?: Store;

  /** @internal The newest connection; up or still being greeted. */
  conn_?: Conn;
  /** The connection on which the server last said which session this is. */
  private sessionConn_?: Conn;
  /** With the timer that ends each at last. */
  private leaving_ = new Map<Conn, ReturnType<typeof setTimeout> | undefined>();
  private waiting_ = new Set<Request>();
  private waitingBytes_ = 0;

  private first_?: { promise: Promise<void>; ok(): void; no(error: unknown): void };
  private hasStood_ = false;
  private round_ = 0;
  private failures_ = 0;
  private hasRenewed_ = false;
  private retry_?: ReturnType<typeof setTimeout>;
  private retryAt_ = 0;
  private notBefore_ = 0;
  private helloTimer_?: ReturnType<typeof setTimeout>;
  private ackTimer_?: ReturnType<typeof setTimeout>;
  private ackDue_ = 0;
  private isPaused_ = false;
  private unhook_: (() => void)[] = [];
  private reported_ = 0;

  constructor(/** @internal */ readonly address_: string, options: CoreOptions, parts: Parts) {
    const given = Object.fromEntries(Object.entries(options).filter(([, value]) => value !== undefined));
    this.settings_ = { ...DEFAULTS, ...given } as Settings;
    const codec = this.settings_.codec;
    this.control_ = parts.codecs[0]!;
    this.codecs_ = [...(codec ? [codec] : []), ...parts.codecs, raw()];
    this.dial_ = this.settings_.dial ?? parts.dial;
    this.emitter_ = new Emitter<Events>(this);
    this.pushes_ = new Pushes(this);
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
    return this.emitter_.on_(name, listener);
  }

  /**
   * Connects. Resolves when the server has let this client in. Rejects if the first try fails, unless
   * `reconnect: "always"`; later losses are told by `on("state", …)`. A client that is closed may connect again.
   */
  connect(): Promise<void> {
    if (this.first_ && this.state_.name != "closed") return this.first_.promise;
    let [ok, no] = [() => {}, (_: unknown) => {}];
    const promise = new Promise<void>((yes, not) => ([ok, no] = [yes, not]));
    promise.catch(() => {});
    this.first_ = { promise, ok, no };
    this.hasStood_ = this.isPaused_ = this.hasRenewed_ = false;
    this.failures_ = 0;
    this.answers_?.announce_();
    this.store_?.restore_();
    this.hookPage_();
    this.enter_({ name: "connecting" });
    void this.attempt_();
    return promise;
  }

  /**
   * Leaves the session and ends the connection: pushes that are not handled are lost, calls under way reject as
   * `closed`. Handled pushes are acknowledged before that.
   */
  close(): void {
    const conn = this.conn_;
    if (conn?.isUp_ && conn == this.sessionConn_ && this.session_.sid_) this.leaveSession_(conn);
    this.forgetSession_();
    this.finish_(new BothwaysError("closed", "the client was closed"), "closed");
  }

  /** Calls a method of the server. Rejects with a {@link BothwaysError}, or with the reason of its signal. */
  async call<T = unknown>(path: string, method: string, args?: unknown, options: CallOptions = {}): Promise<T> {
    return (await this.request<T>(path, method, args, options)).value;
  }

  /** As {@link call}, with the metadata of the reply. */
  async request<T = unknown>(path: string, method: string, args?: unknown, options: CallOptions = {}): Promise<Reply<T>> {
    checkReserved(path, options.meta);
    const frame = await this.send_(path, method, args, options, false);
    try {
      return { value: (await this.value_(frame!)) as T, meta: visible(frame!.meta_) };
    } catch (error) {
      throw new BothwaysError("decode", `the reply of ${path}.${method}: ${textOf(error)}`, { cause: error, maybeExecuted: true });
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
    return this.pushes_.on_(path, method, handler);
  }

  // ---- The link -----------------------------------------------------------------------------------------------------

  private enter_(state: State) {
    this.state_ = state;
    this.emitter_.emit_("state", state);
  }

  private async attempt_(): Promise<void> {
    const round = ++this.round_;
    clearTimeout(this.retry_);
    this.retry_ = undefined;
    const { token: ask, connectTimeout } = this.settings_;

    let token = "";
    try {
      token = typeof ask == "function" ? await within(ask, connectTimeout) : (ask ?? "");
    } catch (error) {
      if (round == this.round_) this.down_(new BothwaysError("lost", "there is no token: " + textOf(error), { cause: error }));
      return;
    }
    if (round != this.round_) return;

    // What an earlier connection still brings does not count from here on: if it is new, it comes again.
    this.sessionConn_ = undefined;
    const hello = {
      "_bw.v": "1",
      "_bw.caps": (this.answers_ ? "calls," : "") + CAPABILITIES,
      "_bw.max": `${this.settings_.frameBytesMax}`,
      ...this.methods_(),
      ...this.session_.hello_(),
    };
    this.store_?.save_();
    let conn: Conn;
    try {
      conn = new Conn(this.address_, this.dial_, token, this.settings_, hello, this);
    } catch (error) {
      return this.finish_(new BothwaysError("not_connected", textOf(error), { cause: error }), "not_connected");
    }
    if (conn.isOver_) return this.down_(new BothwaysError("lost", "the connection ended at once"));
    this.conn_ = conn;
    const late = () => conn.end_(new BothwaysError("lost", `no answer within ${connectTimeout} ms`));
    this.helloTimer_ = timer(late, connectTimeout);
  }

  /** The methods that the server may call; presence, which is MessagePack, is one of them. Too many are not named: then it
   * may call any. */
  private methods_(): Meta {
    const presence = this.topics_ && this.control_.type == MSGPACK_TYPE ? [CONTROL + ".Presence"] : [];
    const names = [...(this.answers_?.handlers_.keys() ?? []), ...presence].join(",");
    return names.length > METHODS_BYTES_MAX || /[^\x20-\x7e]/.test(names) ? {} : { "_bw.fns": names };
  }

  welcomed_(conn: Conn, meta?: Meta): void {
    if (conn != this.conn_) return conn.end_(new BothwaysError("closed", "another connection took its place"));
    clearTimeout(this.helloTimer_);
    this.hasRenewed_ = false;
    const had = this.session_.sid_;
    const resumed = this.session_.welcome_(meta ?? {}, conn.can_("outcomes"));
    this.sessionConn_ = conn;

    if (had && !resumed) {
      const lost = meta ? meta["_bw.why"] || "unknown" : "plain";
      this.emitter_.emit_("session", { lost });
      const code = meta?.["_bw.code"];
      if (lost == "kicked" || (code == lost && isForGood(code))) {
        // It was sent away while it was away: it does not begin another session.
        this.leaveSession_(conn);
        this.forgetSession_();
        return this.finish_(new BothwaysError("closed", meta?.["_bw.words"] || `the server sent this client away: ${lost}`), lost);
      }
    }
    // A listener may have closed the client.
    if (conn != this.conn_) return;

    this.store_?.save_();
    this.hasStood_ = true;
    this.enter_({ name: "connected", resumed });
    this.first_?.ok();
    if (conn != this.conn_) return;
    this.topics_?.begin_(resumed);
    for (const request of [...this.waiting_]) this.dispatch_(request);
    this.ackSoon_();
  }

  ended_(conn: Conn, error: BothwaysError): void {
    this.answers_?.lost_(conn);
    clearTimeout(this.leaving_.get(conn));
    this.leaving_.delete(conn);
    if (conn == this.sessionConn_) this.sessionConn_ = undefined;
    if (conn != this.conn_) return;

    this.conn_ = undefined;
    clearTimeout(this.helloTimer_);
    if (conn.isUp_) {
      if (Date.now() - conn.upSince_ >= LIVED) this.failures_ = 0;
    } else if (error.code == "unauthenticated") {
      // The token may just have run out.
      if (typeof this.settings_.token == "function" && !this.hasRenewed_) {
        this.hasRenewed_ = true;
        return void this.attempt_();
      }
      return this.finish_(error, "unauthenticated");
    }
    this.down_(error, error.retryAfter);
  }

  /** There is no connection: the next try is planned. */
  private down_(error: BothwaysError, after = 0) {
    const { reconnect, backoffBase, backoffMax } = this.settings_;
    this.round_++;
    if (reconnect == "never" || (reconnect == "lost" && !this.hasStood_ && !after)) return this.finish_(error, error.code);

    const doublings = this.waiting_.size ? Math.min(this.failures_, WANTED_DOUBLINGS) : this.failures_;
    const most = Math.min(backoffMax, backoffBase * 2 ** Math.min(doublings, 20));
    this.failures_++;
    const asked = Math.min(after, AFTER_MAX);
    this.notBefore_ = Date.now() + asked;
    const wait = Math.round(asked + Math.random() * most);
    this.plan_(wait);
    this.enter_({ name: "reconnecting", in: wait, why: error });
  }

  private plan_(wait: number) {
    clearTimeout(this.retry_);
    this.retryAt_ = Date.now() + wait;
    this.retry_ = timer(() => void this.attempt_(), wait);
  }

  /** Something waits for the connection, or the network is back: the next try is not later than this. */
  private hurry_(most: number) {
    if (!this.retry_ || this.isPaused_) return;
    const wait = Math.max(this.notBefore_ - Date.now(), 0) + Math.random() * most;
    if (Date.now() + wait < this.retryAt_) this.plan_(wait);
  }

  /** It is over, until the application connects again. */
  private finish_(error: BothwaysError, code: string) {
    if (this.state_.name == "closed" || this.state_.name == "idle") return;
    this.round_++;
    clearTimeout(this.retry_);
    clearTimeout(this.helloTimer_);
    clearTimeout(this.ackTimer_);
    this.retry_ = this.ackTimer_ = undefined;
    for (const undo of this.unhook_.splice(0)) undo();

    const conns = [this.conn_, ...this.leaving_.keys()];
    this.conn_ = this.sessionConn_ = undefined;
    this.enter_({ name: "closed", code, why: error });
    const closed = new BothwaysError("closed", error.message, { cause: error });
    for (const conn of conns) conn?.end_(closed);
    for (const request of [...this.waiting_]) request.settle(closed);
    this.topics_?.close_(closed);
    this.first_?.no(error);
  }

  /** The server is about to end this connection: the next one is made, and this one still brings replies. */
  private detach_(conn: Conn) {
    this.ackNow_();
    conn.flush_();
    this.conn_ = undefined;
    if (Date.now() - conn.upSince_ >= LIVED) this.failures_ = 0;
    const done = new BothwaysError("lost", "the server said goodbye");
    if (!conn.pending_) return conn.end_(done);
    this.leaving_.set(conn, timer(() => conn.end_(done), LEAVING_TIME));
    for (const oldest of this.leaving_.keys()) if (this.leaving_.size > LEAVING_MAX) oldest.end_(done);
  }

  private goodbye_(conn: Conn, meta: Meta) {
    if (conn != this.conn_) return;
    const code = meta["_bw.code"] ?? "";
    const why = new BothwaysError("closed", meta["_bw.why"] || `the server said goodbye: ${code}`);
    if (isForGood(code)) {
      this.ackNow_();
      this.forgetSession_();
      return this.finish_(why, code);
    }

    this.detach_(conn);
    // Another tab that has a copy of this session has taken it over: two that take it from each other would go on so for
    // ever, and this one begins anew.
    if (code == "moved" || code == "ended") {
      this.forgetSession_();
      this.emitter_.emit_("session", { lost: code });
      if (this.state_.name == "closed") return;
    }
    if (code == "unauthenticated") return this.renew_(why);
    this.down_(why, Number(meta["_bw.after"]) || 0);
  }

  /** The token has run out: the next connection has another one. */
  private renew_(why: BothwaysError) {
    this.enter_({ name: "reconnecting", in: 0, why });
    if (!this.conn_ && this.state_.name == "reconnecting") void this.attempt_();
  }

  // ---- The session --------------------------------------------------------------------------------------------------

  private leaveSession_(conn: Conn) {
    this.ackNow_();
    const { received_, handled_ } = this.session_;
    // Where there is no room for it, the server keeps the session for its resume window.
    conn.control_("Leave", { "_bw.ack": `${received_},${handled_}` });
  }

  private forgetSession_() {
    this.session_.lose_();
    this.topics_?.lost_();
    this.store_?.save_();
  }

  private ackSoon_() {
    const untold = this.session_.untold_();
    if (!untold || !this.sessionConn_) return;
    // Timers of hidden pages come late: what is due is sent with whatever happens next.
    if (untold >= ACK_MESSAGES || (this.ackTimer_ && Date.now() >= this.ackDue_)) return this.ackNow_();
    if (this.ackTimer_) return;
    this.ackDue_ = Date.now() + ACK_DELAY;
    this.ackTimer_ = timer(() => this.ackNow_(), ACK_DELAY);
  }

  private ackNow_() {
    clearTimeout(this.ackTimer_);
    this.ackTimer_ = undefined;
    const conn = this.sessionConn_;
    if (!conn?.isUp_ || conn.isOver_) return;
    let any = false;
    for (let meta; (meta = this.session_.ack_()); any = true) conn.control_("Ack", meta);
    if (any) this.store_?.save_();
  }

  // ---- What comes ---------------------------------------------------------------------------------------------------

  pushed_(conn: Conn, frame: Frame): void {
    const { meta_: meta } = frame;
    if (conn.isNegotiated_ && frame.path_ == CONTROL && frame.method_ != "Presence") {
      switch (frame.method_) {
        case "Cancel":
          return this.answers_?.giveUp_(conn, meta["_bw.seq"], meta["_bw.id"]);
        case "Goodbye":
          return this.goodbye_(conn, meta);
        case "Skip": {
          // Counted, and acknowledged with that: there is nothing to handle.
          const offset = this.receive_(conn, frame, true);
          if (offset) this.session_.done_(this.session_.epoch_, offset);
          return this.ackSoon_();
        }
        case "Gap": {
          if (conn != this.sessionConn_) return;
          const missed = this.session_.miss_(Number(meta["_bw.missed"]) || 0);
          if (!missed) return;
          this.dropped_(missed);
          this.topics_?.gap_();
        }
      }
      // Of a later version: it is not for applications.
      return;
    }

    const size = frame.payload_.length + 256;
    const offset = this.receive_(conn, frame, this.pushes_.hasRoom_(size));
    if (offset === null) return;
    this.pushes_.add_(frame, size, {
      epoch: this.session_.epoch_,
      offset,
      // Only of a server that knows of topics: what others send in these pairs is theirs.
      isNegotiated: conn.isNegotiated_,
      hasSession: !!this.session_.sid_,
    });
    this.ackSoon_();
  }

  /** The offset of a message that is new, 0 if it is not tracked; `null` if it is here already. */
  private receive_(conn: Conn, header: Header, hasRoom: boolean): bigint | null {
    const isTracked = !!(header.seq_ & PUSH_BIT) && (header.seq_ & OFFSET_MASK) != 0n && conn.isNegotiated_;
    if (!isTracked) return 0n;
    if (conn != this.sessionConn_) return null;
    // A resume brings it again.
    if (!hasRoom && this.session_.isNew_(header.seq_)) {
      throw new BothwaysError("queue_full", "too many pushes wait for the application");
    }
    return this.session_.receive_(header.seq_);
  }

  passedOver_(conn: Conn, header: Header): void {
    const offset = this.receive_(conn, header, true);
    if (offset === null) return;
    // To send it again would be of no use.
    this.session_.done_(this.session_.epoch_, offset, "bad_arguments");
    this.dropped_(1);
    this.ackSoon_();
  }

  private dropped_(missed: number) {
    this.pushes_.dropped_ += missed;
    this.emitter_.emit_("gap", { missed });
  }

  /** @internal */
  done_(epoch: number, offset: bigint, why?: Failure) {
    this.session_.done_(epoch, offset, why);
    this.ackSoon_();
  }

  /** @internal */
  codec_(type: number): Codec | undefined {
    return this.codecs_.find((codec) => codec.type == type);
  }

  /** @internal */
  unpack_(frame: Frame): Uint8Array | Promise<Uint8Array> {
    const packed = compression(frame);
    if (!packed || !frame.payload_.length) return frame.payload_;
    if (packed != GZIP) throw new BothwaysError("decode", "a payload is packed in an unknown way");
    return gunzip(frame.payload_, this.settings_.unpackedBytesMax);
  }

  /** @internal A payload of a codec that this entry does not know is given as bytes. */
  decode_(bytes: Uint8Array, type: number): unknown {
    const codec = this.codec_(type);
    return codec ? codec.decode(bytes) : bytes;
  }

  /** @internal */
  async value_(frame: Frame): Promise<unknown> {
    return this.decode_(await this.unpack_(frame), frame.type_);
  }

  // ---- What is sent -------------------------------------------------------------------------------------------------

  /** @internal Calls `_bothways`. */
  async ask_(method: string, args: object): Promise<any> {
    const codec = this.control_;
    const frame = await this.send_(CONTROL, method, args, { codec }, false);
    return codec.decode(await this.unpack_(frame!));
  }

  private send_(path: string, method: string, args: unknown, options: CallOptions, oneway: boolean): Promise<Frame | undefined> {
    const { codec = this.codecs_[0]!, meta = {}, signal, timeout = this.settings_.timeout } = options;
    if (signal?.aborted) return Promise.reject(signal.reason);
    if (this.state_.name == "idle" || this.state_.name == "closed") {
      const why = this.state_.name == "idle" ? "connect() was not called" : this.state_.why.message;
      return Promise.reject(new BothwaysError(this.state_.name == "idle" ? "not_connected" : "closed", why));
    }

    let payload: Uint8Array;
    try {
      payload = codec.encode(args);
    } catch (error) {
      return Promise.reject(new BothwaysError("encode", textOf(error), { cause: error }));
    }

    return new Promise((ok, no) => {
      const abort = () => {
        give();
        request.settle(signal!.reason);
      };
      const give = () => {
        if (request.conn && request.seq !== undefined) request.conn.giveUp_(request.seq);
      };
      const request: Request = {
        path, method, meta, payload, oneway,
        type: codec.type,
        until: Date.now() + timeout,
        settle: (error, frame) => {
          clearTimeout(request.timer);
          signal?.removeEventListener("abort", abort);
          this.unwait_(request);
          // Also after it is settled: this does nothing then.
          if (error) no(error);
          else ok(frame);
        },
      };
      signal?.addEventListener("abort", abort);
      if (!oneway) request.meta = { ...meta, __ServerTimeout: `${Math.ceil(timeout)}` };
      this.dispatch_(request);
    });
  }

  /** Sends a request, or has it wait for the connection. */
  private dispatch_(request: Request) {
    const conn = this.conn_;
    if (!conn?.isUp_ || conn.isOver_) return this.wait_(request);
    this.unwait_(request);
    clearTimeout(request.timer);

    const { type, path, method, payload } = request;
    let { meta } = request;
    const left = request.until - Date.now();
    try {
      if (request.oneway) {
        conn.oneway_(type, path, method, meta, payload);
        return request.settle(undefined);
      }
      if (conn.pending_ >= this.settings_.callsMax) throw new BothwaysError("queue_full", "too many calls wait");
      if (meta.__ServerTimeout) meta = { ...meta, __ServerTimeout: `${Math.max(1, Math.ceil(left))}` };
      request.conn = conn;
      request.seq = conn.call_(type, path, method, meta, payload, {
        reply_: (frame) => this.replied_(request, frame),
        lost_: (error) => request.settle(error),
      });
    } catch (error) {
      return request.settle(error);
    }

    request.timer = timer(() => {
      conn.giveUp_(request.seq!);
      request.settle(new BothwaysError("timeout", `no reply of ${path}.${method} in time`, { maybeExecuted: true }));
      this.leave_(conn);
    }, left);
  }

  private wait_(request: Request) {
    if (this.waiting_.has(request)) return;
    const { callsMax, sendBytesMax, connectionWait } = this.settings_;
    if (this.waiting_.size >= callsMax || this.waitingBytes_ + request.payload.length > sendBytesMax) {
      return request.settle(new BothwaysError("queue_full", "too much waits to be sent"));
    }
    this.waiting_.add(request);
    this.waitingBytes_ += request.payload.length;
    request.conn = request.seq = undefined;
    const wait = Math.min(request.until - Date.now(), connectionWait);
    const late = () => request.settle(new BothwaysError("not_connected", "there was no connection in time"));
    request.timer = timer(late, wait);
    this.hurry_(this.settings_.backoffBase * 2 ** WANTED_DOUBLINGS);
  }

  private unwait_(request: Request) {
    if (this.waiting_.delete(request)) this.waitingBytes_ -= request.payload.length;
  }

  private replied_(request: Request, frame: Frame) {
    const conn = request.conn!;
    if (!isFailed(frame)) {
      request.settle(undefined, frame);
      return this.leave_(conn);
    }

    const error = this.errorOf_(conn, frame);
    const canRenew = typeof this.settings_.token == "function" && !request.again && conn.isNegotiated_;
    if (error.code == "unauthenticated" && canRenew) {
      // The token of the Hello was accepted: it has run out, and the call was not run.
      request.again = true;
      clearTimeout(request.timer);
      const isHere = conn == this.conn_;
      if (isHere) this.detach_(conn);
      this.dispatch_(request);
      return isHere ? this.renew_(error) : this.leave_(conn);
    }
    request.settle(error);
    this.leave_(conn);
  }

  /** A connection that its server is about to end is of no use without calls. */
  private leave_(conn: Conn) {
    if (this.leaving_.has(conn) && !conn.pending_) conn.end_(new BothwaysError("lost", "the server said goodbye"));
  }

  private errorOf_(conn: Conn, frame: Frame): BothwaysError {
    const meta = conn.isNegotiated_ ? frame.meta_ : {};
    const error = new BothwaysError(remoteCode(meta["_bw.err"]), frame.meta_["__rpcx_error__"] || "the server says no more");
    error.maybeExecuted = !/^(overloaded|unauthenticated|not_found|shutting_down)$/.test(error.code);
    error.appCode = meta["_bw.app"];
    error.detailType = meta["_bw.dt"];
    const after = Number(meta["_bw.after"]);
    if (after) error.retryAfter = after;
    try {
      const packed = meta["_bw.detail"];
      if (packed) error.detail = this.codec_(3)?.decode(Uint8Array.from(atob(packed), (char) => char.charCodeAt(0)));
    } catch {
      // An error whose detail cannot be read is an error all the same.
    }
    return error;
  }

  // ---- The page -----------------------------------------------------------------------------------------------------

  private hookPage_() {
    const listen = (target: EventTarget | undefined, names: string, run: (event: any) => void) => {
      for (const name of names.split(" ")) {
        target?.addEventListener?.(name, run);
        this.unhook_.push(() => target?.removeEventListener?.(name, run));
      }
    };
    const page = (globalThis as { document?: Document }).document;
    const window = page && (globalThis as unknown as EventTarget);
    listen(window, "online pageshow", () => this.wake_());
    listen(window, "offline", () => this.conn_?.probeNow_(this.settings_.probeTimeout));
    listen(page, "visibilitychange", () => page!.visibilityState == "visible" && this.wake_());
    listen(page, "resume", () => this.wake_());
    listen(page, "freeze", () => this.suspend_());
    listen(window, "pagehide", (event) => {
      // Where the page may come back, and its session with it, the session waits for it.
      if (event.persisted || this.store_) this.suspend_();
      else this.close();
    });
  }

  /** The page sleeps: nothing is received from here on, and the server need not find that out by itself. */
  private suspend_() {
    const { conn_: conn } = this;
    this.isPaused_ = true;
    this.ackNow_();
    this.store_?.save_();
    conn?.end_(new BothwaysError("lost", "the page sleeps"));
    clearTimeout(this.retry_);
  }

  /** The page is there again, or its network. */
  private wake_() {
    if (this.state_.name == "closed") return;
    if (this.isPaused_) {
      this.isPaused_ = false;
      if (!this.conn_) this.plan_(Math.max(0, this.notBefore_ - Date.now()));
      return;
    }
    this.conn_?.probeNow_(this.settings_.probeTimeout);
    this.hurry_(0);
  }

  /** @internal */
  report_(error: unknown, where: string) {
    const now = Date.now();
    if (now - this.reported_ < CALM) return;
    this.reported_ = now;
    const { onError } = this.settings_;
    try {
      if (onError) onError(error, where);
      else console.error(`bothways: ${where}:`, error);
    } catch {
      // There is nobody left to tell.
    }
  }
}

const isForGood = (code: string) => /^(kicked|expired|revoked)$/.test(code);

/** The pairs that are the application's. */
export const visible = (meta: Meta): Meta => {
  const result: Meta = Object.create(null);
  for (const key in meta) if (!/^(_bw\.|__)/.test(key)) result[key] = meta[key]!;
  return result;
};

/** What a function of the application answers, if it does so in time. */
async function within(ask: () => string | Promise<string>, ms: number): Promise<string> {
  let late: ReturnType<typeof setTimeout> | undefined;
  const tooLate = new Promise<never>((_, no) => {
    late = timer(() => no(new Error(`none within ${ms} ms`)), ms);
  });
  try {
    return String(await Promise.race([ask(), tooLate]));
  } finally {
    clearTimeout(late);
  }
}
