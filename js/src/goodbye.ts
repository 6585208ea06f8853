/** A server that is about to end its connection, and says so: what runs there is answered, and the next connection is made. */

import type { Core } from "./client.js";
import { CONTROL, type Conn } from "./conn.js";
import { BothwaysError } from "./error.js";
import type { Said } from "./frame.js";
import { listen } from "./listeners.js";

/** A page whose session the next page of its tab has taken is about to be left: it waits so long before it begins another. */
const TAKEN_WAIT = 10_000;

const GOODBYE = "the server said goodbye: ";
const farewell = () => new BothwaysError("lost", GOODBYE);

/**
 * Has the client heed the goodbye of its server: calls that run there still get their replies, and the client comes back when
 * the server says. A call whose token has run out is sent again with the next one. Without it the server closes the
 * connection when the calls on it are answered, and the client comes back at once. Before `connect()`.
 */
export function heedGoodbye(client: Core): void {
  // Called twice it is there once.
  if (client.spare_) return;
  /** The connection before this one, while it still brings replies. */
  let former: Conn | undefined;

  // A connection that its server is about to end is of no use without calls.
  const spare = (client.spare_ = (conn) => {
    if (conn != client.conn_ && !conn.calls_.size) conn.end_(farewell());
  });
  const detach = (conn: Conn) => {
    client.ackNow_();
    client.conn_ = undefined;
    former?.end_(farewell());
    spare((former = conn));
  };
  // The token has run out: the next connection has another one.
  const renew = (why: BothwaysError) => {
    client.enter_({ name: "reconnecting", in: 0, why });
    if (!client.conn_ && client.state.name == "reconnecting") client.attempt_();
  };

  client.renew_ = (conn, request, error) => {
    if (error.code != "unauthenticated" || typeof client.settings_.token != "function" || request.again_) return false;
    // The token of the Hello was accepted, and the call was not run.
    request.again_ = true;
    const isHere = conn == client.conn_;
    if (isHere) detach(conn);
    request.go_();
    if (isHere) renew(error);
    else spare(conn);
    return true;
  };
  listen(client.listeners_, "_hello", (hello) => (hello["_bw.caps"] += ",goodbye"));
  client.on("state", ({ name }) => name == "closed" && former?.end_(farewell()));
  listen(client.listeners_, CONTROL + "\nGoodbye", (conn: Conn, { code = "", why: text, after, alt }: Said) => {
    if (conn != client.conn_) return;
    if (/^(kicked|expired|revoked)$/.test(code)) return client.goAway_(code, text || GOODBYE + code);
    const why = new BothwaysError("closed", text || GOODBYE + code);
    why.others_ = alt;
    detach(conn);
    // Another page has taken it over: two that take it from each other would go on so for ever, and this one begins anew.
    if (code == "moved" || code == "ended") {
      client.forget_();
      client.tell_("session", { lost: code });
      if (!client.isOn_()) return;
    }
    if (code == "unauthenticated") renew(why);
    else client.down_(why, Number(after) || (client.store_?.isTaken_() ? TAKEN_WAIT : 0), conn);
  });
}
