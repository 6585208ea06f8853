import type { Said } from "./frame.js";

/**
 * Why something failed. A later server may name more.
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
  maybeExecuted: boolean;
  /** The application's own code of the error, if the server sent one. */
  appCode?: string;
  /** The error as a value, if the server sent one and this entry knows MessagePack. */
  detail?: unknown;
  /** The name of that value's type, as the server calls it. */
  detailType?: string;
  /** Milliseconds after which the server wants to be asked again, if it said so. */
  retryAfter?: number;
  /** @internal Where else the client may go. */
  others_?: string;

  constructor(readonly code: ErrorCode, message: string, options?: { cause?: unknown }) {
    super(message, options?.cause ? options : {});
    // What a later server may say is as bad as it can be.
    this.maybeExecuted = !/^(overl|unauth|not_|shut|clo|too|queue|enc|proto)/.test(code);
  }
}

/** The error that a refused Hello or a failed reply is. */
export function errorOf({ rpcx_error__: text, err, app, dt, after, alt }: Said): BothwaysError {
  const error = new BothwaysError((err as ErrorCode) || "remote", text || "failed");
  error.appCode = app;
  error.detailType = dt;
  error.retryAfter = Number(after) || undefined;
  error.others_ = alt;
  return error;
}

/** Does it, and throws what that throws as an error of this kind. */
export function as<T>(code: ErrorCode, run: () => T): T {
  try {
    return run();
  } catch (error) {
    throw error instanceof BothwaysError ? error : new BothwaysError(code, textOf(error), { cause: error });
  }
}

/** Calls to be sent, or pushes to be handled. */
export const tooMuch = () => new BothwaysError("queue_full", "too much waits");

/** The text of whatever was thrown, at most 1 KiB of it. */
export const textOf = (error: unknown): string => {
  try {
    return String((error as Error)?.message ?? error).slice(0, 1024);
  } catch {
    // A value that cannot be shown.
    return "?";
  }
};
