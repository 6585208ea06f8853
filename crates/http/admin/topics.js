// Topics and patterns, who subscribes, and who is there.

import { why } from "./api.js";
import { count, h, icon, plural, set } from "./dom.js";

const PAGE = 100;

export function topics(server, prefix) {
  const search = h("input", { type: "search", id: "search", placeholder: "Topic begins with…", autocomplete: "off", spellcheck: "false", value: prefix });
  const total = h("p", { class: "muted", role: "status" });
  const body = h("tbody", {});
  const table = h("table", { class: "list" },
    h("caption", { class: "sr" }, "Topics by name"),
    h("thead", {}, h("tr", {}, ["Topic", "Subscribers", "Members", "Messages so far"].map((name) => h("th", { scope: "col" }, name)))),
    body);
  const empty = h("p", { class: "muted empty", hidden: true }, "Nobody subscribes to such a topic, and nothing is kept of one.");
  const before = h("button", { class: "quiet", disabled: true, onclick: () => (places.pop(), load()) }, "Previous");
  const after = h("button", { class: "quiet", disabled: true, onclick: () => (places.push(last), load()) }, "Next");
  let places = [null];
  let last;
  let round = 0;
  let timer;

  async function load() {
    clearTimeout(timer);
    const mine = ++round;
    try {
      const listed = await server.ask("Topics", { prefix: search.value, after: places.at(-1), max: PAGE });
      if (mine !== round) return;
      last = listed.topics.at(-1)?.name;
      before.disabled = places.length < 2;
      after.disabled = listed.topics.length < PAGE;
      table.hidden = listed.topics.length === 0;
      empty.hidden = listed.topics.length > 0;
      set(total, plural(listed.total, "topic"));
      set(body, listed.topics.map(row));
    } catch (error) {
      if (mine === round) set(total, why(error));
    }
    if (mine === round) timer = setTimeout(load, 5000);
  }

  let typing;
  search.addEventListener("input", () => {
    clearTimeout(typing);
    typing = setTimeout(() => {
      places = [null];
      load();
    }, 150);
  });
  load();

  const element = h("div", { class: "view" },
    h("div", { class: "head" }, h("h2", {}, "Topics"),
      h("div", { class: "search" }, icon("search"), h("label", { class: "sr", for: "search" }, "Topic begins with"), search)),
    h("section", { class: "card flush", "aria-label": "Topics" }, table, empty),
    h("div", { class: "row" }, total, h("span", { class: "grow" }), before, after));
  return {
    element,
    end() {
      round += 1;
      clearTimeout(timer);
    },
  };
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
        server.ask("Sessions", { target, user_prefix: "", max: 100 }),
      ]);
      if (isOver) return;
      set(members, who.members.map(([member, status]) => h("li", {}, h("span", { class: `pill ${status === "online" ? "good" : "warn"}` }, status), " ", member)));
      set(note, who.more ? "and more" : who.members.length ? "" : "It shows no presence, or nobody is there.");
      set(said, listed ? plural(listed.total, "subscriber") : "A pattern: its subscribers get each topic that it covers.");
      set(subscribers, listed?.sessions.map((view) => h("li", {}, h("a", { href: `#/session/${view.id}` }, view.user ?? view.id.slice(0, 8)), " ",
        h("span", { class: "muted mono" }, view.peer ?? "away"))) ?? []);
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
