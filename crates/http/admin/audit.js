// What operators did, and what was refused.

import { why } from "./api.js";
import { count, date, h, set, time } from "./dom.js";

const PAGE = 50;
const COLOURS = {
  push: "good", "send again": "good", kick: "bad", drain: "bad", "delete a letter": "bad", "delete a dead letter": "bad", refused: "warn",
};

export function audit(server) {
  const body = h("tbody", {});
  const table = h("table", { class: "list" },
    h("caption", { class: "sr" }, "What operators did, newest first"),
    h("thead", {}, h("tr", {}, ["When", "Who", "Act", "To", "What", "Sessions"].map((name) => h("th", { scope: "col" }, name)))),
    body);
  const empty = h("p", { class: "muted empty", hidden: true }, "No operator has pushed, or sent anybody away, since the server began.");
  const said = h("p", { class: "muted", role: "status" });
  const newer = h("button", { class: "quiet", disabled: true, onclick: () => (places.pop(), load()) }, "Newer");
  const older = h("button", { class: "quiet", disabled: true, onclick: () => (places.push(last), load()) }, "Older");
  let places = [null];
  let last;
  let timer;
  let isOver = false;

  async function load() {
    clearTimeout(timer);
    try {
      const entries = await server.ask("Audit", { before: places.at(-1), max: PAGE });
      if (isOver) return;
      last = entries.at(-1)?.number;
      newer.disabled = places.length < 2;
      older.disabled = entries.length < PAGE;
      table.hidden = entries.length === 0;
      empty.hidden = entries.length > 0;
      set(said, "The server keeps the last 1,000 acts, and 200 refusals, until it ends. Its log has every act.");
      set(body, entries.map(row));
    } catch (error) {
      if (!isOver) set(said, why(error));
    }
    if (!isOver) timer = setTimeout(load, 3000);
  }
  load();

  const element = h("div", { class: "view" },
    h("div", { class: "head" }, h("h2", {}, "Audit")),
    h("section", { class: "card flush", "aria-label": "Audit" }, table, empty),
    h("div", { class: "row" }, said, h("span", { class: "grow" }), newer, older));
  return {
    element,
    end() {
      isOver = true;
      clearTimeout(timer);
    },
  };
}

function row(entry) {
  const cell = (name, ...children) => h("td", { "data-name": name }, children);
  return h("tr", {},
    h("th", { scope: "row" }, date(entry.at_ms), " ", time(entry.at_ms)),
    cell("Who", entry.operator || "–", " ", h("small", { class: "mono" }, entry.peer)),
    cell("Act", h("span", { class: `pill ${COLOURS[entry.act] ?? ""}` }, entry.act)),
    cell("To", entry.target || "–"), cell("What", entry.detail), cell("Sessions", count(entry.sessions)));
}
