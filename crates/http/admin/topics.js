// Topics and patterns, who subscribes, and who is there.

import { why } from "./api.js";
import { count, h, icon, plural, set } from "./dom.js";
import { list, tableOf } from "./list.js";
import { nodeLink, silentNote } from "./nodes.js";

const PAGE = 100;

/** The list is asked for again after so long, in milliseconds. */
const REFRESH = 5000;

export function topics(server, prefix) {
  const total = h("p", { class: "muted", role: "status" });
  const body = h("tbody", {});
  const table = tableOf("Topics by name", ["Topic", "Subscribers", "Members", "Messages so far"], body);
  const empty = h("p", { class: "muted empty", hidden: true }, "Nobody subscribes to such a topic, and nothing is kept of one.");

  async function ask(prefix, after) {
    const listed = await server.ask("Topics", { prefix, after, max: PAGE });
    return { items: listed.topics, total: listed.total, last: listed.topics.at(-1)?.name };
  }

  function show({ items, total: all }) {
    set(total, plural(all, "topic"));
    set(body, items.map(row));
  }

  const parts = { table, total, empty, ask, show };
  return list({ title: "Topics", begins: "Topic begins with", prefix, page: PAGE, refresh: REFRESH, ...parts });
}

function row(view) {
  const cell = (name, value) => h("td", { "data-name": name }, value);
  const known = (value) => (value === null ? "–" : count(value));
  return h("tr", {},
    h("th", { scope: "row" }, h("a", { href: `#/topic/${encodeURIComponent(view.name)}` }, view.name)),
    cell("Subscribers", count(view.subscribers)), cell("Members", known(view.members)), cell("Messages so far", known(view.newest)));
}

const hasWildcard = (name) => name.split(".").some((segment) => segment === "*" || segment === ">");

/** One topic: who is in it. */
export function topic(server, name) {
  const members = h("ul", { class: "members" });
  const subscribers = h("ul", { class: "members" });
  const note = h("p", { class: "muted" });
  const said = h("p", { class: "muted", role: "status" }, "Loading…");
  let timer;
  let isOver = false;

  async function load() {
    try {
      const target = { Topic: name };
      const [who, listed] = hasWildcard(name) ? [{ members: [], more: false }, undefined] : await Promise.all([
        server.ask("Members", { topic: name, max: 200 }),
        server.ask("SessionsEverywhere", { target, user_prefix: "", max: 100 }),
      ]);
      if (isOver) return;
      set(members, who.members.map(([member, status]) => h("li", {}, h("span", { class: `pill ${status === "online" ? "good" : "warn"}` }, status), " ", member)));
      set(note, who.more ? "and more" : who.members.length ? "" : "It shows no presence, or nobody is there.");
      set(said, listed ? [plural(listed.total, "subscriber"), silentNote(listed.silent)] : "A pattern: its subscribers get each topic that it covers.");
      set(subscribers, listed?.sessions.map((view) => h("li", {}, h("a", { href: `#/session/${view.id}` }, view.user ?? view.id.slice(0, 8)), " ",
        h("span", { class: "muted mono" }, view.peer ?? "away"), " ", nodeLink(view.node))) ?? []);
    } catch (error) {
      if (!isOver) set(said, why(error));
    }
    if (!isOver) timer = setTimeout(load, 2000);
  }
  load();

  const element = h("div", { class: "view" },
    h("p", {}, h("a", { href: "#/topics" }, "← Topics")),
    h("div", { class: "head" }, h("h2", {}, name),
      server.may("push") && !hasWildcard(name) && h("a", { class: "button", href: `#/push/topic/${encodeURIComponent(name)}` }, icon("push"), "Publish…")),
    h("div", { class: "split" },
      h("section", { class: "card" }, h("h3", {}, "Present"), members, note),
      h("section", { class: "card" }, h("h3", {}, "Subscribers"), said, subscribers)));
  return {
    element,
    end() {
      isOver = true;
      clearTimeout(timer);
    },
  };
}
