// Shows what a server pushes. Whatever comes from the server is text, and never markup.
import { Bothways, everything } from "../src/index.js";

/** Pushes that are shown. */
const SHOWN_MAX = 200;

const byId = <T extends HTMLElement = HTMLInputElement>(id: string) => document.getElementById(id) as T;
const asked = new URLSearchParams(location.search);
byId("address").value = asked.get("server") ?? (location.protocol.startsWith("http") ? "/_rpcx_" : "ws://127.0.0.1:8972/_rpcx_");
byId("token").value = asked.get("token") ?? "";

let bw: Bothways | undefined;

const textOf = (value: unknown): string => {
  if (value instanceof Uint8Array) return new TextDecoder().decode(value);
  return JSON.stringify(value, (_, part) => (typeof part == "bigint" ? `${part}` : part)) ?? "nothing";
};

function show(name: string, text: string) {
  const [item, title, time] = ["li", "b", "time"].map((tag) => document.createElement(tag)) as [HTMLElement, HTMLElement, HTMLElement];
  title.textContent = name;
  time.textContent = new Date().toLocaleTimeString();
  item.append(time, title, text.slice(0, 2000));
  const list = byId("pushes");
  list.prepend(item);
  if (list.children.length > SHOWN_MAX) list.lastElementChild!.remove();
}

async function connect() {
  bw?.close();
  const own = (bw = everything(new Bothways(byId("address").value, { token: byId("token").value, reconnect: "always" })));
  own.on("state", (state) => {
    if (own != bw) return;
    byId("state").textContent = state.name;
    byId("state").dataset.name = state.name;
    byId("why").textContent =
      state.name == "reconnecting" ? `in ${(state.in / 1000).toFixed(1)} s: ${state.why.message}`
      : state.name == "closed" ? state.why.message
      : state.name == "connected" ? (state.resumed ? "again, and nothing was lost" : `session ${own.sessionId.slice(0, 8) || "none"}`)
      : "";
  });
  own.on("gap", ({ missed }) => show("gap", `${missed} pushes are missing`));
  own.onPush("*", "*", (value, message) => {
    // What a subscription takes is shown by that.
    if (message.topic === undefined) show(`${message.path}.${message.method}`, textOf(value));
  });
  await own.connect();
}

/** Runs when a form is sent, and shows what becomes of it. */
function on(form: string, output: string, run: () => Promise<string>) {
  byId<HTMLFormElement>(form).addEventListener("submit", async (event) => {
    event.preventDefault();
    byId(output).textContent = "…";
    try {
      byId(output).textContent = await run();
    } catch (error) {
      byId(output).textContent = `${(error as { code?: string }).code ?? "error"}: ${(error as Error).message}`;
    }
  });
}

on("connect", "why", async () => {
  await connect();
  return byId("why").textContent!;
});
on("call", "reply", async () => {
  if (!bw) await connect();
  return textOf(await bw!.call(byId("path").value, byId("method").value, JSON.parse(byId("arguments").value || "null")));
});
on("subscribe", "subscribed", async () => {
  if (!bw) await connect();
  const topic = byId("topic").value;
  const sub = bw!.subscribe(topic, (value, message) => show(message.topic!, textOf(value)), { presence: (members) => {
    byId("subscribed").textContent = `${members.length} in ${topic}: ${members.map(({ user, session }) => user || session).join(", ").slice(0, 200)}`;
  } });
  sub.on("gap", () => show(topic, "some messages are missing"));
  await sub.ready;
  return `subscribed to ${topic}`;
});

void connect().catch(() => {});
