/** Pushes that wait for the application, and those whom they wait for. */

import type { Core } from "./client.js";
import { text, type Frame } from "./frame.js";
import type { Failure, Session } from "./session.js";
import type { Message, Position, PushHandler } from "./types.js";

/** What a push takes in memory beside its payload, about. */
const PUSH_BYTES = 256;

export interface Entry {
  frame_: Frame;
  session_: Session;
  /** 0: it is not tracked. */
  offset_: bigint;
  /** Where it stands in its topic, if that is known here. */
  position_?: Position;
  /** Who wants it beside the handlers of its method. */
  others_?(): PushHandler[];
  /** Somebody else has dealt with it, or will. */
  isTaken_?: boolean;
}

export class Pushes {
  private queue_ = new Set<Entry>();
  private bytes_ = 0;
  private isRunning_?: boolean;
  /** Dropped since the last message that was given. */
  dropped_ = 0;

  constructor(private client_: Core) {}

  /** One may always wait, however large. */
  private isFull_(bytes: number): boolean {
    const { queueMessagesMax, queueBytesMax } = this.client_.settings_;
    const { size } = this.queue_;
    return size >= queueMessagesMax || (size > 0 && this.bytes_ + bytes + PUSH_BYTES > queueBytesMax);
  }

  /** Makes room for a payload, at the cost of those that are not tracked, the oldest first. False: it has none. */
  hasRoom_(bytes: number): boolean {
    for (const entry of this.queue_) {
      if (!this.isFull_(bytes)) break;
      if (entry.offset_) continue;
      this.leave_(entry, "error");
      this.dropped_++;
    }
    return !this.isFull_(bytes);
  }

  add_(frame_: Frame, session_: Session, offset_: bigint): void {
    const { client_: client } = this;
    const entry: Entry = { frame_, session_, offset_ };
    client.tell_("_came", entry);
    if (entry.isTaken_) return;

    // A part of a larger read would keep all of it.
    frame_.payload_ = frame_.payload_.slice();
    this.queue_.add(entry);
    this.bytes_ += frame_.payload_.length + PUSH_BYTES;
    if (!this.isRunning_) void this.run_();
  }

  private take_(entry: Entry): boolean {
    const isHere = this.queue_.delete(entry);
    if (isHere) this.bytes_ -= entry.frame_.payload_.length + PUSH_BYTES;
    return isHere;
  }

  /** One that waits is dealt with. */
  leave_(entry: Entry, why: Failure) {
    if (this.take_(entry)) this.client_.done_(entry, why);
  }

  private async run_(): Promise<void> {
    this.isRunning_ = true;
    for (const entry of this.queue_) {
      this.take_(entry);
      this.client_.done_(entry, await this.handle_(entry));
    }
    this.isRunning_ = false;
  }

  private async handle_({ frame_, position_: position, others_ }: Entry): Promise<Failure | undefined> {
    const { path_: path, method_: method, payload_: bytes, meta_: meta, said_: { t: topic } } = frame_;
    const { client_: client, dropped_: dropped } = this;
    const { listeners_: all } = client;
    let value: unknown;
    try {
      value = client.decode_(frame_);
    } catch (error) {
      client.report_(error, `the payload of ${path}.${method}`);
      return "bad_arguments";
    }

    this.dropped_ = 0;
    const message: Message = { path, method, bytes, dropped, meta, text: () => text(bytes), topic, position };
    // A method or a path `*` takes those without a handler of their own, but nothing of the framework's.
    const names = [`${path}\n${method}`, `${path}\n*`, "*\n*"];
    const named = frame_.isOurs_ ? names[0] : names.find((name) => all.has(name));
    const handlers = [...(all.get(named!) ?? []), ...(others_?.() ?? [])];
    if (!handlers.length) {
      client.tell_("unhandled", message);
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
