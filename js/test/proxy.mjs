// Stands between clients and a server, and breaks what it carries: it cuts, refuses, or lets nothing through.
import { once } from "node:events";
import { connect, createServer } from "node:net";

/** Host and port of `ws@host:port`. */
const placeOf = (address) => {
  const [, host, port] = /^ws@(.*):(\d+)$/.exec(address);
  return { host, port: Number(port) };
};

/**
 * Ends a connection as a network does that is gone. One that is being shut down already cannot be reset: Node would keep its
 * handle, and wait for it at the end of the process for ever, with a busy core.
 */
const reset = (socket) => (socket.writableEnded ? socket.destroy() : socket.resetAndDestroy());

export class Proxy {
  /** Connections so far. */
  count = 0;
  isRefusing = false;
  isStalled = false;
  #open = new Set();

  /** In front of a server of WebSockets at `ws@host:port`, byte for byte. */
  static async start(t, address) {
    const proxy = new Proxy();
    proxy.server = proxy.#pass(placeOf(address));
    await once(proxy.server, "listening");
    proxy.url = `ws://127.0.0.1:${proxy.server.address().port}/_rpcx_`;
    t.after(() => {
      proxy.cut();
      proxy.server.close();
    });
    return proxy;
  }

  #pass(place) {
    const server = createServer((client) => {
      if (this.#isRefused(() => client.destroy())) return;
      const upstream = connect(place);
      this.#keep(() => [client, upstream].forEach(reset), client, upstream);
      client.on("data", (bytes) => this.isStalled || upstream.write(bytes));
      upstream.on("data", (bytes) => this.isStalled || client.write(bytes));
    });
    return server.listen(0, "127.0.0.1");
  }

  #isRefused(end) {
    this.count++;
    if (this.isRefusing) end();
    return this.isRefusing;
  }

  #keep(cut, client, upstream) {
    this.#open.add(cut);
    for (const [end, other] of [[client, upstream], [upstream, client]]) {
      end.on("error", () => {});
      end.on("close", (isBroken) => {
        if (isBroken || other.closed) return void (this.#open.delete(cut) && cut());
        // What was said before the end arrives: a reset would take it from a server that has not read it.
        other.end();
      });
    }
  }

  /** Ends every connection at once, as a network does that is gone. */
  cut() {
    for (const cut of this.#open) {
      this.#open.delete(cut);
      cut();
    }
  }
}
