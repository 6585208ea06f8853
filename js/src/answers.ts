/** The server's calls: which handlers there are, which calls run, and what those that ran answered. */

import { checkReserved, type Core } from "./client.js";
import { CONTROL, timer, type Conn } from "./conn.js";
import { BothwaysError, textOf } from "./error.js";
import { broken, EMPTY, RESPONSE, type Frame, type Meta, type Said } from "./frame.js";
import { listen } from "./listeners.js";
import { parseOffset } from "./session.js";
import type { CallHandler } from "./types.js";

/** Calls that are over and remembered by their id, so that one that is sent again after a lost connection runs once. */
const RESULTS_MAX = 1024;
/** Bytes of their replies. Of older ones only that they have run is known. */
const RESULT_BYTES_MAX = 4 << 20;
const ID_LENGTH_MAX = 64;
/** Most bytes of the names of the methods that the server may call, but for the framework's. */
const METHODS_BYTES_MAX = 4000;
/** Calls on one connection that wait for their answers, repetitions among them. */
const WAITING_MAX = 1024;

/** What is sent in answer to a call. */
interface Answer {
  meta_: Meta;
  payload_: Uint8Array;
}

/** Kinds of errors that a client may answer with: any other is the application's. */
const KINDS = /^(overl|unauth|not_f|shut|bad|int|time)/;

const failed = (text: string, code?: string): Answer => ({
  meta_: { __rpcx_error__: text, ...(code && { "_bw.err": code }) },
  payload_: EMPTY,
});

const givenUp = () => failed("given up", "timeout");

/** A call that runs, or has run. */
export class Run {
  controller_ = new AbortController();
  /** Of its reply, while that is kept. */
  bytes_ = 0;
  isOver_ = false;
  answer_: Promise<Answer>;

  constructor(readonly id_?: string) {
    // Whoever gives the call up has the answer at once, whatever the handler does.
    this.answer_ = new Promise((done) => {
      this.controller_.signal.addEventListener("abort", () => done(givenUp()));
    });
  }

  giveUp_() {
    this.controller_.abort(new BothwaysError("timeout", "given up"));
  }
}

/**
 * Answers the server's calls to these methods with what the functions return or resolve to. What one throws is the
 * error of the call. Before `connect()`: the server is told the names when it is greeted.
 */
export const handle = (client: Core, path: string, methods: Record<string, CallHandler>): void =>
  answersOf(client).handle_(path, methods);

export const answersOf = (client: Core): Answers => (client.answers_ ??= new Answers(client));

export class Answers {
  private handlers_ = new Map<string, CallHandler>();
  /** Those that the server was told. */
  private announced_?: Set<string>;
  /** By the id that the server gave them, the oldest first. */
  private known_ = new Map<string, Run>();
  private bytes_ = 0;
  private running_ = 0;

  constructor(private client_: Core) {
    const { listeners_: all } = client_;
    listen(all, "_hello", (hello: Meta) => {
      const names = [...this.handlers_.keys()].join();
      hello["_bw.caps"] += ",calls";
      hello["_bw.fns"] = names;
      // Where too many are not named, the server may call any.
      if (names.length > METHODS_BYTES_MAX) delete hello["_bw.fns"];
    });
    client_.on("state", ({ name }) => {
      if (name == "connecting") this.announced_ = new Set(this.handlers_.keys());
    });
    listen(all, CONTROL + "\nCancel", (conn: Conn, { seq, id }: Said) => this.giveUp_(conn, seq, id));
    // Nobody can be answered any more, except for calls that may come again.
    listen(all, "_over", ({ runs_ }: Conn) => {
      for (const run of runs_.values()) if (!run.id_) run.giveUp_();
      runs_.clear();
    });
  }

  handle_(path: string, methods: Record<string, CallHandler>) {
    checkReserved(path);
    for (const method in methods) {
      const name = `${path}.${method}`;
      if (this.client_.isOn_() && !this.announced_?.has(name)) throw new TypeError(`${name} must be handled before connect()`);
      this.handlers_.set(name, methods[method]!);
    }
  }

  called_(conn: Conn, frame: Frame): void {
    const { path_, method_, seq_, said_: { id } } = frame;
    // The server was not told that there are any.
    if (!this.announced_) throw broken();
    const isKept = !!id && id.length <= ID_LENGTH_MAX;
    const tooMany = () => this.reply_(conn, frame, failed("too many calls", "overloaded"));
    let run = isKept ? this.known_.get(id) : undefined;
    // Repetitions wait for one run, and each has its place.
    if (conn.runs_.size >= WAITING_MAX) return tooMany();
    if (!run) {
      const handler = this.handlers_.get(`${path_}.${method_}`);
      if (!handler) return this.reply_(conn, frame, failed(`no ${path_}.${method_}`, "not_found"));
      if (this.running_ >= this.client_.settings_.handlersMax) return tooMany();
      run = new Run(isKept ? id : undefined);
      if (isKept) this.known_.set(id, run);
      void this.begin_(run, frame, handler);
    }

    conn.runs_.set(seq_, run);
    void run.answer_.then((answer) => {
      if (conn.runs_.get(seq_) == run && conn.runs_.delete(seq_)) this.reply_(conn, frame, answer);
    });
  }

  private async begin_(run: Run, frame: Frame, handler: CallHandler) {
    const time = Number(frame.said_.ServerTimeout) || Infinity;
    const late = time < Infinity ? timer(time, () => run.giveUp_()) : undefined;
    const made = this.run_(frame, handler, run.controller_.signal, time);
    run.answer_ = Promise.race([made, run.answer_]);
    // It takes its place until it has really ended.
    this.running_++;
    void made.then(() => this.running_--);

    const { payload_ } = await run.answer_;
    clearTimeout(late);
    this.over_(run, payload_.length);
  }

  private async run_(frame: Frame, handler: CallHandler, signal: AbortSignal, time: number): Promise<Answer> {
    const { path_: path, method_: method, type_: type, meta_: meta } = frame;
    const codec = this.client_.codec_(type);
    let args: unknown;
    try {
      if (!codec) throw new TypeError(`no codec ${type}`);
      args = this.client_.decode_(frame);
    } catch (error) {
      return failed(textOf(error), "bad_arguments");
    }

    try {
      const value = await handler(args, { path, method, meta, signal, ...(time < Infinity && { deadline: Date.now() + time }) });
      return { meta_: {}, payload_: codec.encode(value) };
    } catch (error) {
      const { code, appCode } = Object(error) as BothwaysError;
      const answer = failed(textOf(error), error instanceof BothwaysError && KINDS.test(code) ? code : "");
      if (typeof appCode == "string") answer.meta_["_bw.app"] = appCode.slice(0, 64);
      return answer;
    }
  }

  /** Notes that a call is over, and forgets what is beyond the bounds. */
  private over_(run: Run, bytes: number) {
    run.isOver_ = true;
    if (!run.id_) return;
    this.bytes_ += run.bytes_ = bytes;
    for (const [id, other] of this.known_) {
      // The newest reply stays, however large: it is the likeliest to be asked for again. What runs is bounded by itself.
      if (this.known_.size <= RESULTS_MAX && this.bytes_ <= RESULT_BYTES_MAX) break;
      if (!other.isOver_ || other == run) continue;
      if (this.known_.size > RESULTS_MAX) this.known_.delete(id);
      this.bytes_ -= other.bytes_;
      other.bytes_ = 0;
      other.answer_ = Promise.resolve(givenUp());
    }
  }

  private reply_(conn: Conn, { type_, seq_, path_, method_ }: Frame, answer: Answer) {
    const send = ({ meta_, payload_ }: Answer) => {
      const flags = RESPONSE | Number(meta_.__rpcx_error__ !== undefined);
      conn.put_(flags, type_, seq_, path_, method_, meta_, payload_);
    };
    if (!conn.isUp_) return;
    try {
      send(answer);
    } catch (error) {
      // Larger than one side takes. A server that takes not even that is of no use.
      conn.try_(() => send(failed(textOf(error), "internal")));
    }
  }

  /** The server gave a call up, by its number on this connection or by its id on any. */
  giveUp_({ runs_ }: Conn, number: string | undefined, id = "") {
    const seq = parseOffset(number);
    const run = runs_.get(seq);
    runs_.delete(seq);
    run?.giveUp_();
    if (!id || id.length > ID_LENGTH_MAX) return;
    const known = this.known_.get(id);
    if (known) return known.giveUp_();
    // It may come yet, and is not run then.
    const never = new Run(id);
    this.known_.set(id, never);
    never.giveUp_();
    this.over_(never, 0);
  }
}
