/**
 * Why something failed.
 *
 * From the server: `overloaded`, `unauthenticated`, `not_found`, `bad_arguments`, `internal`, `timeout`,
 * `shutting_down`, and `remote` for an error of its application.
 *
 * From this client: `timeout` (no reply in time), `lost` (the connection ended before the reply), `not_connected` (no
 * connection in time), `closed` (the client was closed, or the server sent it away), `too_large`, `queue_full` (too much
 * waits to be sent), `encode`, `decode`, `protocol` (the server broke the rules of the wire).
 */
export type ErrorCode =
  | "overloaded" | "unauthenticated" | "not_found" | "bad_arguments" | "internal" | "timeout" | "shutting_down"
  | "remote" | "lost" | "not_connected" | "closed" | "too_large" | "queue_full" | "encode" | "decode" | "protocol";

/** What every promise of this library rejects with, except for an aborted call: that one rejects with its signal's reason. */
export class BothwaysError extends Error {
  override name = "BothwaysError";
  /** True if the server may have run the call although it failed here. */
  maybeExecuted = false;
  /** The application's own code of the error, if the server sent one. */
  appCode?: string;
  /** The error as a value, if the server sent one and this entry knows MessagePack. */
  detail?: unknown;
  /** The name of that value's type, as the server calls it. */
  detailType?: string;
  /** Milliseconds after which the server wants to be asked again, if it said so. */
  retryAfter?: number;

  constructor(readonly code: ErrorCode, message: string, options?: { cause?: unknown; maybeExecuted?: boolean }) {
    super(message, options);
    if (options?.maybeExecuted) this.maybeExecuted = true;
  }
}

const REMOTE = /^(overloaded|unauthenticated|not_found|bad_arguments|internal|timeout|shutting_down)$/;

/** The kind of an error as a server names it; what we do not know is the application's. */
export const remoteCode = (kind?: string): ErrorCode => (kind && REMOTE.test(kind) ? (kind as ErrorCode) : "remote");

/** The text of whatever was thrown, at most 1 KiB of it. */
export const textOf = (error: unknown): string => {
  let text = "an error without text";
  try {
    text = String((error as Error)?.message ?? error);
  } catch {
    // A value that cannot be shown.
  }
  return text.slice(0, 1024);
};
