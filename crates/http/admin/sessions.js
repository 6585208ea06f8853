// Live sessions, found by the server and shown a page at a time; and the story of one.

import { why } from "./api.js";
import { bytes, confirm, count, date, h, icon, plural, set, span, time, toast } from "./dom.js";
import { list, tableOf } from "./list.js";
import { nodeLink, nodeName, silentNote, silentWords } from "./nodes.js";
import { kindOf } from "./overview.js";

const PAGE = 25;

/** A list is asked for again after so long, if the server did not take long for it. */
const REFRESH = 3000;
const QUICK = 250;

export function sessions(server, prefix) {
  const total = h("p", { class: "muted", role: "status" });
  const body = h("tbody", {});
  const isNode = server.me.is_node;
  const columns = ["User", "State", isNode && "Node", "Address", "Waiting", "Missed", "Topics"].filter(Boolean);
  const table = tableOf("Sessions by user", columns, body);
  const empty = h("p", { class: "muted empty", hidden: true });

  async function ask(prefix, after) {
    const listed = await server.ask("SessionsEverywhere", { target: "Everyone", user_prefix: prefix, max: PAGE, after });
    const end = listed.sessions.at(-1);
    const last = end && { user: end.user, id: end.id };
    // A page of several nodes may be short though there is more.
    return { items: listed.sessions, total: listed.total, silent: listed.silent, last, more: (through) => end && through < listed.total };
  }

  function show({ items, total: all, silent }, prefix, skipped) {
    const shown = `${count(skipped + 1)}–${count(skipped + items.length)} of `;
    set(total, `${all > items.length ? shown : ""}${plural(all, "session")}`, silentNote(silent));
    set(empty, prefix ? "No user's name begins so. Capitals count." : "No client is connected.");
    // A row that has the focus keeps it.
    const focused = document.activeElement?.getAttribute("href");
    set(body, items.map((view) => row(view, isNode)));
    if (focused) body.querySelector(`a[href="${CSS.escape(focused)}"]`)?.focus();
  }

  const parts = { table, total, empty, ask, show };
  return list({ title: "Sessions", begins: "User begins with", prefix, page: PAGE, refresh: REFRESH, quick: QUICK, ...parts });
}

function row(view, isNode) {
  const cell = (name, ...children) => h("td", { "data-name": name }, children);
  const topics = view.subscriptions;
  return h("tr", {},
    h("th", { scope: "row" }, h("a", { href: `#/session/${view.id}` }, h("span", { class: view.user ? "clip" : "muted", title: view.user ?? view.id }, view.user ?? view.id.slice(0, 8)))),
    cell("State", standing(view.connection, view.resumable)),
    isNode && cell("Node", nodeLink(view.node) ?? "–"),
    cell("Address", h("span", { class: "mono" }, view.peer ?? "–")),
    cell("Waiting", view.waiting ? `${count(view.waiting)} · ${bytes(view.waiting_bytes)}` : "0"),
    cell("Missed", h("span", { class: view.dropped ? "bad-text" : "" }, count(view.dropped))),
    cell("Topics", topics.length ? h("span", { class: "clip", title: topics.join("\n") }, topics.slice(0, 3).join(", "), topics.length > 3 && ` +${topics.length - 3}`) : "–"));
}

const standing = (connection, resumable) =>
  connection ? h("span", { class: "pill good" }, connection, !resumable && " · rpcx") : h("span", { class: "pill warn" }, "away");

/** One session: what it has now, and what happened to it. */
export function session(server, id) {
  const head = h("div", {});
  const facts = h("div", {});
  const story = h("ol", { class: "story" });
  const note = h("p", { class: "muted empty", role: "status" }, "Loading…");
  const silence = h("div", {});
  let timer;
  let isOver = false;
  let seen = "";

  async function load() {
    clearTimeout(timer);
    try {
      const target = { Session: id };
      const [told, listed] = await Promise.all([
        server.ask("ExplainEverywhere", target),
        server.ask("SessionsEverywhere", { target, user_prefix: "", max: 1 }),
      ]);
      if (isOver) return;
      // What is the same stays: a text that is being marked, a focus.
      const now = JSON.stringify([told, listed]);
      if (now !== seen) {
        // A session that has moved is told by the node that it has left, too: by the one that has it, first of all.
        const stories = told.explained.filter(([node, story]) => !node || node === listed.sessions[0]?.node || story.standing !== "Ended");
        show((stories[0] ?? told.explained[0])?.[1], listed.sessions[0]);
        set(silence, silentNote(told.silent));
      }
      seen = now;
    } catch (error) {
      if (isOver) return;
      set(note, why(error));
    }
    timer = setTimeout(load, 1000);
  }

  function show(told, view) {
    if (!told) {
      set(note, "The server knows no such session. It remembers those that ended for a while.");
      set(head, h("h2", {}, "Session ", h("span", { class: "mono" }, id.slice(0, 8))));
      set(story);
      return;
    }
    const user = told.user ?? view?.user;
    const { Connected: connection, Arriving: arriving } = told.standing;
    set(head,
      h("div", { class: "head" },
        h("h2", {}, user ?? "No user", " ",
          told.standing === "Ended" ? h("span", { class: "pill bad" }, "ended")
            : arriving ? h("span", { class: "pill warn", title: "Its client wants another session back" }, `${arriving} · arriving`)
            : standing(connection, view?.resumable ?? true)),
        h("div", { class: "row" },
          server.may("push") && view && h("a", { class: "button", href: `#/push/session/${id}` }, icon("push"), "Push…"),
          server.may("kick") && view && h("button", { class: "danger quiet", onclick: () => kick(server, id, user) }, "Send away…"))));
    set(facts, view ? factsOf(view) : h("p", { class: "muted" }, "It has ended; this is what is remembered."));
    set(note, told.forgotten ? `${plural(told.forgotten, "older event")} not kept` : "");
    set(story, told.events.map((event, at) => step(event, told.events[at + 1])).reverse());
  }
  load();

  const element = h("div", { class: "view" },
    h("p", {}, h("a", { href: "#/sessions" }, "← Sessions")),
    head, silence, facts,
    h("section", { class: "card", "aria-labelledby": "story-title" },
      h("h3", { id: "story-title" }, "Its story, newest first"), story, note));
  return {
    element,
    end() {
      isOver = true;
      clearTimeout(timer);
    },
  };
}

function factsOf(view) {
  const fact = (name, value) => h("div", {}, h("dt", {}, name), h("dd", {}, value));
  const chips = (list, kind) => h("ul", { class: "chips" }, list.map((text) => h("li", { class: kind }, text)));
  return h("section", { class: "card", "aria-label": "What it has now" },
    h("dl", { class: "facts" },
      fact("Number", h("span", { class: "mono" }, view.id)),
      fact("Address", h("span", { class: "mono" }, view.peer ?? "its client is away")),
      view.node && fact("Node", nodeLink(view.node)),
      fact("Connections so far", count(view.generation)),
      fact("May come back", view.resumable ? "yes" : "no: it speaks plain rpcx"),
      fact("Waiting", view.waiting ? `${plural(view.waiting, "push").replace("pushs", "pushes")}, ${bytes(view.waiting_bytes)}` : "nothing"),
      fact("Held", view.held ? `offset ${view.held.offset} for ${span(view.held.for_ms)}` : "nothing"),
      fact("Missed", count(view.dropped)),
      Object.keys(view.labels).length > 0 && fact("Labels", chips(Object.entries(view.labels).map(([key, value]) => `${key} = ${value}`))),
      view.subscriptions.length > 0 && fact("Topics", h("ul", { class: "chips" }, view.subscriptions.map((name) => h("li", {}, h("a", { href: `#/topic/${encodeURIComponent(name)}` }, name))))),
      view.methods && fact("Handles", view.methods.length ? chips(view.methods) : "nothing")));
}

/** One event, and how long it was until the next one. */
function step({ at_ms: at, event }, next) {
  const [name, kind] = kindOf(event);
  const pause = next && next.at_ms - at;
  return h("li", { class: pause > 2000 ? `${kind} after-pause` : kind },
    pause > 2000 && h("span", { class: "pause" }, `${span(pause)} later`),
    h("span", { class: `mark ${kind}` }, icon(name)),
    h("div", {}, told(event), h("span", { class: "when" }, date(at), " ", time(at))));
}

function told(event) {
  const name = typeof event === "string" ? event : Object.keys(event)[0];
  const value = event[name];
  const say = (...parts) => h("p", {}, parts);
  const strong = (text) => h("b", {}, text);
  switch (name) {
    case "Connected": return say("Connected as ", strong(value));
    case "Resumable": return say("Its client speaks sessions, and may come back to this one");
    case "NotResumed": return say("Its client wanted session ", strong(value.wanted.slice(0, 8)), " back: ", value.why);
    case "Lost": return say("Lost ", strong(value.connection), `: ${value.why}`, value.waits ? h("small", {}, "the session waits for its client") : "");
    case "Resumed": return say("Came back as ", strong(value.connection), value.repeated ? `; ${count(value.repeated)} pushes are sent again` : "; nothing was missing");
    case "TakenOver": return say("Taken over from ", strong(value), ", which was still open");
    case "Bound": return value === null ? say("Belongs to no user any more") : say("Belongs to ", strong(value));
    case "Subscribed": return say("Subscribed to ", strong(value));
    case "Unsubscribed": return say("Left ", strong(value));
    case "GapTold": return say("Its client was told that ", strong(count(value)), " pushes were dropped so far");
    case "Push": return pushOf(value);
    case "Call": return say("Call ", strong(value.name), value.attempts > 1 ? ` (sent ${value.attempts} times)` : "", ": ", outcomeOf(value.outcome), value.done_ms === null ? "" : h("small", {}, `after ${span(value.done_ms)}`));
    case "Ended": return say("Ended: ", value);
    default: return say(name);
  }
}

function outcomeOf(outcome) {
  if (outcome === "Waits") return "waits for its reply";
  if (outcome === "Answered") return "answered";
  if (outcome === "GivenUp") return "given up by its caller";
  return `failed: ${outcome.Failed}`;
}

const FAILED = {
  NoHandler: "no handler takes it", BadArguments: "its handler cannot decode it", Error: "its handler failed", Panicked: "its handler panicked",
};
const DROPPED = { Full: "too much waited already", Disconnected: "its connection ended", SessionEnded: "the session ended" };

/** A push, and its way as a row of stages. */
function pushOf(value) {
  const { stage } = value;
  const stages = [["queued", 0], ["written", value.written_ms], ["received", value.received_ms]];
  const end =
    stage === "Handled" ? ["handled", "good"]
    : stage === "PlainWritten" ? ["written to a plain client", "good"]
    : stage.Failed ? [`failed: ${FAILED[stage.Failed] ?? stage.Failed}`, "bad"]
    : stage.Dropped ? [`dropped: ${DROPPED[stage.Dropped] ?? stage.Dropped}`, "bad"]
    : ["Queued", "Written", "Received"].includes(stage) ? undefined
    : [{ Unknown: "nobody knows", Expired: "expired", Superseded: "superseded", Duplicate: "duplicate" }[stage] ?? stage, stage === "Superseded" || stage === "Duplicate" ? "calm" : "bad"];
  const done = stages.filter(([, after]) => after !== null).map(([name, after]) => h("li", { class: "good" }, name, after > 0 && h("small", {}, span(after))));
  return h("div", {},
    h("p", {}, "Push ", h("b", {}, value.name), h("small", {}, [value.class, value.offset && `offset ${value.offset}`, bytes(value.bytes)].filter(Boolean).join(" · "))),
    h("ol", { class: "stages" }, done,
      end ? h("li", { class: end[1] }, end[0], value.done_ms > 0 && h("small", {}, span(value.done_ms))) : h("li", { class: "open" }, "…")));
}

/** Asks, and sends the client of one session away, or all of its user, wherever they are. */
async function kick(server, id, user) {
  const option = (value, checked, text) => h("label", { class: "check" }, h("input", { type: "radio", name: "whom", value, checked }), text);
  const values = await confirm({
    title: `Send ${user ?? id.slice(0, 8)} away?`,
    text: "The session ends, with all that waits for it. The client is told why, and does not come back by itself.",
    action: "Send away",
    danger: true,
    fields: [
      h("label", {}, "Why, for the client", h("input", { name: "why", value: "sent away by an operator", maxlength: "200", required: true, autofocus: true })),
      user != null && h("fieldset", {}, h("legend", { class: "sr" }, "Whom"),
        option("session", true, "This session"),
        option("user", false, h("span", {}, "All sessions of this user", server.me.is_node && ", on all nodes"))),
    ],
  });
  if (!values) return;
  try {
    const target = values.whom === "user" ? { User: user } : { Session: id };
    const { ended, by_node: nodes = [], silent = [] } = await server.ask("KickEverywhere", { target, why: values.why });
    const some = nodes.filter(([, ended]) => ended > 0);
    const where = some.length ? ` (${some.map(([node, ended]) => `${count(ended)} on ${nodeName(node)}`).join(", ")})` : "";
    const text = ended ? `${plural(ended, "session")} ended${where}.` : "There was no such session any more.";
    toast(text + silentWords(silent), ended && silent.length === 0 ? "good" : "warn");
  } catch (error) {
    toast(why(error), "bad");
  }
}
