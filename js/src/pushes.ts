/** Pushes that wait for the application, and those whom they wait for. */

import { visible, type Core } from "./client.js";
import { CONTROL } from "./conn.js";
import { text, type Frame } from "./frame.js";
import { parseOffset, type Failure, type Session } from "./session.js";
import type { Message, Position } from "./types.js";

/** Idempotency keys that are remembered, and the most characters of one. */
const KEYS_MAX = 1024;
const KEY_LENGTH_MAX = 64;
/** Repetitions of one message whose acknowledgements wait for it. More are never acknowledged. */
const REPEATS_MAX = 256;
/** What a push takes in memory beside its payload, about. */
const PUSH_BYTES = 256;

interface Entry {
  frame_: Frame;
  size_: number;
  session_: Session;
  /** 0: it is not tracked. */
  offset_: bigint;
  /** The server negotiated: what it says beside the payload is believed. */
  isKnown_: boolean;
  topic_?: string;
  position_?: Position;
  /** Where the queue has it: of each key of `_bw.lk` only the newest waits. */
  id_: unknown;
  /** Tells repetitions how it ended. */
  end_?: (why?: Failure) => void;
}

/** A message with an idempotency key, and how many repetitions wait for its end. */
interface Keyed {
  ended_: Promise<Failure | undefined>;
  repeats_: number;
}

export class Pushes {
  private queue_ = new Map<unknown, Entry>();
  /** Those of the queue that may be dropped. */
  private loose_ = new Set<Entry>();
  private keys_ = new Map<string, Keyed>();
  private bytes_ = 0;
  private isRunning_ = false;
  /** Dropped since the last message that was given. */
  dropped_ = 0;

  constructor(private client_: Core) {}

  /** Room for one more that may not be dropped. */
  hasRoom_({ payload_ }: Frame): boolean {
    const { queueMessagesMax, queueBytesMax } = this.client_.settings_;
    const { size } = this.queue_;
    const bytes = this.bytes_ + payload_.length + PUSH_BYTES;
    return size - this.loose_.size < queueMessagesMax && (bytes <= queueBytesMax || !size);
  }

  add_(frame_: Frame, session_: Session, offset_: bigint, isKnown_: boolean): void {
    const { "_bw.t": topic_, "_bw.te": epoch, "_bw.to": at, "_bw.ik": key, "_bw.lk": latest } = isKnown_ ? frame_.meta_ : {};
    const entry: Entry = { frame_, session_, offset_, isKnown_, topic_, size_: frame_.payload_.length + PUSH_BYTES, id_: latest || frame_ };
    const position = { epoch: parseOffset(epoch), offset: parseOffset(at) };
    if (topic_ !== undefined && position.epoch) {
      // One that the session does not keep may come before those that it does.
      const isFirm = !!offset_ || !session_.sid_;
      if (isFirm) entry.position_ = position;
      this.client_.topics_?.note_(topic_, position, isFirm);
    }
    if (key && key.length <= KEY_LENGTH_MAX && this.isRepeated_(key, entry)) return;

    const older = latest && this.queue_.get(latest);
    if (older) {
      this.take_(older);
      this.end_(older, "superseded");
    }

    // A part of a larger read would keep all of it.
    frame_.payload_ = frame_.payload_.slice();
    this.queue_.set(entry.id_, entry);
    this.bytes_ += entry.size_;
    if (!offset_) this.loose_.add(entry);
    this.drop_();
    if (!this.isRunning_) void this.run_();
  }

  /** Drops the oldest that are not tracked, beyond the bounds. */
  private drop_() {
    const { queueMessagesMax, queueBytesMax } = this.client_.settings_;
    for (const oldest of this.loose_) {
      const { size } = this.queue_;
      if (size <= queueMessagesMax && (this.bytes_ <= queueBytesMax || size == 1)) return;
      this.take_(oldest);
      this.end_(oldest, "error");
      this.dropped_++;
    }
  }

  private take_(entry: Entry) {
    this.queue_.delete(entry.id_);
    this.loose_.delete(entry);
    this.bytes_ -= entry.size_;
  }

  /** True if the application has had a message with this key, or will: this one ends as that one. */
  private isRepeated_(key: string, entry: Entry): boolean {
    const known = this.keys_.get(key);
    if (known) {
      if (known.repeats_++ < REPEATS_MAX) void known.ended_.then((why) => {
        known.repeats_--;
        this.client_.done_(entry.session_, entry.offset_, why);
      });
      return true;
    }
    const ended_ = new Promise<Failure | undefined>((end) => (entry.end_ = end));
    const keyed = { ended_, repeats_: 0 };
    this.keys_.set(key, keyed);
    for (const oldest of this.keys_.keys()) if (this.keys_.size > KEYS_MAX) this.keys_.delete(oldest);
    // One that failed may come again.
    void ended_.then((why) => why && why != "superseded" && this.keys_.get(key) == keyed && this.keys_.delete(key));
    return false;
  }

  /** A message is dealt with. */
  private end_(entry: Entry, why?: Failure) {
    if (entry.position_) this.client_.topics_?.handled_(entry.topic_!, entry.position_);
    this.client_.done_(entry.session_, entry.offset_, why);
    entry.end_?.(why);
  }

  private async run_(): Promise<void> {
    this.isRunning_ = true;
    for (const entry of this.queue_.values()) {
      this.take_(entry);
      this.end_(entry, await this.handle_(entry));
    }
    this.isRunning_ = false;
  }

  private async handle_({ frame_: frame, topic_: topic, position_: position, isKnown_ }: Entry): Promise<Failure | undefined> {
    const { path_: path, method_: method, payload_: bytes } = frame;
    const { client_: client, dropped_: dropped } = this;
    const { topics_: topics, listeners_: all } = client;
    const isPresence = path == CONTROL && isKnown_;
    let value: unknown;
    try {
      value = client.decode_(frame);
    } catch (error) {
      client.report_(error, `the payload of ${path}.${method}`);
      return "bad_arguments";
    }
    if (isPresence) return void topics?.presence_(value);

    this.dropped_ = 0;
    const message: Message = {
      path, method, bytes, dropped,
      meta: visible(frame.meta_),
      text: () => text(bytes),
      topic,
      position,
    };
    // A method or a path `*` takes those without a handler of their own.
    const named = all.get(`${path}\n${method}`) ?? all.get(`${path}\n*`) ?? all.get("*\n*") ?? [];
    const handlers = [...named, ...((topic !== undefined && topics?.handlers_(topic)) || [])];
    if (!handlers.length) {
      client.emit_(all, "unhandled", message);
      return "no_handler";
    }
    // All of them get it, also if one fails.
    let why: Failure | undefined;
    await Promise.all(handlers.map(async (handler) => {
      try {
        await handler(value, message);
      } catch (error) {
        why = "error";
        client.report_(error, `the handler of ${path}.${method}`);
      }
    }));
    return why;
  }
}
