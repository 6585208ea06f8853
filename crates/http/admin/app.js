// The frame of the page: signing in, the bar at the top, and which view is shown.

import { Server, why } from "./api.js";
import { h, icon, s, set, span } from "./dom.js";
import { audit } from "./audit.js";
import { dead, mail, mailbox } from "./mail.js";
import { nodes } from "./nodes.js";
import { overview } from "./overview.js";
import { push } from "./push.js";
import { session, sessions } from "./sessions.js";
import { topic, topics } from "./topics.js";

const STORED = "bothways-admin-token";

/** Views by the first part of the address behind `#`. Each returns its element, and what ends it; the third says where there is one. */
const VIEWS = {
  overview: ["Overview", overview],
  nodes: ["Nodes", nodes, (me) => me.is_node],
  sessions: ["Sessions", sessions],
  session: [undefined, session],
  topics: ["Topics", topics],
  topic: [undefined, topic],
  push: ["Push", push],
  mail: ["Mail", mail, (me) => me.has_mail],
  mailbox: [undefined, mailbox, (me) => me.has_mail],
  dead: [undefined, dead, (me) => me.has_mail],
  audit: ["Audit", audit],
};

const PARENT = { session: "sessions", topic: "topics", mailbox: "mail", dead: "mail" };

const app = document.getElementById("app");

const logo = () =>
  s("svg", { class: "logo", viewBox: "0 0 32 32", "aria-hidden": "true" },
    s("rect", { width: 32, height: 32, rx: 8 }),
    s("path", { d: "M8 12h14m-4-4 4 4-4 4M24 20H10m4-4-4 4 4 4" }));

/** The token stays in this page, and in the tab only if the operator says so. */
const stored = {
  get: () => sessionStorage.getItem(STORED),
  set: (token) => sessionStorage.setItem(STORED, token),
  forget: () => sessionStorage.removeItem(STORED),
};

function signIn(said) {
  const error = h("p", { class: "error", role: "alert", id: "sign-in-error" }, said ?? "");
  const token = h("input", {
    id: "token", name: "token", type: "password", autocomplete: "current-password", required: true, spellcheck: "false",
    "aria-describedby": "sign-in-error",
  });
  const keep = h("input", { type: "checkbox", id: "keep" });
  const button = h("button", { class: "primary" }, "Connect");
  const form = h("form", {
    class: "card sign-in",
    onsubmit: async (event) => {
      event.preventDefault();
      button.disabled = true;
      set(error, "");
      try {
        await enter(token.value);
        if (keep.checked) stored.set(token.value);
      } catch (failure) {
        set(error, refusal(failure));
        button.disabled = false;
        token.select();
      }
    },
  },
    h("div", { class: "brand" }, logo(), h("h1", {}, "Bothways admin")),
    h("p", { class: "muted" }, "Sessions, pushes and their receipts, as they happen."),
    h("label", { for: "token" }, "Admin token"), token,
    h("label", { class: "check", for: "keep" }, keep, "Keep it until this tab is closed"),
    error, button);
  set(app, h("main", { class: "center" }, form));
  token.focus();
}

const refusal = (error) =>
  error.code === "unauthenticated" ? `Refused: ${why(error)}.` : `No connection: ${why(error)}.`;

async function enter(token) {
  const server = await Server.open(token);
  frame(server);
}

function frame(server) {
  const status = h("span", { class: "pill", role: "status" });
  const has = (key) => Object.hasOwn(VIEWS, key) && (VIEWS[key][2]?.(server.me) ?? true);
  const links = Object.entries(VIEWS).filter(([key, [name]]) => name && has(key))
    .map(([key, [name]]) => h("a", { href: `#/${key}`, "data-view": key }, name));
  const main = h("main", { id: "main", tabindex: "-1" });
  const leave = () => {
    stored.forget();
    server.close();
    location.hash = "";
    removeEventListener("hashchange", show);
    signIn();
  };
  set(app,
    h("a", { class: "skip", href: "#main", onclick: (event) => (event.preventDefault(), main.focus()) }, "Skip to the content"),
    h("header", { class: "bar" },
      h("div", { class: "brand" }, logo(), h("strong", {}, "Bothways")),
      status,
      h("nav", { "aria-label": "Views" }, links),
      h("div", { class: "who" },
        h("span", { title: `version ${server.me.server_version}` }, icon("user"), server.me.name, h("small", {}, server.me.role)),
        h("button", { class: "quiet", onclick: leave }, icon("out"), "Sign out"))),
    main);

  let end = () => {};
  function show() {
    const [key, ...rest] = location.hash.replace(/^#\//, "").split("/");
    const name = has(key) ? key : "overview";
    let parameter = "";
    try {
      parameter = decodeURIComponent(rest.join("/"));
    } catch {
      // An address that somebody typed.
    }
    end();
    for (const link of links) {
      const isHere = link.dataset.view === (PARENT[name] ?? name);
      if (isHere) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    }
    const view = VIEWS[name][1](server, parameter);
    end = view.end ?? (() => {});
    set(main, view.element);
    document.title = `${VIEWS[name][0] ?? key} · Bothways admin`;
    scrollTo(0, 0);
  }
  addEventListener("hashchange", show);

  function tell() {
    const state = server.state;
    const stats = server.last?.stats;
    const [kind, text] =
      state.name === "connected" ? (stats?.is_stopping ? ["warn", "Draining"] : ["good", stats ? `Up ${span(stats.up_ms)}` : "Connected"])
      : state.name === "closed" ? ["bad", "Closed"]
      : ["warn", "Connecting…"];
    status.className = `pill ${kind}`;
    set(status, text);
    if (state.name === "closed" && state.code !== "closed") {
      server.close();
      removeEventListener("hashchange", show);
      end();
      stored.forget();
      signIn(refusal(state.why));
    }
  }
  server.addEventListener("state", tell);
  server.addEventListener("stats", tell);
  tell();
  show();
}

const kept = stored.get();
if (kept) enter(kept).catch((error) => (stored.forget(), signIn(refusal(error))));
else signIn();
