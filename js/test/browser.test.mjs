// The client in a real Chromium, against real servers.
import assert from "node:assert/strict";
import { test } from "node:test";
import { setTimeout as pause } from "node:timers/promises";
import { chromium, launch, open, pages } from "./browser.mjs";
import { goServer, missing, rustServer, start, within } from "./helpers.mjs";
import { Proxy } from "./proxy.mjs";

const isLong = process.env.BOTHWAYS_JS_LONG === "long";
const [PUSHES, CUTS, OFFLINE] = isLong ? [10_000, 50, 30_000] : [1000, 5, 3000];
// Pages in the background draw nothing, and so must be asked by the clock.
const PATIENCE = { timeout: 60_000, polling: 20 };

/** Where there is everything: a server, a proxy in front of it, and a page. */
async function set(t, args = []) {
  if (!chromium()) return void missing(t, "chromium");
  if (!rustServer()) return void missing(t, "web-server");
  const origin = await pages(t);
  const server = start(t, rustServer(), ["--addr", "ws@127.0.0.1:0", "--origin", origin.slice(0, -1), ...args]);
  const [address] = await server.addresses();
  const proxy = await Proxy.start(t, address);
  const browser = await launch(t);
  return { server, proxy, browser, origin, page: await open(browser, origin) };
}

const mail = (from, count, more) => ({ do: "push", to: { user: "ann" }, path: "Mail", method: "new", from, count, ...more });
const range = (from, count) => Array.from({ length: count }, (_, n) => from + n);
const connected = (page, times) =>
  page.waitForFunction((times) => states.filter(({ name }) => name === "connected").length >= times, PATIENCE, times);

test("pushes come once and in order over many cuts, and each receipt says handled", async (t) => {
  const all = await set(t);
  if (!all) return;
  const { server, proxy, page } = all;
  await page.evaluate((url) => begin(url), proxy.url);
  let cuts = 0;
  const cutting = (async () => {
    for (; cuts < CUTS; cuts++) {
      const many = Math.floor(((cuts + 1) * PUSHES) / (CUTS + 1));
      await page.waitForFunction((many) => got.length >= many, PATIENCE, many);
      await connected(page, cuts + 1);
      proxy.cut();
    }
  })();
  const began = Date.now();
  const { ends } = await server.ask(mail(1, PUSHES), 300_000);
  await cutting;
  assert.deepEqual(ends, { Handled: PUSHES });
  assert.deepEqual(await page.evaluate("got"), range(1, PUSHES));
  await connected(page, CUTS + 1);
  const states = await page.evaluate("states");
  assert.equal(states.filter(({ resumed }) => resumed).length, CUTS);
  assert.deepEqual(await page.evaluate("[sessions, errors]"), [[], []]);
  t.diagnostic(`${PUSHES} pushes over ${cuts} cuts in ${Date.now() - began} ms`);
});

test("a page of another origin is refused", async (t) => {
  const all = await set(t);
  if (!all) return;
  const { proxy, browser, page } = all;
  const other = await open(browser, await pages(t));
  assert.match(await other.evaluate((url) => begin(url).catch((error) => error.code), proxy.url), /lost/);
  assert.match(await other.evaluate("states.at(-1).why"), /WebSocket was closed/);
  assert.ok(await page.evaluate((url) => begin(url), proxy.url));
});

test("calls both ways from a page", async (t) => {
  const all = await set(t);
  if (!all) return;
  const { server, proxy, page } = all;
  await page.evaluate((url) => begin(url), proxy.url);
  assert.deepEqual(await page.evaluate(() => bw.call("Arith", "Mul", { A: 6, B: 7 })), { C: 42 });
  assert.deepEqual(await page.evaluate(() => bw.call("Arith", "Mul", { A: 6, B: 7 }, { codec: json() })), { C: 42 });
  const call = { do: "call", user: "ann", path: "Chat", method: "last", args: { n: 1 }, millis: 5000 };
  assert.deepEqual((await server.ask(call)).ok, { seen: { n: 1 }, title: "test" });
  assert.equal(await page.evaluate(() => bw.call("Wait", "Millis", 9000, { signal: AbortSignal.timeout(30) }).catch((e) => e.name)), "TimeoutError");
});

test("JSON alone is enough", async (t) => {
  const all = await set(t);
  if (!all) return;
  const { server, proxy, page } = all;
  await page.evaluate((url) => begin(url, { isJson: true }, "news.a"), proxy.url);
  assert.deepEqual(await page.evaluate(() => bw.call("Arith", "Mul", { A: 6, B: 7 })), { C: 42 });
  assert.deepEqual((await server.ask(mail(1, 3, { json: true }))).ends, { Handled: 3 });
  const call = { do: "call", user: "ann", path: "Chat", method: "last", args: { n: 1 }, millis: 5000 };
  assert.match((await server.ask(call)).error ?? "", /codec|MessagePack/i, "it says what it lacks");
  await page.evaluate(() => subscribe(bw, "news.b", () => {}).ready);
  proxy.cut();
  await connected(page, 2);
  const news = { do: "push", to: { topic: "news.a" }, path: "News", method: "say", from: 7, count: 1, json: true };
  assert.deepEqual((await server.ask(news)).ends, { Handled: 1 });
  assert.deepEqual(await page.evaluate("[got, errors]"), [[1, 2, 3, 7], []]);
});

test("a duplicated tab takes the session over, and the two do not fight", async (t) => {
  const all = await set(t);
  if (!all) return;
  const { server, proxy, browser, origin, page } = all;
  const first = await page.evaluate((url) => begin(url, { storageKey: "k" }), proxy.url);
  await server.ask(mail(1, 3));
  const copy = await page.evaluate(() => sessionStorage.getItem("k"));
  const other = await open(browser, origin);
  await other.evaluate((copy) => sessionStorage.setItem("k", copy), copy);
  assert.equal(await other.evaluate((url) => begin(url, { storageKey: "k" }), proxy.url), first);
  await connected(page, 2);
  assert.deepEqual(await page.evaluate("sessions"), ["moved"]);
  const count = proxy.count;
  await pause(1000);
  assert.equal(proxy.count, count, "nobody connects again");
  assert.equal(count, 3);
  const { sessions } = await server.ask({ do: "sessions" });
  assert.equal(new Set(sessions.map(({ session }) => session)).size, 2);
  assert.deepEqual((await server.ask(mail(4, 2))).ends, { Handled: 4 });
  assert.deepEqual([await page.evaluate("got"), await other.evaluate("got")], [[1, 2, 3, 4, 5], [4, 5]]);
});

test("a hidden page gets pushes, says so, and is called", async (t) => {
  const all = await set(t);
  if (!all) return;
  const { server, proxy, page, browser, origin } = all;
  await page.evaluate((url) => begin(url), proxy.url);
  const other = await open(browser, origin);
  await other.bringToFront();
  await page.waitForFunction("document.visibilityState === 'hidden'", PATIENCE);
  // One alone waits for a timer, and those of hidden pages come with the next full second.
  const began = Date.now();
  assert.deepEqual((await server.ask(mail(1, 1))).ends, { Handled: 1 });
  const took = Date.now() - began;
  assert.deepEqual((await server.ask(mail(2, 500))).ends, { Handled: 500 });
  const last = await server.ask({ do: "call", user: "ann", path: "Chat", method: "last", args: 7, millis: 5000 });
  assert.equal(last.ok.seen, 7);
  assert.deepEqual(await page.evaluate("got"), range(1, 501));
  proxy.cut();
  assert.deepEqual((await server.ask(mail(502, 1))).ends, { Handled: 1 });
  await page.bringToFront();
  assert.deepEqual(await page.evaluate("[sessions, errors, document.visibilityState]"), [[], [], "visible"]);
  t.diagnostic(`one push was acknowledged in ${took} ms`);
});

test("a page that was frozen gets what it missed", async (t) => {
  const all = await set(t);
  if (!all) return;
  const { server, proxy, page } = all;
  await page.evaluate((url) => begin(url), proxy.url);
  await server.ask(mail(1, 3));
  const devtools = await page.createCDPSession();
  await devtools.send("Page.setWebLifecycleState", { state: "frozen" });
  const pushed = server.ask(mail(4, 20), 60_000);
  await pause(500);
  await devtools.send("Page.setWebLifecycleState", { state: "active" });
  assert.deepEqual((await pushed).ends, { Handled: 20 });
  assert.deepEqual(await page.evaluate("got"), range(1, 23));
  assert.deepEqual(await page.evaluate("sessions"), []);
  assert.ok((await page.evaluate("states")).some(({ why }) => why === "the page sleeps"));
});

test(`a page that was offline for ${OFFLINE / 1000} s comes back at once`, async (t) => {
  const all = await set(t);
  if (!all) return;
  const { server, proxy, page } = all;
  await page.evaluate((url) => begin(url, { probeTimeout: 500, backoffMax: 60_000, backoffBase: 2000 }), proxy.url);
  const devtools = await page.createCDPSession();
  await devtools.send("Network.enable");
  const network = (offline) =>
    devtools.send("Network.emulateNetworkConditions", { offline, latency: 0, downloadThroughput: -1, uploadThroughput: -1 });
  // What is open does not hear of it: only nothing comes any more.
  proxy.isStalled = proxy.isRefusing = true;
  await network(true);
  const pushed = server.ask(mail(1, 20), 120_000);
  await page.waitForFunction("states.at(-1).name === 'reconnecting'", PATIENCE);
  await pause(OFFLINE);
  proxy.isStalled = proxy.isRefusing = false;
  const back = Date.now();
  await network(false);
  await connected(page, 2);
  const took = Date.now() - back;
  assert.ok(took < 1500, `${took} ms`);
  assert.deepEqual((await pushed).ends, { Handled: 20 });
  assert.deepEqual(await page.evaluate("[got, sessions]"), [range(1, 20), []]);
  t.diagnostic(`back ${took} ms after the network`);
});

/** Waits until this is true of the server's sessions. */
async function sessions(server, isSo, what) {
  await within((async () => {
    while (!isSo((await server.ask({ do: "sessions" })).sessions)) await pause(20);
  })(), what);
}

test("a page that is reloaded goes on with its session, and one that is left ends it", async (t) => {
  const all = await set(t);
  if (!all) return;
  const { server, proxy, page, origin } = all;
  const first = await page.evaluate((url) => begin(url, { storageKey: "k" }, "news.a"), proxy.url);
  await page.evaluate(() => bw.call("Echo", "Echo", 1));
  await server.ask(mail(1, 3));
  await page.goto(`${origin}?again`);
  await page.waitForFunction("window.ready");
  // The browser shows the next page while the one before is still told that it is left, and still takes pushes.
  await sessions(server, ([session]) => !session.isHere, "the page before has gone");
  const pushed = server.ask(mail(4, 3));
  const published = server.ask({ do: "push", to: { topic: "news.a" }, path: "News", method: "say", from: 100, count: 1 });
  assert.equal(await page.evaluate((url) => begin(url, { storageKey: "k" }, "news.a"), proxy.url), first);
  assert.deepEqual([(await pushed).ends, (await published).ends], [{ Handled: 3 }, { Handled: 1 }]);
  assert.deepEqual((await page.evaluate("got")).sort(), [100, 4, 5, 6]);

  await page.evaluate(() => bw.close());
  await page.evaluate((url) => begin(url), proxy.url);
  await page.reload();
  await sessions(server, (sessions) => !sessions.length, "the session of a page that is left ends");
});

test("a page whose session the next one has taken leaves it alone, and has it when it is come back to", async (t) => {
  const all = await set(t);
  if (!all) return;
  const { server, proxy, page, origin } = all;
  const first = await page.evaluate((url) => begin(url, { storageKey: "k" }), proxy.url);
  await server.ask(mail(1, 2));
  await page.evaluate("mark = 1");
  // It is busy, and hears that it is left when the next page has been there for long.
  await page.evaluate(() => void setTimeout(() => { for (const until = Date.now() + 1500; Date.now() < until; ); }));
  await page.goto(`${origin}?next`);
  await page.waitForFunction("window.ready");
  assert.equal(await page.evaluate((url) => begin(url, { storageKey: "k" }), proxy.url), first);
  await pause(2000);
  assert.deepEqual((await server.ask(mail(3, 2))).ends, { Handled: 2 });
  const { sessions: now } = await server.ask({ do: "sessions" });
  assert.deepEqual(now.map(({ session }) => session), [first], "nobody began another session");
  assert.match(await page.evaluate(() => sessionStorage.getItem("k")), new RegExp(`"sid":"${first}".*"off":"4"`));

  await page.goBack();
  await page.waitForFunction("window.ready");
  if (!(await page.evaluate("window.mark"))) return t.skip("skipped: this browser kept no page to come back to");
  assert.deepEqual((await server.ask(mail(5, 2))).ends, { Handled: 2 });
  assert.deepEqual(await page.evaluate("[got, bw.sessionId]"), [[1, 2, 5, 6], first]);
});

test("a page that is left and come back to goes on with its session", async (t) => {
  const all = await set(t);
  if (!all) return;
  const { server, proxy, page, origin } = all;
  await page.evaluate((url) => begin(url), proxy.url);
  await page.evaluate("mark = 1");
  await server.ask(mail(1, 2));
  await page.goto(`${origin}?elsewhere`);
  const pushed = server.ask(mail(3, 2), 60_000);
  await page.goBack();
  if (!(await page.evaluate("window.mark"))) return t.skip("skipped: this browser kept no page to come back to");
  assert.deepEqual((await pushed).ends, { Handled: 2 });
  assert.deepEqual(await page.evaluate("[got, sessions]"), [[1, 2, 3, 4], []]);
});

test("the demo page shows pushes as text, whatever they are", async (t) => {
  const all = await set(t);
  if (!all) return;
  const { server, proxy, page, origin } = all;
  await page.setViewport({ width: 360, height: 640 });
  await page.goto(`${origin}demo?token=ann&server=${encodeURIComponent(proxy.url)}`);
  await page.evaluate("window.violations = []; addEventListener('securitypolicyviolation', (event) => violations.push(event.blockedURI))");
  const named = (state) => page.waitForFunction((state) => document.getElementById("state").textContent === state, PATIENCE, state);
  await named("connected");
  const hostile = '<img src="x" onerror="window.hit = 1"><script>window.hit = 1</script>';
  const { ends } = await server.ask(mail(1, 1, { path: hostile, method: hostile, value: hostile }));
  assert.deepEqual(ends, { Handled: 1 });
  assert.equal(await page.$eval("#pushes li b", (title) => title.textContent), `${hostile}.${hostile}`);
  await page.click("#call button");
  await page.waitForFunction(() => document.getElementById("reply").textContent === '{"C":42}', PATIENCE);
  await page.$eval("#topic", (topic) => (topic.value = "room.1"));
  await page.click("#subscribe button");
  await page.waitForFunction("/1 in room.1: ann|subscribed/.test(document.getElementById('subscribed').textContent)", PATIENCE);
  assert.deepEqual(await page.evaluate(`["hit" in window, violations, document.images.length]`), [false, [], 0]);
  const isWide = await page.evaluate("document.documentElement.scrollWidth > innerWidth");
  assert.equal(isWide, false, "it fits a phone");
  if (process.env.BOTHWAYS_SCREENSHOT) await page.screenshot({ path: process.env.BOTHWAYS_SCREENSHOT });
});

test("a page at a real Go server", async (t) => {
  if (!chromium()) return missing(t, "chromium");
  const path = goServer();
  if (!path) return missing(t, "go");
  const server = start(t, path, ["-addr", "ws@127.0.0.1:0"]);
  const [address] = await server.addresses();
  const page = await open(await launch(t), await pages(t));
  await page.evaluate((url) => begin(url), address);
  assert.deepEqual(await page.evaluate(() => bw.call("Arith", "Mul", { A: 6, B: 7 })), { C: 42 });
  assert.equal(await page.evaluate(() => bw.call("Arith", "Err", { A: 6, B: 7 }).catch((error) => error.message)), "boom");
  const pushed = page.evaluate(() => new Promise((done) => bw.onPush("*", "*", (_, message) => done([message.path, message.method]))));
  await page.evaluate(() => bw.call("Push", "Then", { A: 6, B: 7 }));
  assert.deepEqual(await pushed, ["test_service_path", "test_service_method"]);
});
