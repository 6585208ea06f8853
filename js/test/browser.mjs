// A real Chromium, and pages in it that have the client.
import { existsSync, readFileSync } from "node:fs";
import { createServer } from "node:http";
import { spawnSync } from "node:child_process";
import { once } from "node:events";
import puppeteer from "puppeteer-core";
import { LONG } from "./helpers.mjs";

const dist = new URL("../dist/", import.meta.url);

/** The path of Chromium, if there is one. */
export function chromium() {
  const name = process.env.CHROMIUM ?? "chromium";
  if (name.includes("/")) return existsSync(name) ? name : undefined;
  return spawnSync("sh", ["-c", `command -v ${name}`], { encoding: "utf8" }).stdout.trim() || undefined;
}

export async function launch(t) {
  const browser = await puppeteer.launch({ executablePath: chromium(), args: ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"], timeout: LONG });
  t.after(() => browser.close());
  return browser;
}

/** What each page of these tests has: a client that notes what happens to it. */
const page = `<!doctype html><title>test</title><script type="module">
import { Bothways, everything, json, keepSession, msgpack } from "/index.js";
import { Bothways as OfJson, handle, subscribe } from "/json.js";
Object.assign(window, { Bothways, OfJson, subscribe, json, msgpack, states: [], sessions: [], got: [], errors: [] });
window.begin = async (url, options = {}, more) => {
  const { storageKey, isJson } = options;
  window.bw = new (isJson ? OfJson : Bothways)(url, { token: "ann", onError: (error, where) => errors.push(where + ": " + error), ...options });
  if (!isJson) everything(bw);
  if (storageKey) keepSession(bw, sessionStorage, storageKey);
  bw.on("state", (state) => states.push({ ...state, why: state.why?.message, at: Date.now() }));
  bw.on("session", ({ lost }) => sessions.push(lost));
  bw.onPush("Mail", "new", (value) => void got.push(value));
  const methods = { last: (args) => ({ seen: args, title: document.title }) };
  const take = (value) => void got.push(value);
  if (isJson) {
    handle(bw, "Chat", methods);
    if (more) subscribe(bw, more, take);
  } else {
    bw.handle("Chat", methods);
    if (more) bw.subscribe(more, take);
  }
  await bw.connect();
  return bw.sessionId;
};
window.ready = true;
</script>`;

/** Serves the pages, on an origin of its own. */
export async function pages(t) {
  const server = createServer((request, response) => {
    const name = request.url.slice(1).replace(/\?.*/, "");
    const isScript = /^[\w.-]+\.js$/.test(name) && existsSync(new URL(name, dist));
    response.setHeader("Content-Type", isScript ? "text/javascript" : "text/html");
    const policy = "default-src 'none'; script-src 'self' 'unsafe-inline'; style-src 'unsafe-inline'; connect-src ws:";
    response.setHeader("Content-Security-Policy", policy);
    const html = () => (name === "demo" ? readFileSync(new URL("../demo/index.html", import.meta.url)) : page);
    response.end(isScript ? readFileSync(new URL(name, dist)) : html());
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  t.after(() => {
    server.closeAllConnections();
    server.close();
  });
  return `http://127.0.0.1:${server.address().port}/`;
}

export async function open(browser, origin) {
  const page = await browser.newPage();
  page.setDefaultTimeout(LONG);
  await page.goto(origin);
  await page.waitForFunction("window.ready");
  return page;
}
