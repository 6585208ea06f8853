/** The server's calls: which handlers there are, which calls run, and what those that ran answered. */

import type { Conn } from "./conn.js";
import { checkReserved, visible, type Core } from "./client.js";
import { BothwaysError, remoteCode, textOf } from "./error.js";
import { EMPTY, type Frame, type Meta } from "./frame.js";
import type { CallHandler } from "./types.js";

/** Calls that are over and remembered by their id, so that one that is sent again after a lost connection runs once. */
const RESULTS_MAX = 1024;
/** Bytes of their replies. Of older ones only that they have run is known. */
const RESULT_BYTES_MAX = 4 << 20;
const ID_LENGTH_MAX = 64;

interface Answer {
  flags: number;
  type: number;
  meta: Meta;
  payload: Uint8Array;
}

const failed = (text: string, code?: string, type = 0): Answer => ({
  flags: 1,
  type,
  meta: { __rpcx_error__: text, ...(code && code != "remote" && remoteCode(code) == code && { "_bw.err": code }) },
  payload: EMPTY,
});

const GIVEN_UP = failed("the call was given up, and does not run again", "timeout");

class Run {
  controller_ = new AbortController();
  answer_?: Promise<Answer>;
  bytes_ = 0;
  isOver_ = false;

  giveUp_(): Run {
    this.controller_.abort(new BothwaysError("timeout", "nobody waits for the reply any more"));
    return this;
  }
}

/**
 * Answers the server's calls to these methods with what the functions return or resolve to. What one throws is the
 * error of the call. Before `connect()`: the server is told the names when it is greeted.
 */
export function handle(client: Core, path: string, methods: Record<string, CallHandler>): void {
  checkReserved(path);
  const { name: state } = client.state;
  for (const method of Object.keys(methods)) {
    const name = `${path}.${method}`;
    if (state != "idle" && state != "closed" && !client.answers_?.announced_?.has(name)) {
      throw new TypeError(`${name} must be handled before connect(): the server was told which methods there are`);
    }
    answersOf(client).handlers_.set(name, methods[method]!);
  }
}

export const answersOf = (client: Core): Answers => (client.answers_ ??= new Answers(client));

export class Answers {
  handlers_ = new Map<string, CallHandler>();
  /** By the id that the server gave them, the oldest first. */
  private known_ = new Map<string, Run>();
  private bytes_ = 0;
  private running_ = 0;
  /** Calls of each connection by their numbers. */
  private calls_ = new WeakMap<Conn, Map<bigint, Run>>();

  /** Those that the server was told. */
  announced_?: Set<string>;

  constructor(private client_: Core) {}

  announce_() {
    this.announced_ = new Set(this.handlers_.keys());
  }

  called_(conn: Conn, frame: Frame): void {
    const id = frame.meta_["_bw.id"] ?? "";
    const isKept = !!id && id.length <= ID_LENGTH_MAX;
    let run = isKept ? this.known_.get(id) : undefined;
    if (!run) {
      const handler = this.handlers_.get(`${frame.path_}.${frame.method_}`);
      const refusal =
        !handler ? failed(`this client has no ${frame.path_}.${frame.method_}`, "not_found", frame.type_)
        : this.running_ >= this.client_.settings_.handlersMax ? failed("too many calls run on this client", "overloaded", frame.type_)
        : undefined;
      if (refusal) return this.reply_(conn, frame, refusal);
      run = this.begin_(frame, handler!);
      if (isKept) this.known_.set(id, run);
    }

    const calls = this.calls_.get(conn) ?? new Map<bigint, Run>();
    this.calls_.set(conn, calls.set(frame.seq_, run));
    void (run.answer_ ?? Promise.resolve(GIVEN_UP)).then((answer) => {
      if (calls.get(frame.seq_) != run) return;
      calls.delete(frame.seq_);
      this.reply_(conn, frame, answer);
    });
  }

  private begin_(frame: Frame, handler: CallHandler): Run {
    const run = new Run();
    this.running_++;
    const { signal } = run.controller_;
    const millis = Number(frame.meta_.__ServerTimeout);
    const time = millis > 0 ? Math.min(millis, 2 ** 31 - 1) : 0;
    const timer = time ? setTimeout(() => run.giveUp_(), time) : undefined;

    // Whoever gave the call up has the answer at once, whatever the handler does.
    const givenUp = new Promise<Answer>((done) => {
      signal.addEventListener("abort", () => done({ ...GIVEN_UP, type: frame.type_ }));
    });
    const made = this.run_(frame, handler, signal, time ? Date.now() + time : undefined);
    run.answer_ = Promise.race([made, givenUp]).then((answer) => {
      clearTimeout(timer);
      this.over_(run, answer);
      return answer;
    });
    // It takes its place until it has really ended.
    void made.then(() => this.running_--);
    return run;
  }

  private async run_(frame: Frame, handler: CallHandler, signal: AbortSignal, deadline?: number): Promise<Answer> {
    const { path_: path, method_: method, type_: type } = frame;
    const codec = this.client_.codec_(type);
    if (!codec) return failed(`this client has no codec ${type}`, "bad_arguments", type);
    let args: unknown;
    try {
      args = await this.client_.value_(frame);
    } catch (error) {
      return failed(textOf(error), "bad_arguments", type);
    }

    try {
      const call = { path, method, meta: visible(frame.meta_), signal, ...(deadline && { deadline }) };
      const value = await handler(args, call);
      return { flags: 0, type, meta: {}, payload: codec.encode(value) };
    } catch (error) {
      const answer = failed(textOf(error), error instanceof BothwaysError ? error.code : undefined, type);
      const app = (error as BothwaysError | undefined)?.appCode;
      if (typeof app == "string") answer.meta["_bw.app"] = app.slice(0, 64);
      return answer;
    }
  }

  /** Notes that a call is over, and forgets what is beyond the bounds. */
  private over_(run: Run, answer: Answer) {
    run.isOver_ = true;
    run.bytes_ = answer.payload.length;
    this.bytes_ += run.bytes_;
    let over = 0;
    for (const other of this.known_.values()) if (other.isOver_) over++;
    for (const [id, other] of this.known_) {
      if (over <= RESULTS_MAX && this.bytes_ <= RESULT_BYTES_MAX) break;
      // The newest reply stays, however large: it is the likeliest to be asked for again.
      if (!other.isOver_ || other == run) continue;
      this.bytes_ -= other.bytes_;
      other.bytes_ = 0;
      other.answer_ = undefined;
      if (over > RESULTS_MAX) {
        this.known_.delete(id);
        over--;
      }
    }
  }

  private reply_(conn: Conn, frame: Frame, { flags, type, meta, payload }: Answer) {
    try {
      conn.reply_(frame, flags, type, meta, payload);
    } catch (error) {
      // Larger than one side takes. Where the connection has no room, it is over.
      if (conn.isOver_) return;
      try {
        conn.reply_(frame, 1, type, failed(textOf(error), "internal").meta, EMPTY);
      } catch (error) {
        // A server that takes not even that is of no use.
        conn.end_(error as BothwaysError);
      }
    }
  }

  /** The server gave a call up, by its number on this connection or by its id on any. */
  giveUp_(conn: Conn, seq: string | undefined, id = "") {
    if (seq && /^\d{1,20}$/.test(seq)) {
      const calls = this.calls_.get(conn);
      const run = calls?.get(BigInt(seq));
      if (run) calls!.delete(BigInt(seq));
      run?.giveUp_();
    }
    if (!id || id.length > ID_LENGTH_MAX) return;
    const run = this.known_.get(id);
    if (run) return void run.giveUp_();
    // It may come yet, and is not run then.
    const never = new Run().giveUp_();
    this.known_.set(id, never);
    this.over_(never, GIVEN_UP);
  }

  /** Nobody can be answered any more, except for calls that may come again. */
  lost_(conn: Conn) {
    const calls = this.calls_.get(conn);
    this.calls_.delete(conn);
    const kept = new Set(this.known_.values());
    for (const run of calls?.values() ?? []) if (!kept.has(run)) run.giveUp_();
    calls?.clear();
  }
}
