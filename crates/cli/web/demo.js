// The page of `bothways demo --web`. What the server and its users say is shown as text and never as HTML.
import { Bothways, everything } from "/bothways.js";

const LINES_MAX = 200;
const at = (id) => document.getElementById(id);

/** Adds a line at the top of a list, and drops the oldest beyond the bound. */
function line(list, text, note = false) {
  const item = document.createElement("li");
  item.textContent = text;
  item.classList.toggle("note", note);
  at(list).prepend(item);
  while (at(list).children.length > LINES_MAX) at(list).lastChild.remove();
}

const counts = { received: 0, missing: 0, twice: 0, resumed: 0 };
function count(what, by = 1) {
  counts[what] += by;
  at(what).textContent = counts[what];
}

// A user of this tab. Reloading the page keeps it.
const user = sessionStorage.getItem("user") ?? `guest-${crypto.getRandomValues(new Uint32Array(1))[0].toString(36)}`;
sessionStorage.setItem("user", user);

const client = everything(new Bothways("/_rpcx_", { token: user }));
window.demo = { client, counts, user };

client.on("state", (state) => {
  const words = {
    connected: () => `connected as ${user}`,
    reconnecting: () => `connection lost: next try in ${(state.in / 1000).toFixed(1)} s`,
    closed: () => `closed: ${state.code}`,
  };
  at("state").textContent = words[state.name]?.() ?? state.name;
  at("state").className = `pill ${state.name}`;
  if (state.name === "connected" && state.resumed) {
    count("resumed");
    line("pushes", "back: the session goes on", true);
  }
  if (state.name === "reconnecting") line("pushes", "the connection is lost", true);
});
client.on("session", ({ lost }) => {
  last = undefined;
  line("pushes", `a new session: the old one is ${lost}`, true);
});

let last;
client.onPush("Demo", "Number", ({ Number: number }) => {
  if (last !== undefined && number > last + 1) count("missing", number - last - 1);
  if (last !== undefined && number <= last) return count("twice");
  last = number;
  count("received");
  line("pushes", `number ${number}`);
});

client.subscribe("demo.receipts", ({ Number: number, Handled: handled, Of: of, Millis: millis }) => {
  const tabs = of === 1 ? "1 tab" : `${of} tabs`;
  line("receipts", `number ${number}: handled by ${handled} of ${tabs}, after ${millis} ms`);
});

// The server calls this page, and gets what it returns.
client.handle("Page", {
  Confirm: ({ Question: question }) =>
    new Promise((answer) => {
      at("asked").textContent = question;
      at("question").hidden = false;
      at("yes").focus();
      const say = (yes) => () => {
        at("question").hidden = true;
        answer({ Yes: yes });
      };
      at("yes").onclick = say(true);
      at("no").onclick = say(false);
    }),
});

at("multiply").addEventListener("submit", async (event) => {
  event.preventDefault();
  try {
    const { C: product } = await client.call("Arith", "Mul", { A: at("a").valueAsNumber, B: at("b").valueAsNumber });
    at("product").textContent = product;
  } catch (error) {
    at("product").textContent = error.message;
  }
});

at("ask").addEventListener("click", async () => {
  at("said").textContent = "the server asks …";
  try {
    at("said").textContent = await client.call("Demo", "AskMe", null, { timeout: 60_000 });
  } catch (error) {
    at("said").textContent = error.message;
  }
});

at("cut").addEventListener("click", () => {
  line("pushes", "you asked for a cut", true);
  // There is no reply: the connection is gone.
  client.call("Demo", "CutMe", null, { timeout: 1000 }).catch(() => {});
});

await client.connect();
