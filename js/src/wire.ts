/** What carries the bytes of one connection. None of its functions throws, or reports anything before it has returned. */
export interface Wire {
  /** Takes these bytes in, to be sent after those before. They are not changed afterwards. */
  send(bytes: Uint8Array): void;
  /** Bytes that were taken in and are not given to the system yet. */
  readonly buffered: number;
  /** Ends the connection when all bytes are sent. */
  close(): void;
}

/** What a wire reports, `closed` also while it is made. After that it reports nothing more. */
export interface WireEvents {
  opened(): void;
  received(bytes: Uint8Array): void;
  closed(why: string): void;
}

/** Begins to connect. Throws only if the address is not one. */
export type Dial = (address: string, events: WireEvents) => Wire;

/** The part of a `WebSocket` that is used: a browser's, Node's from version 22 on, or that of the package `ws`. */
export interface WebSocketLike {
  binaryType: string;
  readonly bufferedAmount: number;
  onopen: ((event: any) => void) | null;
  onmessage: ((event: any) => void) | null;
  onclose: ((event: any) => void) | null;
  onerror: ((event: any) => void) | null;
  send(bytes: any): void;
  close(code?: number): void;
}

export type WebSocketClass = new (url: string) => WebSocketLike;

/** The URL of an address: `ws://…`, rpcx's `ws@host:port`, or a path on the server that the page came from. */
export const urlOf = (address: string): string =>
  address.replace(/^(wss?)@(.+)/, "$1://$2/_rpcx_").replace(/^(?=\/)/, () => location.origin.replace("http", "ws"));

/** WebSockets of this class, or of the global one. */
export const webSocketDial = (Class?: WebSocketClass): Dial => (address, events) => {
  const socket = new (Class ?? (WebSocket as WebSocketClass))(urlOf(address));
  socket.binaryType = "arraybuffer";
  socket.onopen = events.opened;
  socket.onmessage = ({ data }) =>
    typeof data == "string" ? events.closed("text came") : events.received(new Uint8Array(data));
  // A `WebSocket` says its errors nowhere but in the close that follows.
  socket.onerror = () => {};
  socket.onclose = ({ code }) => events.closed(`the WebSocket was closed (${code})`);

  return {
    send: (bytes) => socket.send(bytes),
    get buffered() {
      return socket.bufferedAmount;
    },
    close: () => socket.close(1000),
  };
};
