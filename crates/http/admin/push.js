// A push by hand, and its receipt as it comes.

import { why } from "./api.js";
import { confirm, count, h, icon, plural, set, time } from "./dom.js";
import { silentWords } from "./nodes.js";

/** A durable push from here is kept so long for devices that have not handled it: seven days, in milliseconds. */
const KEPT_FOR = 7 * 24 * 3600 * 1000;

/** Receipts that are followed at once; they stay on the page, and are lost with it. */
const SHOWN_MAX = 20;

const STAGES = [
  ["queued", "waiting", "calm"],
  ["written", "written", "two"],
  ["received", "received", "one-soft"],
  ["handled", "handled", "one"],
  ["missed", "missed", "bad"],
  ["unknown", "unknown", "warn"],
  ["duplicate", "sent before", "calm"],
];

const receipts = h("ol", { class: "receipts", "aria-live": "polite", "aria-label": "Receipts" });

export function push(server, parameter) {
  const [kind, ...rest] = parameter.split("/");
  const given = rest.join("/");
  const none = h("p", { class: "muted empty", hidden: receipts.children.length > 0 }, "What you push appears here, with each stage as it comes: written, received, handled.");
  if (!server.may("push")) {
    return { element: h("div", { class: "view" }, h("h2", {}, "Push"), h("p", { class: "card" }, `Your token's role is ${server.me.role}: it may not push.`)) };
  }

  const option = (value, text) => h("option", { value, selected: value === kind }, text);
  const who = h("select", { id: "who" },
    option("user", "All sessions of a user"), option("session", "One session"), option("topic", "A topic"), option("everyone", "Everyone"));
  const name = h("input", { id: "name", autocomplete: "off", spellcheck: "false", value: given, required: true });
  const nameLabel = h("label", { for: "name" });
  const nameField = h("div", {}, nameLabel, name);
  const method = h("input", { id: "method", autocomplete: "off", spellcheck: "false", value: "Chat.say", pattern: "[^.]+(\\..+)+", required: true, title: "Path.method, such as Chat.say" });
  const codec = h("select", { id: "codec" }, h("option", { value: "1" }, "JSON"), h("option", { value: "0" }, "Text, as it is"));
  const kept = h("input", { type: "checkbox", id: "kept" });
  const keptField = h("label", { class: "check", for: "kept" }, kept, "Keep it in the mailbox until each device has handled it, for 7 days");
  const payload = h("textarea", { id: "payload", rows: "4", spellcheck: "false" });
  payload.value = '{"text": "Hello from the admin page"}';
  const error = h("p", { class: "error", role: "alert" });
  const labels = { user: "User", session: "Session", topic: "Topic" };
  const change = () => {
    nameField.hidden = who.value === "everyone";
    name.required = !nameField.hidden;
    keptField.hidden = who.value !== "user" || !server.me.has_mail;
    set(nameLabel, labels[who.value] ?? "");
  };
  who.addEventListener("change", change);
  change();

  const form = h("form", { class: "card form", onsubmit: send },
    h("div", { class: "fields" },
      h("div", {}, h("label", { for: "who" }, "To"), who), nameField,
      h("div", {}, h("label", { for: "method" }, "Name"), method),
      h("div", {}, h("label", { for: "codec" }, "Payload is"), codec)),
    h("label", { for: "payload" }, "Payload"), payload,
    keptField,
    error,
    h("div", { class: "row end" }, h("button", { class: "primary" }, icon("push"), "Push")));

  async function send(event) {
    event.preventDefault();
    set(error, "");
    if (codec.value === "1") {
      try {
        JSON.parse(payload.value);
      } catch (failure) {
        set(error, `That is no JSON: ${failure.message}`);
        payload.focus();
        return;
      }
    }
    const target = who.value === "everyone" ? "Everyone" : { [labels[who.value]]: name.value };
    const whom = who.value === "everyone" ? "everyone" : `${who.value} ${name.value}`;
    if (who.value === "everyone" || who.value === "topic") {
      const text = who.value === "everyone" ? `Every client gets it: ${plural(server.last?.stats.sessions ?? 0, "session")} now.` : "All its subscribers get it, and its history keeps it.";
      if (!(await confirm({ title: `Push ${method.value} to ${whom}?`, text, action: "Push" }))) return;
    }
    const at = method.value.lastIndexOf(".");
    try {
      const begun = await server.ask("BeginPush", {
        target,
        service_path: method.value.slice(0, at),
        service_method: method.value.slice(at + 1),
        metadata: [],
        payload: new TextEncoder().encode(payload.value),
        codec: Number(codec.value),
        class: kept.checked && !keptField.hidden ? { Durable: KEPT_FOR } : "Tracked",
      });
      none.hidden = true;
      follow(server, begun, method.value, whom, who.value);
    } catch (failure) {
      set(error, why(failure));
    }
  }

  return {
    element: h("div", { class: "view" },
      h("div", { class: "head" }, h("h2", {}, "Push")),
      form,
      h("section", { class: "card", "aria-labelledby": "receipts-title" }, h("h3", { id: "receipts-title" }, "Receipts"), none, receipts)),
  };
}

/** Shows how far a push has come, until nothing can follow. */
async function follow(server, begun, name, whom, kind) {
  const bar = h("div", { class: "bar-of", "aria-hidden": "true" });
  const words = h("p", { class: "words" });
  const item = h("li", {},
    h("div", { class: "row" }, h("b", {}, name), h("span", { class: "muted clip" }, "to ", whom), h("span", { class: "grow" }), time(Date.now())),
    bar, words);
  receipts.prepend(item);
  while (receipts.children.length > SHOWN_MAX) receipts.lastChild.remove();

  let standing = begun;
  let failures = 0;
  for (;;) {
    draw(standing);
    if (standing.is_final || !item.isConnected && receipts.contains(item) === false) return;
    try {
      standing = await server.ask("Receipt", { number: begun.number, seen: standing.outcome, wait_ms: 10_000 });
      failures = 0;
    } catch (error) {
      failures += 1;
      if (failures > 3 || server.state.name === "closed") {
        words.append(` · ${why(error)}`);
        return;
      }
      await new Promise((resume) => setTimeout(resume, 1000 * failures));
    }
  }

  function draw({ outcome, is_final: isFinal, unreached = [] }) {
    const failed = Object.values(outcome.failed).reduce((sum, one) => sum + one, 0);
    const counts = { ...outcome, missed: outcome.expired + outcome.superseded + outcome.dropped + failed };
    const total = STAGES.reduce((sum, [key]) => sum + counts[key], 0);
    const some = STAGES.filter(([key]) => counts[key] > 0);
    set(bar, some.map(([key, , colour]) => {
      const part = h("i", { class: colour });
      part.style.flexGrow = counts[key];
      return part;
    }));
    const kept = outcome.stored ? `, kept in ${kind === "topic" ? "the topic's history" : "the mailbox"}` : "";
    const asked = outcome.routing ? `, ${plural(outcome.routing, "node")} asked` : "";
    const stages = some.map(([key, text]) => `${count(counts[key])} ${text}`).join(", ");
    const reached = total === 0 ? `Nobody is there${isFinal ? "" : " yet"}` : `${plural(total, "session")}: ${stages}`;
    set(words, `${reached}${kept}${asked}${isFinal ? "." : " …"}${silentWords(unreached)}`);
    item.className = isFinal ? (counts.missed || unreached.length ? "bad" : "good") : "";
  }
}
