// A list that the server searches, shown a page at a time and asked for again.

import { why } from "./api.js";
import { h, icon, set } from "./dom.js";

/**
 * `begins` says what is searched by its beginning, and `prefix` with what. `ask` takes that and where a page begins, and
 * resolves with its `items`, the `last` place in it, and whether there is `more`, where a page that is not full does not
 * say so; `show` fills `table` and `total` with them. It is asked again `refresh` milliseconds after an answer that took
 * less than `quick`.
 */
export function list({ title, begins, prefix, page, table, total, empty, ask, show, refresh, quick = Infinity }) {
  const search = h("input", { type: "search", id: "search", placeholder: `${begins}…`, autocomplete: "off", spellcheck: "false", value: prefix });
  const before = h("button", { class: "quiet", disabled: true, onclick: () => (places.pop(), load()) }, "Previous");
  const after = h("button", { class: "quiet", disabled: true, onclick: () => (places.push(next), load()) }, "Next");
  // Where each page up to this one began, and how many there were before it.
  let places = [[null, 0]];
  let next;
  let timer;
  let round = 0;

  async function load() {
    clearTimeout(timer);
    const mine = ++round;
    const began = performance.now();
    try {
      const [begin, skipped] = places.at(-1);
      const listed = await ask(search.value, begin);
      if (mine !== round) return;
      const through = skipped + listed.items.length;
      next = [listed.last, through];
      before.disabled = places.length < 2;
      after.disabled = !(listed.more?.(through) ?? listed.items.length === page);
      table.hidden = listed.items.length === 0;
      empty.hidden = listed.items.length > 0;
      show(listed, search.value, skipped);
    } catch (error) {
      if (mine === round) set(total, why(error));
    }
    const took = performance.now() - began;
    if (mine === round && took < quick) timer = setTimeout(load, refresh);
  }

  let typing;
  search.addEventListener("input", () => {
    clearTimeout(typing);
    typing = setTimeout(() => {
      places = [[null, 0]];
      load();
    }, 150);
  });
  load();

  const element = h("div", { class: "view" },
    h("div", { class: "head" }, h("h2", {}, title),
      h("div", { class: "search" }, icon("search"), h("label", { class: "sr", for: "search" }, begins), search)),
    h("section", { class: "card flush", "aria-label": title }, table, empty),
    h("div", { class: "row" }, total, h("span", { class: "grow" }), before, after));
  return {
    element,
    end() {
      round += 1;
      clearTimeout(timer);
    },
  };
}

/** A table of these columns, whose rows are in `body`. */
export const tableOf = (caption, columns, body) =>
  h("table", { class: "list" },
    h("caption", { class: "sr" }, caption),
    h("thead", {}, h("tr", {}, columns.map((name) => h("th", { scope: "col" }, name)))),
    body);
