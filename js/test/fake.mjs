// A server that does what a test says, over a wire in memory: what it sends is bytes, so that it can send anything.
import { Inbox } from "./helpers.mjs";
import { deframer, encodeFrame, HEARTBEAT, isHeartbeat, msgpack, ONEWAY, OTHER_BIT, PUSH_BIT, RESPONSE } from "./built/internals.mjs";

const FRAME_BYTES_MAX = 64 << 20;
export const ALL = "calls,cancel,goodbye,ping,sessions,outcomes";
const EMPTY = new Uint8Array(0);
const codec = msgpack();

/** One connection, seen from the server. */
export class FakeConnection {
  frames = new Inbox();
  isClosed = false;
  buffered = 0;

  constructor(events, server) {
    this.events = events;
    this.server = server;
    this.feed = deframer(FRAME_BYTES_MAX, (frame) => this.#frame(frame));
    queueMicrotask(() => {
      if (!this.isClosed && server.opens) events.opened();
    });
  }

  #frame(frame) {
    this.frames.put(frame);
    if (isHeartbeat(frame) && frame.meta_["_bw.v"] && this.server.welcome) this.server.welcome(this, frame);
    this.server.onFrame?.(this, frame);
  }

  // The client's side.
  send(bytes) {
    if (this.server.stalls) this.buffered += bytes.length;
    else queueMicrotask(() => this.feed(bytes));
  }

  close() {
    this.isClosed = true;
    this.server.closed.put(this);
  }

  // The server's side.
  bytes(bytes) {
    if (!this.isClosed) this.events.received(new Uint8Array(bytes));
  }

  frame({ flags = 0, type = 0, seq = 0n, path = "", method = "", meta = {}, payload = EMPTY }) {
    this.bytes(encodeFrame(FRAME_BYTES_MAX, flags, type, seq, path, method, meta, payload));
  }

  answerHello(hello, pairs = {}, flags = 0) {
    const meta = { "_bw.v": "1", "_bw.ok": "1", "_bw.caps": ALL, ...pairs };
    this.frame({ flags: RESPONSE | HEARTBEAT | flags, seq: hello.seq_, meta });
  }

  /** A push of a value in MessagePack; tracked if it has an offset. */
  push(offset, value, more = {}) {
    this.frame({ flags: ONEWAY, type: 3, seq: PUSH_BIT | BigInt(offset), path: "T", method: "push", payload: codec.encode(value), ...more });
  }

  control(method, meta, offset = 0) {
    this.frame({ flags: ONEWAY, seq: PUSH_BIT | BigInt(offset), path: "_bothways", method, meta });
  }

  call(number, method, value, meta = {}) {
    this.frame({ type: 3, seq: PUSH_BIT | OTHER_BIT | BigInt(number), path: "C", method, meta, payload: codec.encode(value) });
  }

  reply(frame, value, meta = {}, flags = 0) {
    this.frame({ flags: RESPONSE | flags, type: 3, seq: frame.seq_, path: frame.path_, method: frame.method_, meta, payload: codec.encode(value) });
  }

  cut() {
    if (this.isClosed) return;
    this.isClosed = true;
    this.events.closed("cut by the test");
  }

  /** The next frame to this method that was not taken yet. */
  async next(method) {
    const frame = await this.frames.find((frame) => frame.method_ === method && !frame.taken, `a frame to ${method}`);
    frame.taken = true;
    return frame;
  }
}

export class FakeServer {
  connections = new Inbox();
  closed = new Inbox();
  opens = true;
  stalls = false;
  sessions = 0;

  /** How Hellos are answered: with a new session each, unless the client names one. */
  welcome = (connection, hello) => {
    const sid = hello.meta_["_bw.sid"];
    const pairs = sid ? { "_bw.sid": sid, "_bw.res": "1" } : { "_bw.sid": `s${++this.sessions}` };
    connection.answerHello(hello, { "_bw.off": "0", "_bw.key": "secret", ...pairs });
  };

  dial = (address, events) => {
    const connection = new FakeConnection(events, this);
    this.connections.put(connection);
    return connection;
  };

  /** The connection of this number, from 1. */
  async connection(number) {
    return (await this.connections.count(number, `connection ${number}`))[number - 1];
  }
}
