/** As `bothways`, in Node.js: over `tcp@host:port`, `tls@host:port`, `unix@/path`, and WebSockets where there are any. */
import { connect as connectTcp, type Socket } from "node:net";
import { connect as connectTls, type ConnectionOptions } from "node:tls";

import { Client } from "./full.js";
import { everything } from "./everything.js";
import { followOthers } from "./others.js";
import { webSocketDial, type Dial } from "./wire.js";
import type { Options as BrowserOptions } from "./types.js";

export type { Core } from "./client.js";
export { Client } from "./full.js";
export * from "./public.js";
export { Ext, msgpack, type MsgpackOptions } from "./msgpack.js";

export interface Options extends BrowserOptions {
  /** For `tls@`: authorities, a client certificate, the server's name, as Node's `tls.connect` takes them. */
  tls?: ConnectionOptions;
  /**
   * Whether the client goes where its server says when it stops: for each address, in the form of the client's own; `false`:
   * nowhere, as for a balancer that is to decide. It keeps its network and its path. Default: to the host of its own
   * address, and to hosts below that.
   */
  others?: boolean | ((address: string) => boolean);
}

/** A server that reads nothing gets so long to take what was sent, in milliseconds; then the socket is closed. */
const FAREWELL = 2000;

/** Host and port of `host:port` or `[address]:port`. */
function hostAndPort(address: string): { host: string; port: number } {
  const found = /^(?:\[([^\]]+)\]|([^:]*)):(\d{1,5})$/.exec(address);
  if (!found) throw new TypeError(`"${address}" is no host:port`);
  return { host: found[1] ?? (found[2] || "127.0.0.1"), port: Number(found[3]) };
}

const socketDial = (options: Options): Dial => {
  const webSocket = webSocketDial(options.WebSocket);
  return (address, events) => {
    const [, network, rest] = /^(tcp|tls|unix)@(.+)$/.exec(address) ?? [];
    if (!network) return webSocket(address, events);

    let isOpen = false;
    let isOver = false;
    let why = "the server closed the connection";
    const open = () => {
      isOpen = true;
      if (!isOver) events.opened();
    };
    const socket: Socket =
      network == "unix" ? connectTcp({ path: rest! }, open)
      : network == "tcp" ? connectTcp(hostAndPort(rest!), open)
      : connectTls({ servername: serverName(rest!), ...hostAndPort(rest!), ...options.tls }, open);
    socket.setNoDelay(true);
    // A `Buffer` has another `slice` than other arrays of bytes, and no part of it may reach the application.
    socket.on("data", ({ buffer, byteOffset, length }) => isOver || events.received(new Uint8Array(buffer, byteOffset, length)));
    socket.on("error", (error) => (why = error.message));
    socket.on("close", () => {
      if (!isOver) events.closed(why);
      isOver = true;
    });

    return {
      send: (bytes) => {
        // What one task of the application sends goes out in one write.
        if (!socket.writableCorked) queueMicrotask(() => socket.uncork());
        if (!socket.writableCorked) socket.cork();
        socket.write(bytes);
      },
      get buffered() {
        return socket.writableLength;
      },
      close() {
        isOver = true;
        if (!isOpen) return void socket.destroy();
        const late = setTimeout(() => socket.destroy(), FAREWELL);
        socket.end(() => socket.resume());
        socket.on("close", () => clearTimeout(late));
      },
    };
  };
};

/** An address has no name that a certificate could be asked for. */
const serverName = (address: string): string | undefined => {
  const { host } = hostAndPort(address);
  return /^[\d.]+$|:/.test(host) ? undefined : host;
};

export class Bothways extends Client {
  /** `address`: as rpcx's, `tcp@host:port`, `tls@host:port`, `unix@/path`, `ws@host:port`, or the URL of a WebSocket. */
  constructor(address: string, options: Options = {}) {
    super(address, options, socketDial(options));
    everything(this);
    const { others = true } = options;
    if (others) followOthers(this, others === true ? undefined : others);
  }
}
