// The page of a stranger, in the browser of somebody who may reach the server: what it sends costs the server nothing.
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { createServer } from "node:http";
import { createInterface } from "node:readline";
import { test } from "node:test";
import { chromium, launch } from "./browser.mjs";
import { Inbox, bothwaysProgram, missing, within } from "./helpers.mjs";

const LIMIT = { timeout: 180_000 };

/** The program, with HTTP beside it. */
async function serve(t) {
  const child = spawn(bothwaysProgram(), ["serve", "tcp@127.0.0.1:0", "--http", "127.0.0.1:0", "--grace", "1s"], { stdio: ["ignore", "pipe", "inherit"] });
  const lines = new Inbox();
  createInterface({ input: child.stdout }).on("line", lines.put);
  const ended = once(child, "exit");
  t.after(async () => {
    child.kill();
    await within(ended, "the server ends");
  });
  return (await lines.find((line) => line.startsWith("HTTP at "), "it serves HTTP")).match(/http:\/\/[\d.]+:\d+/)[0];
}

/** An origin that has an empty page, and no more. */
async function origin(t, host) {
  const server = createServer((_, response) => response.setHeader("Content-Type", "text/html").end("<!doctype html><title>a page</title>"));
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  t.after(() => {
    server.closeAllConnections();
    server.close();
  });
  return `http://${host}:${server.address().port}/`;
}

/** All that a page can send without being asked first whether it may. Runs in the page. */
async function attack(target) {
  const rounds = 20;
  const sent = [];
  const done = (promise) => sent.push(promise.then(() => "answered", (error) => error.name));
  for (let at = 0; at < rounds; at += 1) {
    const fetched = (path, options) => done(fetch(target + path, { mode: "no-cors", credentials: "include", signal: AbortSignal.timeout(2000), ...options }));
    fetched(`/events?n=${at}`);
    fetched("/events/ticket", { method: "POST" });
    fetched("/rpc/Arith/Mul", { method: "POST", body: '{"A":6,"B":7}', headers: { "Content-Type": "text/plain" } });
    fetched("/debug/vars");
    const asked = (tag, set) => done(new Promise((resolve) => {
      const element = document.createElement(tag);
      element.onload = element.onerror = resolve;
      set(element);
      document.body.append(element);
      setTimeout(resolve, 2000);
    }));
    asked("img", (image) => (image.src = `${target}/events?image=${at}`));
    asked("iframe", (frame) => (frame.src = `${target}/events?frame=${at}`));
    asked("script", (script) => (script.src = `${target}/debug/vars?script=${at}`));
  }
  window.streams = Array.from({ length: 4 }, (_, at) => new EventSource(`${target}/events?stream=${at}`));
  await Promise.all(sent);
}

const vars = async (target) => (await fetch(`${target}/debug/vars`)).json();

test("the page of another origin opens no stream, takes no ticket, makes no call", LIMIT, async (t) => {
  if (!chromium()) return missing(t, "chromium");
  if (!bothwaysProgram()) return missing(t, "bothways (cargo build -p bothways-cli)");
  const target = await serve(t);
  const browser = await launch(t);
  // Another site, and a neighbour of the same site: another port of the same address.
  for (const host of ["localhost", "127.0.0.1"]) {
    const page = await browser.newPage();
    await page.goto(await origin(t, host));
    const before = await vars(target);
    await page.evaluate(attack, target);
    const after = await vars(target);
    assert.ok(after.http.requests - before.http.requests > 100, `${host}: the requests arrived: ${after.http.requests - before.http.requests}`);
    assert.deepEqual([after.http.streams, after.http.streams_waiting], [0, 0], `${host}: no stream was begun`);
    assert.equal(after.server.connections_accepted, before.server.connections_accepted, `${host}: the server was not asked`);
    await page.close();
  }
  assert.equal((await fetch(`${target}/rpc/Arith/Mul`, { method: "POST", body: '{"A":6,"B":7}', headers: { "Content-Type": "application/json" } })).status, 200, "a program may call");

  // What the user types is answered, and what the front's own page asks.
  const page = await browser.newPage();
  await page.goto(`${target}/debug/vars`);
  assert.match(await page.evaluate(() => document.body.innerText), /uptime_seconds/);
  const own = await page.evaluate(async () => {
    const answer = await fetch("/rpc/Arith/Mul", { method: "POST", body: '{"A":6,"B":7}', headers: { "Content-Type": "application/json" } });
    const opened = await new Promise((resolve, reject) => {
      const events = new EventSource("/events");
      events.addEventListener("bothways.open", () => (events.close(), resolve(true)));
      events.onerror = () => reject(new Error("no stream"));
    });
    return [answer.status, opened];
  });
  assert.deepEqual(own, [200, true]);
});
