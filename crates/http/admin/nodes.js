// The nodes of the cluster, as each describes itself.

import { why } from "./api.js";
import { bytes, count, h, plural, set, short, span } from "./dom.js";
import { tableOf } from "./list.js";
import { drain } from "./overview.js";

const REFRESH = 2000;

const COLOURS = { up: "good", draining: "warn", silent: "bad", gone: "bad" };

/** As much of a node's number as tells it from the others. */
export const nodeName = (node) => node.slice(0, 8);

/** A node as a link to the list of all; nothing of a server alone. */
export const nodeLink = (node) => node && h("a", { class: "mono", href: "#/nodes", title: `node ${node}` }, nodeName(node));

/** What is not known, because some nodes have not answered; nothing if all have. */
export const silentNote = (silent) =>
  silent?.length > 0 && h("p", { class: "note warn", role: "alert" },
    h("b", {}, `${plural(silent.length, "node")} ${silent.length === 1 ? "has" : "have"} not answered.`), " What is there is not shown: ",
    silent.map((one, at) => [at > 0 && ", ", nodeLink(one.node), ` (${one.why})`]));

/** The same in words. */
export const silentWords = (silent) =>
  silent?.length > 0 ? ` Not answered: ${silent.map((one) => `${nodeName(one.node)} (${one.why})`).join(", ")}.` : "";

export function nodes(server) {
  const body = h("tbody", {});
  const said = h("p", { class: "muted", role: "status" }, "Loading…");
  const table = tableOf("Nodes of the cluster", ["Node", "State", "Clients reach it at", "Sessions", "Calls", "Waiting for clients", "On its way there", "Up", "Version"], body);
  table.hidden = true;
  let timer;
  let isOver = false;

  async function load() {
    clearTimeout(timer);
    try {
      const listed = await server.ask("Nodes");
      if (isOver) return;
      table.hidden = false;
      const focused = document.activeElement?.getAttribute("href");
      set(body, listed.map(row));
      if (focused) body.querySelector(`a[href="${CSS.escape(focused)}"]`)?.focus();
      const wrong = listed.filter((node) => node.state === "silent" || node.state === "gone").length;
      const sessions = listed.reduce((sum, node) => sum + node.sessions, 0);
      set(said, `${plural(listed.length, "node")}, ${plural(sessions, "session")}${wrong ? `; ${count(wrong)} not there` : ""}. Each describes itself once a second.`);
    } catch (error) {
      if (!isOver) set(said, why(error));
    }
    if (!isOver) timer = setTimeout(load, REFRESH);
  }
  load();

  const element = h("div", { class: "view" },
    h("div", { class: "head" }, h("h2", {}, "Nodes"),
      server.may("kick") && h("button", { class: "danger quiet", onclick: () => drain(server) }, "Stop this server…")),
    h("section", { class: "card flush", "aria-label": "Nodes" }, table),
    said,
    server.may("kick") && h("p", { class: "muted" }, "To stop another node, open the page of that one."));
  return {
    element,
    end() {
      isOver = true;
      clearTimeout(timer);
    },
  };
}

function row(node) {
  const cell = (name, ...children) => h("td", { "data-name": name }, children);
  const state = node.silent_ms === null ? node.state : `${node.state} for ${span(node.silent_ms)}`;
  return h("tr", {},
    h("th", { scope: "row" },
      h("span", { class: "mono", title: node.node }, node.node ? nodeName(node.node) : node.state === "gone" ? "–" : "alone"),
      node.is_here && h("span", { class: "here" }, "this one")),
    cell("State", h("span", { class: `pill ${COLOURS[node.state] ?? ""}` }, state)),
    cell("Clients reach it at", h("span", { class: "mono" }, node.address ?? "–")),
    cell("Sessions", count(node.sessions), node.sessions_away > 0 && h("small", {}, ` ${count(node.sessions_away)} away`)),
    cell("Calls", short(node.calls_running)),
    cell("Waiting for clients", bytes(node.outgoing_bytes)),
    cell("On its way there", node.is_here ? "–" : bytes(node.mail_bytes)),
    cell("Up", span(node.up_ms)),
    cell("Version", node.version));
}
