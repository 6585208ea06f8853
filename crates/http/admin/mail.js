// Mailboxes of durable pushes: whose have letters, how far each device has come, and what could not be handled.

import { why } from "./api.js";
import { bytes, confirm, count, date, h, icon, plural, set, time, toast } from "./dom.js";
import { tableOf } from "./list.js";

const PAGE = 50;

/** A page is asked for again after so long, in milliseconds. */
const REFRESH = 5000;

/** The place of a letter is `epoch-sequence`, in hexadecimal digits. */
const sequenceOf = (place) => parseInt(place.split("-")[1], 16);

const name = (letter) =>
  letter.service_path ? h("b", {}, letter.service_path, ".", letter.service_method) : h("span", { class: "muted" }, "cannot be read");

const when = (millis) => [date(millis), " ", time(millis)];

const cell = (name, ...children) => h("td", { "data-name": name }, children);

/** A page of something at a time, forward and back. `ask` takes where a page begins, and resolves with what `show` puts into `body`. */
function pager(first, body, ask, show) {
  const older = h("button", { class: "quiet", disabled: true, onclick: () => (places.pop(), load()) }, "Previous");
  const newer = h("button", { class: "quiet", disabled: true, onclick: () => (places.push(last), load()) }, "Next");
  const said = h("p", { class: "muted", role: "status" }, "Loading…");
  let places = [first];
  let last;
  let round = 0;
  let timer;

  async function load() {
    clearTimeout(timer);
    const mine = ++round;
    try {
      const page = await ask(places.at(-1));
      if (mine !== round) return;
      // The one before it was the last one, or its letters are gone by now.
      if (page.items.length === 0 && places.length > 1) {
        places.pop();
        newer.disabled = true;
        return load();
      }
      last = page.last;
      older.disabled = places.length < 2;
      newer.disabled = page.items.length < PAGE;
      // What has the focus keeps it.
      const focused = body.contains(document.activeElement) && keyOf(document.activeElement);
      set(said, show(page));
      if (focused) [...body.querySelectorAll("a, button")].find((element) => keyOf(element) === focused)?.focus();
    } catch (error) {
      if (mine === round) set(said, why(error));
    }
    if (mine === round) timer = setTimeout(load, REFRESH);
  }

  return {
    load,
    again() {
      places = [first];
      return load();
    },
    end() {
      round += 1;
      clearTimeout(timer);
    },
    row: h("div", { class: "row" }, said, h("span", { class: "grow" }), older, newer),
  };
}

const keyOf = (element) => element.dataset.key ?? element.getAttribute("href");

/** All mailboxes; with `dead`, those with letters that could not be handled. */
export function mail(server, parameter) {
  const isDead = parameter === "dead";
  const body = h("tbody", {});
  const table = tableOf("Mailboxes by user", ["User", isDead ? "Dead letters" : "Letters"], body);
  const empty = h("p", { class: "muted empty", hidden: true }, isDead ? "No device has failed to handle a letter." : "No mailbox has a letter: every device has handled what it got.");
  const link = (key, text) => h("a", { href: `#/mail${key}`, "aria-current": (key !== "") === isDead && "true" }, text);
  const user = h("input", { type: "search", id: "search", placeholder: "User…", autocomplete: "off", spellcheck: "false", required: true });
  const find = h("form", {
    class: "search",
    onsubmit: (event) => {
      event.preventDefault();
      location.hash = mailboxOf(user.value, isDead);
    },
  }, icon("search"), h("label", { class: "sr", for: "search" }, "User whose mailbox is opened"), user);

  const listed = pager("", body, async (after) => {
    const items = await server.ask("Mailboxes", { dead: isDead, after, max: PAGE });
    return { items, last: items.at(-1)?.user };
  }, ({ items }) => {
    table.hidden = items.length === 0;
    empty.hidden = items.length > 0;
    set(body, items.map((view) => h("tr", {},
      h("th", { scope: "row" }, h("a", { href: mailboxOf(view.user, isDead), class: "clip", title: view.user }, view.user)),
      cell(isDead ? "Dead letters" : "Letters", count(view.letters)))));
    return items.length ? `${plural(items.length, "mailbox").replace("mailboxs", "mailboxes")} on this page, by user` : "";
  });
  listed.load();

  const element = h("div", { class: "view" },
    h("div", { class: "head" }, h("h2", {}, "Mail"),
      h("nav", { class: "tabs", "aria-label": "Which mailboxes" }, link("", "Waiting"), link("/dead", "Dead letters")), find),
    h("section", { class: "card flush", "aria-label": "Mailboxes" }, table, empty),
    listed.row);
  return { element, end: listed.end };
}

const mailboxOf = (user, isDead) => `#/${isDead ? "dead" : "mailbox"}/${encodeURIComponent(user)}`;

const head = (server, user, isDead) => [
  h("p", {}, h("a", { href: isDead ? "#/mail/dead" : "#/mail" }, "← Mail")),
  h("div", { class: "head" }, h("h2", {}, user),
    h("nav", { class: "tabs", "aria-label": "Which letters" },
      h("a", { href: mailboxOf(user, false), "aria-current": !isDead && "true" }, "Letters"),
      h("a", { href: mailboxOf(user, true), "aria-current": isDead && "true" }, "Dead letters")),
    h("div", { class: "row" },
      server.may("push") && h("a", { class: "button", href: `#/push/user/${encodeURIComponent(user)}` }, icon("push"), "Push…"))),
];

/** The mailbox of one user. */
export function mailbox(server, user) {
  const body = h("tbody", {});
  const devices = h("ul", { class: "chips" });
  const table = tableOf("Letters, oldest first", ["Letter", "Pushed", "Size", "Key", ""], body);
  const empty = h("p", { class: "muted empty", hidden: true }, "It is empty: every device has handled what it got.");

  const letters = pager(0, body, async (after) => {
    const { letters: items, devices } = await server.ask("Letters", { user, after, max: PAGE });
    const end = items.at(-1);
    return { items, devices, last: end && sequenceOf(end.place) };
  }, (page) => {
    table.hidden = page.items.length === 0;
    empty.hidden = page.items.length > 0;
    set(devices, page.devices.map(([device, place]) => {
      const behind = page.items.filter((letter) => sequenceOf(letter.place) > sequenceOf(place)).length;
      return h("li", { title: `has handled all up to ${place}` }, h("b", {}, device || "unnamed"),
        behind ? `: ${count(behind)}${page.items.length === PAGE ? " or more" : ""} to handle` : ": has handled all of these");
    }));
    if (page.devices.length === 0) set(devices, h("li", {}, "none has read it yet"));
    set(body, page.items.map((letter) => h("tr", {},
      h("th", { scope: "row", title: letter.place }, name(letter)),
      cell("Pushed", when(letter.at_ms)), cell("Size", bytes(letter.bytes)),
      cell("Key", letter.key ? h("span", { class: "mono clip", title: letter.key }, letter.key) : "–"),
      actions(server.may("kick") && removal(server, user, letter, false, letters)))));
    return page.items.length ? `${plural(page.items.length, "letter")} on this page, oldest first` : "";
  });
  letters.load();

  const element = h("div", { class: "view" }, head(server, user, false),
    h("section", { class: "card", "aria-labelledby": "devices-title" }, h("h3", { id: "devices-title" }, "Devices"), devices),
    h("section", { class: "card flush", "aria-label": "Letters" }, table, empty),
    letters.row);
  return { element, end: letters.end };
}

/** What the devices of one user could not handle. */
export function dead(server, user) {
  const body = h("tbody", {});
  const table = tableOf("Dead letters, oldest first", ["Letter", "Given up", "Device", "Tries", "Why", ""], body);
  const empty = h("p", { class: "muted empty", hidden: true }, "None: no device has failed to handle a letter.");

  const letters = pager(0, body, async (after) => {
    const items = await server.ask("DeadLetters", { user, after, max: PAGE });
    const end = items.at(-1);
    return { items, last: end && sequenceOf(end.letter.place) };
  }, ({ items }) => {
    table.hidden = items.length === 0;
    empty.hidden = items.length > 0;
    set(body, items.map((view) => h("tr", {},
      h("th", { scope: "row", title: view.letter.place }, name(view.letter)),
      cell("Given up", when(view.died_ms)), cell("Device", view.device || "unnamed"), cell("Tries", count(view.deliveries)),
      h("td", { "data-name": "Why", class: "bad-text wide" }, view.why),
      actions(
        server.may("push") && h("button", { class: "quiet", "data-key": `again ${view.letter.place}`, "aria-label": `Send again ${view.letter.service_path}.${view.letter.service_method}`, onclick: () => again(server, user, view.letter, letters) }, icon("push"), "Send again"),
        server.may("kick") && removal(server, user, view.letter, true, letters)))));
    return items.length ? `${plural(items.length, "letter")} on this page, oldest first` : "";
  });
  letters.load();

  const element = h("div", { class: "view" }, head(server, user, true),
    h("section", { class: "card flush", "aria-label": "Dead letters" }, table, empty),
    letters.row);
  return { element, end: letters.end };
}

const actions = (...buttons) => h("td", { class: "actions" }, buttons);

const removal = (server, user, letter, isDead, letters) =>
  h("button", {
    class: "danger quiet", "data-key": `delete ${letter.place}`, "aria-label": `Delete ${letter.service_path}.${letter.service_method}`,
    onclick: () => remove(server, user, letter, isDead, letters),
  }, "Delete…");

async function again(server, user, { place }, letters) {
  try {
    const isSent = await server.ask("SendAgain", { user, place, dead: true });
    toast(isSent ? "It is in the mailbox again." : "There is no such letter any more.", isSent ? "good" : "warn");
  } catch (error) {
    toast(why(error), "bad");
  }
  letters.again();
}

async function remove(server, user, letter, isDead, letters) {
  const values = await confirm({
    title: "Delete this letter?",
    text: `${letter.service_path}.${letter.service_method} to ${user}: ${isDead ? "nobody gets it any more." : "a device that has not handled it never gets it."} This cannot be taken back.`,
    action: "Delete",
    danger: true,
  });
  if (!values) return;
  try {
    const isDeleted = await server.ask("DeleteLetter", { user, place: letter.place, dead: isDead });
    toast(isDeleted ? "Deleted." : "There was no such letter any more.", isDeleted ? "good" : "warn");
  } catch (error) {
    toast(why(error), "bad");
  }
  letters.again();
}
