// The server, as the page knows it: one connection, and the numbers of the last minutes.

import { Bothways, followPage, heedGoodbye } from "./client.js";

const ADMIN = "_bothways.Admin";

/** Seconds that the charts show. */
export const HISTORY = 180;

/** Events of the feed that the page keeps. */
const EVENTS_MAX = 200;

export class Server extends EventTarget {
  /** Of the last seconds, oldest first: what `Stats` returned, and what changed in a second. */
  points = [];
  /** The newest events, newest first. */
  events = [];
  missed = 0;
  me;
  #bothways;
  #next;
  #timer;
  #isClosed = false;

  /** Connects and learns who the operator is. Rejects if the token is wrong. */
  static async open(token) {
    const server = new Server();
    server.#bothways = new Bothways("/_rpcx_", { token, connectTimeout: 8000, onError: () => {} });
    followPage(server.#bothways);
    heedGoodbye(server.#bothways);
    server.#bothways.on("state", (state) => server.#tell("state", state));
    try {
      await server.#bothways.connect();
      server.me = await server.ask("Me");
    } catch (error) {
      server.close();
      throw error;
    }
    server.#poll();
    document.addEventListener("visibilitychange", server.#onVisible);
    return server;
  }

  get state() {
    return this.#bothways.state;
  }

  get last() {
    return this.points.at(-1);
  }

  may(role) {
    const roles = ["look", "push", "kick"];
    return roles.indexOf(role) <= roles.indexOf(this.me.role);
  }

  ask(method, args = null, options = {}) {
    return this.#bothways.call(ADMIN, method, args, { timeout: 15_000, ...options });
  }

  close() {
    this.#isClosed = true;
    clearTimeout(this.#timer);
    document.removeEventListener("visibilitychange", this.#onVisible);
    this.#bothways.close();
  }

  #onVisible = () => {
    if (!document.hidden) this.#poll();
  };

  #tell(name, detail) {
    this.dispatchEvent(Object.assign(new Event(name), { detail }));
  }

  async #poll() {
    clearTimeout(this.#timer);
    const began = performance.now();
    try {
      const [stats, feed] = await Promise.all([
        this.ask("Stats"),
        this.ask("Events", { from: this.#next ?? null, max: 200 }),
      ]);
      this.#take(stats);
      this.#takeEvents(feed);
    } catch {
      // The state says that the connection is lost; a server that began anew counts from the start.
    }
    if (this.#isClosed) return;
    const pause = document.hidden ? 10_000 : 1000;
    this.#timer = setTimeout(() => this.#poll(), Math.max(100, pause - (performance.now() - began)));
  }

  #take(stats) {
    const before = this.last?.stats;
    const isSame = before && stats.up_ms > before.up_ms;
    if (before && !isSame) this.points = [];
    const seconds = isSame ? (stats.up_ms - before.up_ms) / 1000 : 0;
    const rates = {};
    for (const [name, value] of Object.entries(stats.counters)) {
      if (seconds > 0) rates[name] = Math.max(0, value - (before.counters[name] ?? value)) / seconds;
    }
    this.points.push({ stats, rates });
    if (this.points.length > HISTORY) this.points.shift();
    this.#tell("stats", stats);
  }

  #takeEvents(feed) {
    this.#next = feed.next;
    this.missed += feed.missed;
    if (feed.events.length === 0) return;
    this.events.unshift(...feed.events.reverse());
    this.events.length = Math.min(this.events.length, EVENTS_MAX);
    this.#tell("events", feed.events);
  }
}

/** What went wrong, for an operator. */
export const why = (error) => (error?.name === "AbortError" ? "" : String(error?.message ?? error));
