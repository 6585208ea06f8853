/** Subscriptions: what the session has, where each topic is, and who is there. */

import type { Core } from "./client.js";
import { CONTROL } from "./conn.js";
import { BothwaysError } from "./error.js";
import { MSGPACK_TYPE, type Meta } from "./frame.js";
import { listen, type Listeners } from "./listeners.js";
import type { Entry } from "./pushes.js";
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

/** Errors after which the next connection asks, and those after which this one does. */
const GONE = /^(lost|closed)$/;
const PASSING = /^(overl|shut|time|int|queue|not_c)/;

/** The position of a topic without a history. */
const NOWHERE: Position = { epoch: 0n, offset: 0n };

const positionOf = (pair: unknown[]): Position => {
  const [epoch, offset] = pair.map((part) => parseOffset(`${part}`)) as [bigint, bigint];
  return { epoch, offset };
};

/** True if a pattern covers a topic, or is it: `*` is one segment, `>` at the end one or more. */
export function covers(pattern: string, topic: string): boolean {
  const names = topic.split(".");
  const parts = pattern.split(".");
  if (parts.at(-1) == ">" && names.length >= parts.length) names.length = --parts.length;
  return names.length == parts.length && parts.every((part, at) => part == "*" || part == names[at]);
}

/** A process need not live for that. */
const pause = (ms: number) =>
  new Promise<void>((done) => (setTimeout(done, ms) as { unref?(): void }).unref?.());

/**
 * Subscribes to a topic or a pattern: `*` is one segment, `>` at the end one or more. Lasts until it is ended, over lost
 * connections and sessions. The options of the first subscription to a topic count for all of them. It may begin before
 * `connect()`.
 */
export const subscribe = (client: Core, topic: string, handler: PushHandler, options?: SubscribeOptions): Subscription =>
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
  ok_!: (value: { recovered: boolean }) => void;
  /** @internal */
  no_!: (error: unknown) => void;

  /** @internal */
  constructor(
    private topics_: Topics,
    /** @internal */ readonly of_: Topic,
    /** @internal */ readonly handler_: PushHandler,
  ) {
    this.ready = new Promise((ok, no) => ([this.ok_, this.no_] = [ok, no]));
    // An application that listens for errors need not look at this promise too.
    this.ready.catch(() => {});
  }

  /** The topic, or the pattern. */
  get topic(): string {
    return this.of_.name_;
  }

  /** The last message of the topic's history that this client has; none of a pattern, or without a history. */
  get position(): Position | undefined {
    const { at_ } = this.of_;
    return at_.epoch ? at_ : undefined;
  }

  /** Who is in the topic, if `presence` was asked for; empty before it is known. */
  get members(): Member[] {
    return [...this.of_.members_.values()];
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
class Topic {
  subs_ = new Set<Subscription>();
  at_: Position = NOWHERE;
  /** The present session has it. */
  isHeld_?: boolean;
  /** The present session was asked for it. */
  isAsked_?: boolean;
  /** A session has had it. */
  wasHeld_?: boolean;
  /** Up to where the application has handled it. */
  handled_?: Position;
  /** Requests about this topic go one after the other. */
  line_?: Promise<unknown>;
  /** Grows with each reason to ask; a request that is not the newest stops. */
  asked_ = 0;
  members_ = new Map<string, Member>();
  generation_ = 0;
  rosters_ = 0;
  readonly isPattern_: boolean;

  constructor(readonly name_: string, readonly recover_: boolean) {
    this.isPattern_ = /[*>]/.test(name_);
  }

  note_(at: Position) {
    if (at.epoch && (at.epoch != this.at_.epoch || at.offset > this.at_.offset)) this.at_ = at;
  }
}

/** One in a topic, and its key among the others. */
const memberOf = ({ User = "", Session = "", Status }: any): [string, Member] => {
  const [user, session] = [`${User}`, `${Session}`];
  return [user ? "u" + user : "s" + session, { user, session, status: /^(offline|reconnecting)$/.test(Status) ? Status : "online" }];
};

export class Topics {
  private all_ = new Map<string, Topic>();
  /** Left while the session may have them. */
  private left_ = new Set<string>();

  constructor(private client_: Core) {
    const { listeners_: all } = client_;
    client_.on("state", (state) => {
      if (state.name == "connected") this.begin_(state.resumed);
      if (state.name == "closed") this.close_(state.why);
    });
    client_.on("gap", () => this.gap_());
    listen(all, "_came", (entry: Entry) => this.came_(entry));
    // The application has handled a message.
    listen(all, "_done", ({ frame_, position_ }: Entry) => {
      const topic = this.all_.get(frame_.said_.t!);
      if (topic && position_) topic.handled_ = position_;
    });
    // Who comes and goes is MessagePack.
    if (client_.control_.type != MSGPACK_TYPE) return;
    client_.onPush(CONTROL, "Presence", (change) => this.presence_(change));
    listen(all, "_hello", (hello: Meta) => {
      const { "_bw.fns": names } = hello;
      if (names !== undefined) hello["_bw.fns"] = `${names && names + ","}${CONTROL}.Presence`;
    });
  }

  join_(name: string, handler: PushHandler, { recover = true, from, presence }: SubscribeOptions = {}): Subscription {
    const known = this.all_.get(name);
    const topic = known ?? new Topic(name, recover);
    const sub = new Subscription(this, topic, handler);
    if (presence) listen(sub.events_, "presence", presence);
    topic.subs_.add(sub);
    this.left_.delete(name);
    if (!known) {
      this.all_.set(name, topic);
      this.place_(topic);
      if (from) topic.note_(from);
      void this.subscribe_(topic);
    } else if (topic.isHeld_) {
      sub.ok_({ recovered: !from });
      if (presence) this.roster_(topic);
    }
    return sub;
  }

  /** Calls `_bothways`. */
  private async call_(method: string, args: object): Promise<any> {
    const { client_: client } = this;
    const codec = client.control_;
    return client.decode_(await client.send_(CONTROL, method, args, { codec }), codec);
  }

  /** Goes on where another page was. */
  restore_() {
    for (const topic of this.all_.values()) this.place_(topic);
  }

  private place_(topic: Topic) {
    const positions = this.client_.store_?.positions_ ?? {};
    const at = Object.hasOwn(positions, topic.name_) && positions[topic.name_];
    if (at) topic.note_((topic.handled_ = positionOf(at)));
  }

  async leave_(sub: Subscription): Promise<void> {
    const { of_: topic } = sub;
    const { name_: name } = topic;
    topic.subs_.delete(sub);
    sub.no_(new BothwaysError("closed", "unsubscribed"));
    if (topic.subs_.size || this.all_.get(name) != topic) return;
    this.all_.delete(name);
    topic.asked_++;
    if (topic.isAsked_) this.left_.add(name);
    await topic.line_;
    await this.unsubscribe_(name);
  }

  /** The server is not to have it. What cannot be told now is told on the next connection. */
  private async unsubscribe_(name: string): Promise<void> {
    if (!this.client_.conn_?.isUp_ || !this.left_.has(name)) return;
    const isDone = await this.call_("Unsubscribe", { Topic: name }).then(() => true, () => false);
    if (isDone && !this.all_.has(name)) this.left_.delete(name);
  }

  /** A connection stands. */
  private begin_(isResumed: boolean) {
    const topics = [...this.all_.values()];
    if (isResumed) {
      for (const name of this.left_) void this.unsubscribe_(name);
    } else {
      this.left_.clear();
      this.lost_();
    }

    const asked = new Map<Topic, Promise<unknown>>();
    for (const topic of topics) {
      if (topic.isPattern_) continue;
      if (topic.isHeld_) this.roster_(topic);
      else asked.set(topic, this.subscribe_(topic));
    }
    for (const topic of topics) {
      if (topic.isHeld_ || !topic.isPattern_) continue;
      const covered = [...asked].filter(([{ name_, at_ }]) => at_.epoch && covers(topic.name_, name_)).map(([, done]) => done);
      void this.subscribe_(topic, covered.length ? Promise.race([Promise.all(covered), pause(ORDER_WAIT)]) : undefined);
    }
  }

  /** The session is lost; what it had is asked for when there is another one. */
  private lost_() {
    for (const topic of this.all_.values()) topic.isHeld_ = topic.isAsked_ = false;
  }

  /** The server dropped something. */
  private gap_() {
    for (const topic of this.all_.values()) {
      if (!topic.isHeld_) continue;
      if (topic.recover_ && topic.at_.epoch) void this.subscribe_(topic);
      else this.missing_(topic);
      this.roster_(topic);
    }
  }

  private missing_(topic: Topic) {
    for (const sub of topic.subs_) this.client_.emit_(sub.events_, "gap", { topic: topic.name_ });
  }

  /** Has the server send what is published to a topic, and what was missed, until it does, refuses, or is gone. */
  private subscribe_(topic: Topic, after?: Promise<unknown>): Promise<unknown> {
    return (topic.line_ = this.ask_(topic, ++topic.asked_, topic.line_, after));
  }

  private async ask_(topic: Topic, asked: number, before?: Promise<unknown>, after?: Promise<unknown>) {
    await before;
    await after;
    const { client_: client } = this;
    const { name_, recover_, subs_ } = topic;
    const { conn_: conn } = client;
    const goesOn = () => topic.asked_ == asked && conn?.isUp_ && client.conn_ == conn;
    const wasLost = !topic.isHeld_ && topic.wasHeld_;
    let isRefused = false;
    for (let tries = 0; goesOn(); tries++) {
      const { epoch, offset } = recover_ ? topic.at_ : NOWHERE;
      const args = { Topic: name_, Epoch: asNumber(epoch), Offset: asNumber(offset), Part: true, Ordered: recover_ };
      let [wait, most]: readonly [number, number] = SOON;
      topic.isAsked_ = true;
      try {
        const { Epoch, Offset, Later, More, Recovered } = (await this.call_("Subscribe", args)) ?? {};
        if (!goesOn()) return;
        const at = positionOf([Epoch, Offset]);
        if (!Later || More) topic.note_(at);
        if (!Later && !More) {
          // All that is published from here on comes: so a later page asks from here if nothing has come by then.
          if (at.epoch && !Recovered) topic.handled_ = at;
          client.store_?.save_();
          return this.hold_(topic, !!Recovered || !epoch, !!wasLost);
        }
        if (at.offset > offset) tries = 0;
      } catch (error) {
        const { code } = error as BothwaysError;
        if (!goesOn() || GONE.test(code)) return;
        if (!PASSING.test(code)) {
          const final = !topic.wasHeld_ || /not_f|bad|code/.test(code);
          if (final) this.all_.delete(name_);
          if (!isRefused) for (const sub of subs_) client.emit_(sub.events_, "error", { error, final });
          if (final) return this.end_(topic, error);
          isRefused = true;
          [wait, most] = SLOWLY;
        }
      }
      await pause(Math.min(most, wait * 2 ** Math.min(tries, 20)) * (0.5 + Math.random() / 2));
    }
  }

  private hold_(topic: Topic, recovered: boolean, wasLost: boolean) {
    topic.isHeld_ = topic.wasHeld_ = true;
    for (const sub of topic.subs_) sub.ok_({ recovered });
    if (!recovered || (wasLost && !topic.at_.epoch)) this.missing_(topic);
    this.roster_(topic);
  }

  private end_(topic: Topic, error: unknown) {
    for (const sub of topic.subs_) sub.no_(error);
  }

  /** A message came for the first time. */
  private came_(entry: Entry) {
    const { frame_: { said_: { t: name, te, to } }, offset_, session_ } = entry;
    if (name === undefined) return;
    entry.others_ = () => this.handlers_(name);
    const at = positionOf([te, to]);
    const topic = this.all_.get(name);
    if (!at.epoch) return;
    // One that the session does not keep may come before those that it does: it counts only as the next one.
    if (offset_ || !session_.sid_) entry.position_ = at;
    const isNext = at.epoch == topic?.at_.epoch && at.offset == topic.at_.offset + 1n;
    if (entry.position_ || isNext) topic?.note_(at);
  }

  /** Epoch and offset of each topic, up to where the application has handled it. */
  save_(): Store["positions_"] {
    const handled = [...this.all_].filter(([, { handled_ }]) => handled_);
    return Object.fromEntries(handled.map(([name, { handled_ }]) => [name, [`${handled_!.epoch}`, `${handled_!.offset}`]]));
  }

  private handlers_(name: string): PushHandler[] {
    const topics = [...this.all_.values()].filter(({ name_ }) => covers(name_, name));
    return topics.flatMap(({ subs_ }) => [...subs_].map(({ handler_ }) => handler_));
  }

  // ---- Presence -----------------------------------------------------------------------------------------------------

  private show_(topic: Topic) {
    for (const { events_, members } of topic.subs_) this.client_.emit_(events_, "presence", members);
  }

  /** A change; older ones than the roster are in it. */
  private presence_(change: any) {
    const topic = this.all_.get(`${change?.Topic}`);
    const generation = Number(change?.Generation);
    if (!topic || !(generation > topic.generation_)) return;
    topic.generation_ = generation;
    const { members_ } = topic;
    const [key, member] = memberOf(change);
    if (member.status == "offline") members_.delete(key);
    else if (members_.has(key) || members_.size < MEMBERS_MAX) members_.set(key, member);
    this.show_(topic);
  }

  private roster_(topic: Topic) {
    if (topic.isPattern_ || ![...topic.subs_].some(({ events_ }) => events_.has("presence"))) return;
    this.askWho_(topic).catch((error) => {
      // The next connection asks again.
      if (!GONE.test(error.code)) this.client_.report_(error, `presence of ${topic.name_}`);
    });
  }

  /** Asks for everybody who is there. */
  private async askWho_(topic: Topic): Promise<void> {
    const round = ++topic.rosters_;
    const found = new Map<string, Member>();
    let generation: number | undefined;
    for (let [AfterUser, AfterSession, more] = ["", "", true]; more; ) {
      const { Generation, Members, More } = (await this.call_("Roster", { Topic: topic.name_, AfterUser, AfterSession })) ?? {};
      if (round != topic.rosters_) return;
      generation ??= Number(Generation) || 0;
      const members: any[] = Array.isArray(Members) ? Members : [];
      for (const [key, member] of members.map(memberOf)) {
        [AfterUser, AfterSession] = [member.user, member.session];
        found.set(key, member);
      }
      // A server that says there is more and sends nothing is not asked for ever.
      more = !!More && members.length > 0 && found.size < MEMBERS_MAX;
    }
    // What changed meanwhile is newer: then it is asked again.
    const isOld = topic.generation_ > generation!;
    topic.generation_ = generation!;
    if (isOld) return this.askWho_(topic);
    topic.members_ = found;
    this.show_(topic);
  }

  private close_(error: BothwaysError) {
    for (const topic of this.all_.values()) {
      topic.asked_++;
      topic.isHeld_ = false;
      this.end_(topic, error);
    }
  }
}

/** As a number where that is exact: JSON has no others. */
const asNumber = (value: bigint): number | bigint => (Number.isSafeInteger(Number(value)) ? Number(value) : value);
