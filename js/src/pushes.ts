/** Pushes that wait for the application, and the handlers that they wait for. */

import { CONTROL } from "./conn.js";
import { text, type Frame } from "./frame.js";
import { parseOffset, type Failure } from "./session.js";
import type { Message, Position, PushHandler } from "./types.js";
import { visible, type Core } from "./client.js";

/** Idempotency keys that are remembered. */
const KEYS_MAX = 1024;
/** Repetitions of one message whose acknowledgements wait for it. More are never acknowledged. */
const REPEATS_MAX = 256;
const KEY_LENGTH_MAX = 64;

/** Where a push came from. */
export interface Origin {
  epoch: number;
  /** 0: it is not tracked. */
  offset: bigint;
  isNegotiated: boolean;
  hasSession: boolean;
}

/** Messages with one idempotency key. */
interface Keyed {
  isOver: boolean;
  why?: Failure;
  waiting: [epoch: number, offset: bigint][];
}

interface Entry {
  frame: Frame;
  size: number;
  origin: Origin;
  latest?: string;
  key?: string;
  dropped: number;
  topic?: string;
  position?: Position;
}

export class Pushes {
  private handlers_ = new Map<string, Set<PushHandler>>();
  private queue_ = new Set<Entry>();
  /** Those of the queue that may be dropped. */
  private loose_ = new Set<Entry>();
  private latest_ = new Map<string, Entry>();
  private keys_ = new Map<string, Keyed>();
  private bytes_ = 0;
  private isRunning_ = false;
  /** Dropped since the last message that came. */
  dropped_ = 0;

  constructor(private client_: Core) {}

  on_(path: string, method: string, handler: PushHandler): () => void {
    const name = `${path}\n${method}`;
    const handlers = this.handlers_.get(name) ?? new Set();
    // Each registration counts by itself, also of the same function.
    const own: PushHandler = (value, message) => handler(value, message);
    this.handlers_.set(name, handlers.add(own));
    return () => {
      handlers.delete(own);
      if (!handlers.size && this.handlers_.get(name) == handlers) this.handlers_.delete(name);
    };
  }

  /** Room for one more that may not be dropped. */
  hasRoom_(size: number): boolean {
    const { queueMessagesMax, queueBytesMax } = this.client_.settings_;
    return this.queue_.size - this.loose_.size < queueMessagesMax && (this.bytes_ + size <= queueBytesMax || !this.queue_.size);
  }

  add_(frame: Frame, size: number, origin: Origin): void {
    const { meta_: meta } = frame;
    const entry: Entry = { frame, size, origin, dropped: 0 };
    if (origin.isNegotiated && meta["_bw.t"] !== undefined) {
      entry.topic = meta["_bw.t"];
      const epoch = parseOffset(meta["_bw.te"]);
      const position = epoch ? { epoch, offset: parseOffset(meta["_bw.to"]) } : undefined;
      if (position) this.client_.topics_?.note_(entry.topic, position, !!origin.offset || !origin.hasSession);
      if (position && (origin.offset || !origin.hasSession)) entry.position = position;
    }

    const key = origin.isNegotiated ? meta["_bw.ik"] : undefined;
    if (key && key.length <= KEY_LENGTH_MAX && this.isRepeated_(key, origin)) return;
    if (key && key.length <= KEY_LENGTH_MAX) entry.key = key;

    const latest = origin.isNegotiated ? meta["_bw.lk"] : undefined;
    if (latest) {
      const older = this.latest_.get(latest);
      if (older) {
        this.take_(older);
        this.end_(older, "superseded");
      }
      this.latest_.set((entry.latest = latest), entry);
    }

    // A part of a larger read would keep all of it.
    frame.payload_ = frame.payload_.slice();
    this.queue_.add(entry);
    this.bytes_ += size;
    if (!origin.offset) this.loose_.add(entry);
    entry.dropped = this.dropped_;
    this.dropped_ = 0;
    this.drop_();
    if (!this.isRunning_) void this.run_();
  }

  /** Drops the oldest that are not tracked, beyond the bounds. */
  private drop_() {
    const { queueMessagesMax, queueBytesMax } = this.client_.settings_;
    for (const oldest of this.loose_) {
      if (this.queue_.size <= queueMessagesMax && (this.bytes_ <= queueBytesMax || this.queue_.size == 1)) return;
      this.take_(oldest);
      this.end_(oldest, "error");
      const [next] = this.queue_;
      if (next) next.dropped += 1 + oldest.dropped;
      else this.dropped_ += 1 + oldest.dropped;
    }
  }

  private take_(entry: Entry) {
    if (!this.queue_.delete(entry)) return;
    this.loose_.delete(entry);
    this.bytes_ -= entry.size;
    if (entry.latest !== undefined && this.latest_.get(entry.latest) == entry) this.latest_.delete(entry.latest);
  }

  /** True if the application has had a message with this key, or will: this one ends as that one. */
  private isRepeated_(key: string, origin: Origin): boolean {
    const known = this.keys_.get(key);
    if (known && !known.isOver) {
      if (known.waiting.length < REPEATS_MAX) known.waiting.push([origin.epoch, origin.offset]);
      return true;
    }
    if (known && (!known.why || known.why == "superseded")) {
      this.client_.done_(origin.epoch, origin.offset, known.why);
      return true;
    }
    this.keys_.delete(key);
    this.keys_.set(key, { isOver: false, waiting: [] });
    for (const oldest of this.keys_.keys()) {
      if (this.keys_.size <= KEYS_MAX) break;
      this.keys_.delete(oldest);
    }
    return false;
  }

  /** A message is dealt with. */
  private end_({ origin, key, topic, position }: Entry, why?: Failure) {
    if (topic && position) this.client_.topics_?.handled_(topic, position);
    this.client_.done_(origin.epoch, origin.offset, why);
    const keyed = key ? this.keys_.get(key) : undefined;
    if (!keyed) return;
    [keyed.isOver, keyed.why] = [true, why];
    for (const [epoch, offset] of keyed.waiting.splice(0)) this.client_.done_(epoch, offset, why);
  }

  private async run_(): Promise<void> {
    this.isRunning_ = true;
    for (const entry of this.queue_) {
      this.take_(entry);
      let why: Failure | undefined;
      try {
        const handled = this.handle_(entry);
        why = handled instanceof Promise ? await handled : handled;
      } catch (error) {
        why = "error";
        this.client_.report_(error, `the handler of ${entry.frame.path_}.${entry.frame.method_}`);
      }
      this.end_(entry, why);
    }
    this.isRunning_ = false;
  }

  /** Those for this message; a method or a path `*` takes those without a handler of their own. */
  private find_(path: string, method: string): PushHandler[] {
    for (const name of [`${path}\n${method}`, `${path}\n*`, "*\n*"]) {
      const handlers = this.handlers_.get(name);
      if (handlers) return [...handlers];
    }
    return [];
  }

  private async handle_(entry: Entry): Promise<Failure | undefined> {
    const { frame, topic, position, dropped } = entry;
    const { path_: path, method_: method, type_: type } = frame;
    const isPresence = path == CONTROL && entry.origin.isNegotiated;
    const handlers = isPresence ? [] : this.find_(path, method);
    if (topic !== undefined) handlers.push(...(this.client_.topics_?.handlers_(topic) ?? []));

    let bytes: Uint8Array;
    let value: unknown;
    try {
      bytes = await this.client_.unpack_(frame);
      value = isPresence ? this.client_.control_.decode(bytes) : this.client_.decode_(bytes, type);
    } catch (error) {
      this.client_.report_(error, `the payload of ${path}.${method}`);
      return "bad_arguments";
    }
    if (isPresence) return void this.client_.topics_?.presence_(value);

    const message: Message = {
      path, method, bytes, dropped,
      meta: visible(frame.meta_),
      text: () => text(bytes),
      ...(topic !== undefined && { topic }),
      ...(position && { position }),
    };
    if (!handlers.length) {
      this.client_.emitter_.emit_("unhandled", message);
      return "no_handler";
    }
    // All of them get it, also if one fails.
    const ends = await Promise.allSettled(handlers.map(async (handler) => handler(value, message)));
    const lost = ends.find((end): end is PromiseRejectedResult => end.status == "rejected");
    if (lost) throw lost.reason;
    return undefined;
  }
}
