import type { Codec } from "./codec.js";
import type { BothwaysError } from "./error.js";
import type { Meta } from "./frame.js";
import type { Dial, WebSocketClass } from "./wire.js";

/** How a client connects, calls and listens. Times are milliseconds. */
export interface Options {
  /** The token that goes with every request (`__AUTH`), or a function that returns it: asked before each connection, and
   * once more when the server has refused the token. After a second refusal the client is closed. Default: none. */
  token?: string | (() => string | Promise<string>);
  /** The name of this device, at most 64 bytes: each of a user's devices has its own place among his durable pushes.
   * Default: none. */
  device?: string;
  /** The codec of arguments. Replies and pushes say themselves which one they have. */
  codec?: Codec;
  /** How long a call waits for its reply unless it says so itself. The server learns of it. Default 30,000. */
  timeout?: number;
  /** For the connection and the answer to the Hello, and for the token before that. Default 10,000. */
  connectTimeout?: number;
  /** How long a call waits for a connection, within its own timeout. Default 5,000. */
  connectionWait?: number;
  /** `"lost"` (default): the client comes back by itself, and `connect()` rejects if the first try fails. `"always"`: the
   * first one is repeated too. `"never"`: the client is closed when its connection is lost. */
  reconnect?: "lost" | "always" | "never";
  /** The wait before a try: at random from 0 to `backoffBase`, doubled with each failure in a row up to `backoffMax`.
   * Defaults 50 and 10,000. What a server asks for comes before that. */
  backoffBase?: number;
  backoffMax?: number;
  /** After so much silence the server is asked whether it is there; 0: never. Default 15,000. */
  heartbeat?: number;
  /** How long it may take to send anything then. Default 10,000. */
  heartbeatTimeout?: number;
  /** Most bytes of a frame, in and out. The server is told, and sends nothing larger; one that does loses the connection.
   * Default 8 MiB. */
  frameBytesMax?: number;
  /** Most bytes that wait to be sent, of this client and in its socket. A call beyond that fails as `queue_full`; a server
   * that reads nothing and asks more loses the connection. Default 16 MiB. */
  sendBytesMax?: number;
  /** Most calls that wait for a reply or for the connection. Default 65,536. */
  callsMax?: number;
  /** Most pushes that wait for the application. Beyond that the oldest that is not tracked is dropped, and counted in
   * {@link Message.dropped}; tracked ones end the connection, and a resume brings them. Default 16,384. */
  queueMessagesMax?: number;
  /** The same in bytes. Default 16 MiB. */
  queueBytesMax?: number;
  /** Most calls of the server that run at once; more are answered as `overloaded`. Default 16. */
  handlersMax?: number;

  /** The class that opens WebSockets. Default: the global one. */
  WebSocket?: WebSocketClass;
  /** Another way to connect than WebSockets. */
  dial?: Dial;
  /** Told what application code threw where nobody else hears of it, and what was given up. At most one a second.
   * Default: `console.error`. */
  onError?: (error: unknown, where: string) => void;
}

/** What a session is kept in: `sessionStorage`, or what is like it. */
export type SessionStorage = Pick<Storage, "getItem" | "setItem" | "removeItem">;

export interface CallOptions {
  /** See {@link Options.timeout}. */
  timeout?: number;
  /** Gives the call up: it rejects with the signal's reason, and the server is told. */
  signal?: AbortSignal;
  /** Pairs beside the arguments. Names that begin with `_bw.` or `__` belong to the framework. */
  meta?: Meta;
  /** See {@link Options.codec}. */
  codec?: Codec;
}

export type OnewayOptions = Omit<CallOptions, "timeout">;

/** A reply with what came beside it. */
export interface Reply<T> {
  value: T;
  meta: Meta;
}

/** Where a message stands in its topic. Numbers of 64 bits. */
export interface Position {
  epoch: bigint;
  offset: bigint;
}

/** What came with a push. */
export interface Message {
  path: string;
  method: string;
  meta: Meta;
  /** The payload as it came. */
  bytes: Uint8Array;
  /** The payload as a text. */
  text(): string;
  /** The topic to which it was published. */
  topic?: string;
  /** Where it stands there, if the topic has a history and this client has subscribed to anything. */
  position?: Position;
  /** How many messages were dropped since the one that was given before this one, here or by the server. */
  dropped: number;
}

/** Runs for a push. What it returns is waited for, and then the push is handled; if it throws, it failed. */
export type PushHandler = (value: any, message: Message) => unknown;

/** What came with a call of the server. */
export interface ServerCall {
  path: string;
  method: string;
  meta: Meta;
  /** Aborted when nobody waits for the reply any more: the server gave the call up, or its time is over. */
  signal: AbortSignal;
  /** When its time is over, in milliseconds since 1970, if the server said so. */
  deadline?: number;
}

export type CallHandler = (args: any, call: ServerCall) => unknown;

export type State =
  /** `connect()` was not called. */
  | { name: "idle" }
  | { name: "connecting" }
  /** `resumed`: the session goes on, and nothing was lost. */
  | { name: "connected"; resumed: boolean }
  /** The next try is in so many milliseconds. */
  | { name: "reconnecting"; in: number; why: BothwaysError }
  /** For good, until `connect()` is called again. `code` is why: `kicked`, `expired`, `revoked` by the server,
   * `unauthenticated`, `closed` by the application, or the error of a failed connection. */
  | { name: "closed"; code: string; why: BothwaysError };

export interface Events {
  state: State;
  /** The session was lost, and with it what the server had for it. Subscriptions go on where they were. Reasons:
   * `expired`, `gap`, `unknown`, `revoked`, `kicked`, `ended`, `moved` (another tab has it), `plain` (the server knows no
   * sessions). */
  session: { lost: string };
  /** The server, or this client, dropped so many pushes. */
  gap: { missed: number };
  /** A push for which there is no handler. */
  unhandled: Message;
}

/** A session, or a user with all of his, in a topic. */
export interface Member {
  /** Empty for a session without a user. */
  user: string;
  /** Empty for a user. */
  session: string;
  status: "online" | "reconnecting" | "offline";
}

export interface SubscribeOptions {
  /** After a lost session, and after messages were dropped, the server is asked for what was missed. Default true. */
  recover?: boolean;
  /** Begin behind this message of the topic's history. Default: with what is published from now on. */
  from?: Position;
  /** Called with all members of the topic when it is known who they are, and at each change. */
  presence?: (members: Member[]) => void;
}

export interface SubscriptionEvents {
  /** Messages are missing, or may be: the topic has no history, or not enough of it. */
  gap: { topic: string };
  /** The server refuses the topic. `final`: the subscription has ended; else it is asked again. */
  error: { error: BothwaysError; final: boolean };
}
