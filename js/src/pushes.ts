/** Pushes that wait for the application, and those whom they wait for. */

import type { Core } from "./client.js";
import { text, type Frame } from "./frame.js";
import { parseOffset, type Failure, type Session } from "./session.js";
import type { Message, Position } from "./types.js";

/** What a push takes in memory beside its payload, about. */
const PUSH_BYTES = 256;

export interface Entry {
  frame_: Frame;
  size_: number;
  session_: Session;
  /** 0: it is not tracked. */
  offset_: bigint;
  position_?: Position;
  /** Where the queue has it. */
  id_: unknown;
  /** Is told how it ended. */
  end_?: (why?: Failure) => void;
}

export class Pushes {
  queue_ = new Map<unknown, Entry>();
  /** Those of the queue that may be dropped. */
  private loose_ = new Set<Entry>();
  private bytes_ = 0;
  private isRunning_ = false;
  /** Dropped since the last message that was given. */
  dropped_ = 0;

  constructor(private client_: Core) {}

  /** True if there are too many, by so many more. */
  private isFull_(messages: number, bytes: number): boolean {
    const { queueMessagesMax, queueBytesMax } = this.client_.settings_;
    return messages > queueMessagesMax || (this.bytes_ + bytes > queueBytesMax && this.queue_.size + (bytes && 1) > 1);
  }

  /** Room for one more that may not be dropped. */
  hasRoom_({ payload_ }: Frame): boolean {
    return !this.isFull_(this.queue_.size - this.loose_.size + 1, payload_.length + PUSH_BYTES);
  }

  add_(frame_: Frame, session_: Session, offset_: bigint): void {
    const { said_, payload_ } = frame_;
    const entry: Entry = { frame_, session_, offset_, size_: payload_.length + PUSH_BYTES, id_: frame_ };
    const position = { epoch: parseOffset(said_.te), offset: parseOffset(said_.to) };
    if (said_.t !== undefined && position.epoch) {
      // One that the session does not keep may come before those that it does.
      const isFirm = !!offset_ || !session_.sid_;
      if (isFirm) entry.position_ = position;
      this.client_.topics_?.note_(said_.t, position, isFirm);
    }
    if (this.client_.keyed_?.(this, entry, said_)) return;

    // A part of a larger read would keep all of it.
    frame_.payload_ = payload_.slice();
    this.queue_.set(entry.id_, entry);
    this.bytes_ += entry.size_;
    if (!offset_) this.loose_.add(entry);
    for (const oldest of this.loose_) {
      if (!this.isFull_(this.queue_.size, 0)) break;
      this.leave_(oldest, "error");
      this.dropped_++;
    }
    if (!this.isRunning_) void this.run_();
  }

  private take_(entry: Entry) {
    this.queue_.delete(entry.id_);
    this.loose_.delete(entry);
    this.bytes_ -= entry.size_;
  }

  /** One that waits is dealt with. */
  leave_(entry: Entry, why: Failure) {
    this.take_(entry);
    this.end_(entry, why);
  }

  private end_(entry: Entry, why?: Failure) {
    if (entry.position_) this.client_.topics_?.handled_(entry.frame_.said_.t!, entry.position_);
    this.client_.done_(entry, why);
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

  private async handle_({ frame_: frame, position_: position }: Entry): Promise<Failure | undefined> {
    const { path_: path, method_: method, payload_: bytes, meta_: meta, said_: { t: topic } } = frame;
    const { client_: client, dropped_: dropped } = this;
    const { topics_: topics, listeners_: all } = client;
    let value: unknown;
    try {
      value = client.decode_(frame);
    } catch (error) {
      client.report_(error, `the payload of ${path}.${method}`);
      return "bad_arguments";
    }
    // The server says who is there.
    if (frame.isOurs_) return void topics?.presence_(value);

    this.dropped_ = 0;
    const message: Message = { path, method, bytes, dropped, meta, text: () => text(bytes), topic, position };
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
