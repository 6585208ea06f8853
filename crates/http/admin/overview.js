// What the server does now: numbers, charts, and events as they come.

import { why } from "./api.js";
import { chart } from "./chart.js";
import { bytes, confirm, count, h, icon, plural, set, short, time, toast } from "./dom.js";

const rate = (name) => (point) => point.rates[name];
const gauge = (name) => (point) => point.stats[name];
const has = (name) => (point) => name in point.stats.counters;
const perSecond = (value) => `${short(value < 100 ? Math.round(value * 10) / 10 : Math.round(value))}/s`;

const CHARTS = [
  {
    title: "Clients",
    lines: [
      { name: "Sessions", colour: "one", value: gauge("sessions") },
      { name: "Away", colour: "two", value: gauge("sessions_away") },
    ],
    format: short,
  },
  {
    title: "Calls",
    lines: [
      { name: "Running", colour: "one", value: gauge("calls_running") },
      { name: "Errors", colour: "bad", value: rate("errors"), needs: has("errors"), format: perSecond },
    ],
    format: short,
  },
  {
    title: "Messages",
    lines: [
      { name: "In", colour: "two", value: rate("frames_in"), needs: has("frames_in") },
      { name: "Out", colour: "one", value: rate("frames_out"), needs: has("frames_out") },
    ],
    format: perSecond,
  },
  {
    title: "Pushes",
    lines: [
      { name: "Handled", colour: "one", value: rate("pushes_handled"), needs: has("pushes_handled") },
      { name: "Written", colour: "two", value: rate("pushes_written"), needs: has("pushes_written") },
      { name: "Missed", colour: "bad", value: rate("pushes_missed"), needs: has("pushes_missed") },
    ],
    format: perSecond,
  },
  {
    title: "Queues",
    lines: [{ name: "Bytes that wait for clients", colour: "one", value: gauge("outgoing_bytes") }],
    format: bytes,
    least: 1024,
    ofBytes: true,
  },
  {
    title: "Memory",
    lines: [{ name: "Resident", colour: "one", value: gauge("memory_bytes") }],
    format: bytes,
    ofBytes: true,
    needs: (point) => point.stats.memory_bytes !== null,
  },
];

const TILES = [
  ["Connections", (stats) => short(stats.connections)],
  ["Sessions", (stats) => short(stats.sessions)],
  ["Away", (stats) => short(stats.sessions_away)],
  ["Calls running", (stats) => short(stats.calls_running)],
  ["Waiting to be read", (stats) => bytes(stats.outgoing_bytes)],
  ["Refused", (stats) => short(stats.counters.connections_refused + stats.counters.tokens_refused + stats.counters.overloads)],
];

export function overview(server) {
  const tiles = TILES.map(([name]) => h("div", { class: "tile" }, h("dd", {}, "–"), h("dt", {}, name)));
  const charts = h("div", { class: "charts" });
  const feed = h("ol", { class: "feed", "aria-label": "Events" });
  const none = h("p", { class: "muted empty" }, "Nothing has happened since this page was opened. Clients that come, subscribe, get lost and leave appear here.");
  const missed = h("p", { class: "muted" });
  let shown;

  function build(point) {
    shown = CHARTS.filter((one) => one.needs?.(point) ?? true)
      .map((one) => ({ ...one, lines: one.lines.filter((line) => line.needs?.(point) ?? true) }))
      .filter((one) => one.lines.length > 0)
      .map(chart);
    set(charts, shown.map((one) => one.element));
  }

  const onStats = () => {
    const point = server.last;
    if (!point) return;
    if (!shown) build(point);
    TILES.forEach(([, value], at) => set(tiles[at].firstChild, value(point.stats)));
    for (const one of shown) one.show(server.points);
  };
  const onEvents = () => {
    none.hidden = server.events.length > 0;
    set(missed, server.missed ? `${count(server.missed)} events came too fast to be shown.` : "");
    set(feed, server.events.slice(0, 60).map(entry));
  };
  server.addEventListener("stats", onStats);
  server.addEventListener("events", onEvents);
  onStats();
  onEvents();

  const element = h("div", { class: "view" },
    h("h2", { class: "sr" }, "Overview"),
    h("dl", { class: "tiles" }, tiles),
    charts,
    h("section", { class: "card", "aria-labelledby": "feed-title" },
      h("h3", { id: "feed-title" }, "What happens"), none, feed, missed),
    server.me.is_node && h("p", { class: "muted" }, "Numbers and events are of this node", server.me.node && [", ", h("span", { class: "mono" }, server.me.node.slice(0, 8))],
      ". Sessions and pushes are of ", h("a", { href: "#/nodes" }, "all nodes"), "."),
    server.may("kick") && h("div", { class: "row end" },
      h("button", { class: "danger quiet", onclick: () => drain(server) }, "Stop this server…")));
  return {
    element,
    end() {
      server.removeEventListener("stats", onStats);
      server.removeEventListener("events", onEvents);
    },
  };
}

function entry(event) {
  const [name, kind] = kindOf(event.event);
  const who = event.user ?? event.session.slice(0, 8);
  return h("li", {},
    h("span", { class: `mark ${kind}` }, icon(name)),
    time(event.at_ms),
    h("a", { class: "who-link", href: `#/session/${event.session}`, title: event.session }, who),
    h("span", { class: "what" }, event.text));
}

/** The drawing and the colour of an event: of the feed, and of a story. */
export function kindOf(event) {
  const name = typeof event === "string" ? event : Object.keys(event)[0];
  const value = event[name];
  switch (name) {
    case "Connected":
    case "Resumable":
      return ["link", "good"];
    case "Resumed":
      return ["link", "good"];
    case "TakenOver":
    case "NotResumed":
      return ["link", "warn"];
    case "Lost":
      return ["away", value.waits ? "warn" : "bad"];
    case "Ended":
      return ["cross", "bad"];
    case "Bound":
      return ["user", "calm"];
    case "Subscribed":
    case "Unsubscribed":
      return ["topic", "calm"];
    case "GapTold":
      return ["gap", "bad"];
    case "Push":
      return ["push", pushKind(value.stage)];
    case "Call":
      return ["call", value.outcome === "Answered" ? "good" : value.outcome === "Waits" ? "calm" : "bad"];
    default:
      return ["bolt", "calm"];
  }
}

const pushKind = (stage) => {
  if (["Handled", "PlainWritten"].includes(stage)) return "good";
  if (["Queued", "Written", "Received", "Duplicate", "Superseded"].includes(stage)) return "calm";
  return "bad";
};

/** Asks, and then stops the server client by client. */
export async function drain(server) {
  const connections = server.last?.stats.connections ?? 0;
  const input = (name, label, value, max) =>
    h("label", {}, label, h("input", { name, type: "number", min: "1", max, value, required: true }));
  const values = await confirm({
    title: "Stop this server?",
    text: `It takes no new clients from now on, and sends away ${plural(connections, "client")}, a few at a time, so that they reach another server. This cannot be taken back.`,
    action: "Drain and stop",
    danger: true,
    fields: h("div", { class: "fields" },
      input("seconds", "Within seconds", "60", "3600"), input("rate", "Clients a second", "100", "100000")),
  });
  if (!values) return;
  try {
    const told = await server.ask("Drain", { deadline_ms: values.seconds * 1000, reconnects_per_second: Number(values.rate) });
    toast(`The server stops: ${plural(told, "client")} will be sent away.`);
  } catch (error) {
    toast(why(error), "bad");
  }
}
