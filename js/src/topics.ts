/** Subscriptions: what the session has, where each topic is, and who is there. */

import type { Core } from "./client.js";
import { BothwaysError } from "./error.js";
import { listen, type Listeners } from "./listeners.js";
import { parseOffset } from "./session.js";
import type { Store } from "./store.js";
import type { Member, Position, PushHandler, SubscribeOptions, SubscriptionEvents } from "./types.js";

/** Waits at first, and at most, before a server that could not serve a request for now is asked again. */
const SOON = [50, 5000] as const;
/** The same after a refusal. */
const SLOWLY = [1000, 60_000] as const;
/** Most members of one topic that are kept. */
const MEMBERS_MAX = 10_000;
/** How long a pattern waits for the topics that it covers, so that nothing new overtakes what they missed. */
const ORDER_WAIT = 5000;

const isPassing = ({ code }: BothwaysError) =>
  /^(overloaded|shutting_down|timeout|internal|queue_full|not_connected)$/.test(code);

/** True if a pattern covers a topic: `*` is one segment, `>` at the end one or more. */
export function covers(pattern: string, topic: string): boolean {
  const names = topic.split(".");
  const parts = pattern.split(".");
  const open = parts.at(-1) == ">";
  if (open) parts.pop();
  return (open ? names.length > parts.length : names.length == parts.length) &&
    parts.every((part, at) => part == "*" || part == names[at]);
}

const isPattern = (topic: string) => /[*>]/.test(topic);
/** A process need not live for that. */
const pause = (ms: number) =>
  new Promise<void>((done) => (setTimeout(done, ms) as { unref?(): void }).unref?.());

/**
 * Subscribes to a topic or a pattern: `*` is one segment, `>` at the end one or more. Lasts until it is ended, over lost
 * connections and sessions. The options of the first subscription to a topic count for all of them. It may begin before
 * `connect()`.
 */
export const subscribe = (client: Core, topic: string, handler: PushHandler, options: SubscribeOptions = {}): Subscription =>
  topicsOf(client).join_(topic, handler, options);

export const topicsOf = (client: Core): Topics => (client.topics_ ??= new Topics(client));

/** One subscription of the application. */
export class Subscription {
  /** @internal */
  events_: Listeners = new Map();
  /**
   * Resolves when the server has taken the subscription: `recovered` says whether everything after `from` is on its way.
   * Rejects if the server refuses it; the subscription has ended then.
   */
  readonly ready: Promise<{ recovered: boolean }>;
  /** @internal */
  settle_!: { ok_(value: { recovered: boolean }): void; no_(error: unknown): void };

  /** @internal */
  constructor(
    private topics_: Topics,
    /** @internal */ readonly of_: Topic,
    /** @internal */ readonly handler_: PushHandler,
    /** @internal */ readonly presence_: SubscribeOptions["presence"],
  ) {
    this.ready = new Promise((ok_, no_) => (this.settle_ = { ok_, no_ }));
    // An application that listens for errors need not look at this promise too.
    this.ready.catch(() => {});
  }

  /** The topic, or the pattern. */
  get topic(): string {
    return this.of_.name_;
  }

  /** The last message of the topic's history that this client has; none of a pattern, or without a history. */
  get position(): Position | undefined {
    const { epoch_: epoch, offset_: offset } = this.of_;
    return epoch ? { epoch, offset } : undefined;
  }

  /** Who is in the topic, if `presence` was asked for; empty before it is known. */
  get members(): Member[] {
    return this.of_.list_();
  }

  on<N extends keyof SubscriptionEvents>(name: N, listener: (event: SubscriptionEvents[N]) => void): () => void {
    return listen(this.events_, name, listener);
  }

  /** Ends it: its handler is not called any more. Resolves when the server knows, or cannot be told. */
  unsubscribe(): Promise<void> {
    return this.topics_.leave_(this);
  }
}

/** A topic to which at least one subscription goes. */
export class Topic {
  subs_ = new Set<Subscription>();
  epoch_ = 0n;
  offset_ = 0n;
  /** The present session has it. */
  held_ = false;
  /** A session has had it. */
  wasHeld_ = false;
  /** Up to where the application has handled it. */
  handled_?: Position;
  /** Requests about this topic go one after the other. */
  line_: Promise<unknown> = Promise.resolve();
  /** Grows with each reason to ask; a request that is not the newest stops. */
  asked_ = 0;
  members_ = new Map<string, Member>();
  private generation_ = 0;
  private rosters_ = 0;

  constructor(readonly name_: string, readonly recover_: boolean) {}

  list_(): Member[] {
    return [...this.members_.values()];
  }

  note_(position: Position) {
    if (position.epoch != this.epoch_) [this.epoch_, this.offset_] = [position.epoch, position.offset];
    else if (position.offset > this.offset_) this.offset_ = position.offset;
  }

  private key_ = (user: string, session: string) => (user ? "u" + user : "s" + session);

  private tell_(client: Core) {
    for (const sub of this.subs_) {
      try {
        sub.presence_?.(this.list_());
      } catch (error) {
        client.report_(error, `presence of ${this.name_}`);
      }
    }
  }

  /** A change; older ones than the roster are in it. */
  change_(client: Core, { User = "", Session = "", Status, Generation }: any) {
    if (!(Number(Generation) > this.generation_)) return;
    this.generation_ = Number(Generation);
    const [user, session] = [String(User), String(Session)];
    const key = this.key_(user, session);
    if (Status == "offline") this.members_.delete(key);
    else if (this.members_.has(key) || this.members_.size < MEMBERS_MAX) {
      this.members_.set(key, { user, session, status: Status == "reconnecting" ? Status : "online" });
    }
    this.tell_(client);
  }

  /** Asks for everybody who is there. */
  async roster_(client: Core): Promise<void> {
    if (![...this.subs_].some((sub) => sub.presence_) || isPattern(this.name_)) return;
    const round = ++this.rosters_;
    const found = new Map<string, Member>();
    let generation = 0;
    let [AfterUser, AfterSession] = ["", ""];
    for (let more = true, page = 0; more; page++) {
      const reply = await client.ask_("Roster", { Topic: this.name_, AfterUser, AfterSession });
      if (round != this.rosters_) return;
      if (!page) generation = Number(reply?.Generation) || 0;
      const members: any[] = Array.isArray(reply?.Members) ? reply.Members : [];
      for (const { User = "", Session = "", Status } of members) {
        [AfterUser, AfterSession] = [String(User), String(Session)];
        found.set(this.key_(AfterUser, AfterSession), { user: AfterUser, session: AfterSession, status: Status });
      }
      // A server that says there is more and sends nothing is not asked for ever.
      more = !!reply?.More && members.length > 0 && found.size < MEMBERS_MAX;
    }
    // What changed meanwhile is newer: then it is asked again.
    if (this.generation_ > generation) {
      this.generation_ = generation;
      return this.roster_(client);
    }
    [this.generation_, this.members_] = [generation, found];
    this.tell_(client);
  }
}

export class Topics {
  all_ = new Map<string, Topic>();
  /** Left while the session may have them. */
  private left_ = new Set<string>();

  constructor(private client_: Core) {}

  join_(name: string, handler: PushHandler, options: SubscribeOptions): Subscription {
    let topic = this.all_.get(name);
    if (!topic) {
      this.all_.set(name, (topic = new Topic(name, options.recover !== false)));
      this.place_(topic);
    }
    const sub = new Subscription(this, topic, handler, options.presence);
    const first = !topic.subs_.size;
    topic.subs_.add(sub);
    this.left_.delete(name);

    if (options.from && first) topic.note_(options.from);
    if (topic.held_) {
      sub.settle_.ok_({ recovered: !options.from });
      if (sub.presence_) this.roster_(topic);
    } else if (first) {
      void this.subscribe_(topic);
    }
    return sub;
  }

  /** Goes on where an earlier page was. */
  restore_() {
    for (const topic of this.all_.values()) if (!topic.epoch_) this.place_(topic);
  }

  private place_(topic: Topic) {
    const positions = this.client_.store_?.positions_ ?? {};
    const at = Object.hasOwn(positions, topic.name_) && positions[topic.name_];
    if (at) topic.note_({ epoch: parseOffset(at[0]), offset: parseOffset(at[1]) });
  }

  async leave_(sub: Subscription): Promise<void> {
    const topic = sub.of_;
    topic.subs_.delete(sub);
    sub.settle_.no_(new BothwaysError("closed", "unsubscribed"));
    if (topic.subs_.size || this.all_.get(topic.name_) != topic) return;
    this.all_.delete(topic.name_);
    topic.asked_++;
    this.left_.add(topic.name_);
    await this.unsubscribe_(topic.name_, topic.line_);
  }

  /** The server is not to have it. What cannot be told now is told on the next connection. */
  private async unsubscribe_(name: string, line: Promise<unknown>): Promise<void> {
    await line;
    const conn = this.client_.conn_;
    if (!conn?.isUp_ || !this.left_.has(name)) return;
    const done = await this.client_.ask_("Unsubscribe", { Topic: name }).then(() => true, () => false);
    if (done && !this.all_.has(name)) this.left_.delete(name);
  }

  /** A connection stands. */
  begin_(resumed: boolean) {
    const topics = [...this.all_.values()];
    if (resumed) {
      for (const name of this.left_) void this.unsubscribe_(name, Promise.resolve());
    } else {
      this.left_.clear();
      for (const topic of topics) topic.held_ = false;
    }

    const exact = topics.filter((topic) => !isPattern(topic.name_));
    const asked = new Map(exact.map((topic) => [topic, topic.held_ ? undefined : this.subscribe_(topic)]));
    for (const topic of exact) if (topic.held_) this.roster_(topic);
    for (const topic of topics) {
      if (topic.held_ || !isPattern(topic.name_)) continue;
      const covered = exact.filter(({ name_, epoch_ }) => epoch_ && covers(topic.name_, name_)).map((of) => asked.get(of));
      const ordered = covered.length ? Promise.race([Promise.all(covered), pause(ORDER_WAIT)]) : undefined;
      void this.subscribe_(topic, ordered);
    }
  }

  /** The session is lost; what it had is asked for when there is another one. */
  lost_() {
    for (const topic of this.all_.values()) topic.held_ = false;
  }

  /** The server dropped something. */
  gap_() {
    for (const topic of this.all_.values()) {
      if (!topic.held_) continue;
      if (topic.recover_ && topic.epoch_) void this.subscribe_(topic);
      else this.missing_(topic);
      this.roster_(topic);
    }
  }

  private missing_(topic: Topic) {
    for (const sub of topic.subs_) this.client_.emit_(sub.events_, "gap", { topic: topic.name_ });
  }

  private roster_(topic: Topic) {
    topic.roster_(this.client_).catch((error) => {
      // The next connection asks again.
      if (error?.code != "lost" && error?.code != "closed") this.client_.report_(error, `the roster of ${topic.name_}`);
    });
  }

  /** Has the server send what is published to a topic, and what was missed, until it does, refuses, or is gone. */
  private subscribe_(topic: Topic, after?: Promise<unknown>): Promise<void> {
    const asked = ++topic.asked_;
    const before = topic.line_;
    return (topic.line_ = this.ask_(topic, asked, before, after));
  }

  private async ask_(topic: Topic, asked: number, before: Promise<unknown>, after?: Promise<unknown>) {
    await before;
    await after;
    const conn = this.client_.conn_;
    const goesOn = () => topic.asked_ == asked && conn?.isUp_ && this.client_.conn_ == conn;
    const wasLost = !topic.held_ && topic.wasHeld_;
    let tries = 0;
    let refused = false;

    while (goesOn()) {
      const { epoch_, offset_, recover_ } = topic;
      const from = recover_ ? { Epoch: asNumber(epoch_), Offset: asNumber(offset_) } : { Epoch: 0, Offset: 0 };
      let wait: readonly [number, number] = SOON;
      try {
        const args = { Topic: topic.name_, ...from, Part: true, Ordered: recover_ };
        const reply = await this.client_.ask_("Subscribe", args);
        if (!goesOn()) return;
        const position = { epoch: asBig(reply?.Epoch), offset: asBig(reply?.Offset) };
        if (!reply?.Later && !reply?.More) {
          if (position.epoch) topic.note_(position);
          return this.hold_(topic, !!reply?.Recovered || !from.Epoch, wasLost);
        }
        if (reply.More) {
          if (position.offset > offset_) tries = 0;
          if (position.epoch) topic.note_(position);
        }
      } catch (error) {
        if (!goesOn() || !(error instanceof BothwaysError) || error.code == "lost" || error.code == "closed") return;
        const final = !isPassing(error) && (!topic.wasHeld_ || /not_found|bad_arg|encode|decode/.test(error.code));
        if (!isPassing(error)) {
          if (final) this.all_.delete(topic.name_);
          if (!refused) for (const sub of topic.subs_) this.client_.emit_(sub.events_, "error", { error, final });
          refused = true;
          wait = SLOWLY;
        }
        if (final) {
          for (const sub of topic.subs_) sub.settle_.no_(error);
          return;
        }
      }
      const most = Math.min(wait[1], wait[0] * 2 ** Math.min(tries++, 20));
      await pause(most / 2 + (Math.random() * most) / 2);
    }
  }

  private hold_(topic: Topic, recovered: boolean, wasLost: boolean) {
    topic.held_ = topic.wasHeld_ = true;
    for (const sub of topic.subs_) sub.settle_.ok_({ recovered });
    if (!recovered || (wasLost && !topic.epoch_)) this.missing_(topic);
    this.roster_(topic);
  }

  /** A message came for the first time. */
  note_(name: string, position: Position, isTracked: boolean) {
    const topic = this.all_.get(name);
    if (!topic) return;
    // Nobody keeps one that is not tracked, and those before it may still come: it counts only as the next one.
    const isNext = position.epoch == topic.epoch_ && position.offset == topic.offset_ + 1n;
    if (isTracked || isNext) topic.note_(position);
  }

  /** The application has handled a message. */
  handled_(name: string, position: Position) {
    const topic = this.all_.get(name);
    if (topic) topic.handled_ = position;
  }

  /** Epoch and offset of each topic, up to where the application has handled it. */
  save_(): Store["positions_"] {
    const positions: Store["positions_"] = {};
    for (const [name, { handled_: at }] of this.all_) if (at) positions[name] = [`${at.epoch}`, `${at.offset}`];
    return positions;
  }

  handlers_(name: string): PushHandler[] {
    const handlers: PushHandler[] = [];
    for (const [pattern, topic] of this.all_) {
      if (pattern == name || covers(pattern, name)) for (const sub of topic.subs_) handlers.push(sub.handler_);
    }
    return handlers;
  }

  presence_(change: any) {
    this.all_.get(String(change?.Topic))?.change_(this.client_, change);
  }

  close_(error: BothwaysError) {
    for (const topic of this.all_.values()) {
      topic.asked_++;
      topic.held_ = false;
      for (const sub of topic.subs_) sub.settle_.no_(error);
    }
  }
}

const asBig = (value: unknown): bigint => {
  try {
    return BigInt.asUintN(64, BigInt((value as number) ?? 0));
  } catch {
    return 0n;
  }
};

/** As a number where that is exact: JSON has no others. */
const asNumber = (value: bigint): number | bigint =>
  Number.isSafeInteger(Number(value)) ? Number(value) : value;
