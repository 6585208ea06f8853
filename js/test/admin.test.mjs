// The admin page in a real browser, at a real server: `bothways serve --admin`.
//
// Every page fails its test if the browser reports one violation of the page's policy, or if markup from a client's text
// becomes an element. Screenshots are kept where `BOTHWAYS_SCREENSHOTS` says, and nowhere else.
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { after, before, test } from "node:test";
import { Bothways } from "../dist/node.js";
import { adminClient } from "../admin.mjs";
import { chromium } from "./browser.mjs";
import { Inbox, LONG, bothwaysProgram, missing, root, within } from "./helpers.mjs";

const TOKENS = { BW_KICK: "kick-0123456789abcdef0123456789abcdef", BW_PUSH: "push-0123456789abcdef0123456789abcdef", BW_LOOK: "look-0123456789abcdef0123456789abcdef" };
const SHOTS = process.env.BOTHWAYS_SCREENSHOTS;

/** What a hostile client calls itself; a topic has neither dots nor `>` for itself. */
const XSS = `<img src=x onerror="document.title='owned'"><script>document.title='owned'</script>`;
const XSS_TOPIC = `<svg onload=alert(1) "' `;

let browser;

before(async () => {
  if (!chromium()) return;
  const { default: puppeteer } = await import("puppeteer-core");
  browser = await puppeteer.launch({ executablePath: chromium(), args: ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"], timeout: LONG });
});

after(() => browser?.close());

/** A server of the program, with operators of all roles. */
async function serve(t, more = []) {
  const child = spawn(bothwaysProgram(), [
    "serve", "tcp@127.0.0.1:0", "--admin", "tcp@127.0.0.1:0", "--admin-token-env", "BW_KICK",
    "--operator", "pat=push:BW_PUSH", "--operator", "wall=look:BW_LOOK", "--grace", "1s", ...more,
  ], { env: { ...process.env, ...TOKENS }, stdio: ["ignore", "pipe", "inherit"] });
  const lines = new Inbox();
  createInterface({ input: child.stdout }).on("line", lines.put);
  const ended = new Promise((resolve) => child.on("exit", resolve));
  t.after(async () => {
    child.kill();
    await within(ended, "the server ends");
  });
  const service = (await lines.find((line) => line.startsWith("listening on "), "it listens")).slice("listening on ".length);
  const page = (await lines.find((line) => line.includes("/_bothways/admin/"), "it serves the page")).match(/http:\S+/)[0];
  return { child, ended, service, page };
}

/** A directory that is gone with the test. */
function directory(t) {
  const path = mkdtempSync(join(tmpdir(), "bothways-"));
  t.after(() => rmSync(path, { recursive: true, force: true }));
  return path;
}

/** A broker for the nodes of a cluster, if there is one. */
const natsServer = () =>
  [process.env.BOTHWAYS_NATS_SERVER, `${root}target/nats/nats-server`].find((path) => path && existsSync(path));

async function broker(t) {
  const free = createServer().listen(0, "127.0.0.1");
  await new Promise((resolve) => free.once("listening", resolve));
  const { port } = free.address();
  await new Promise((resolve) => free.close(resolve));
  const child = spawn(natsServer(), ["-a", "127.0.0.1", "-p", String(port), "-js", "-sd", directory(t)], { stdio: ["ignore", "ignore", "pipe"] });
  const lines = new Inbox();
  createInterface({ input: child.stderr }).on("line", lines.put);
  const ended = new Promise((resolve) => child.on("exit", resolve));
  t.after(async () => {
    child.kill();
    await within(ended, "the broker ends");
  });
  await lines.find((line) => line.includes("Server is ready"), "the broker is ready");
  return `nats://127.0.0.1:${port}`;
}

/** A client of the service, logged in as this user. */
async function client(t, server, user, topics = [], options = {}) {
  const bothways = new Bothways(server.service, { onError: () => {}, ...options });
  t.after(() => bothways.close());
  const got = new Inbox();
  bothways.onPush("*", "*", (value, message) => got.put({ value, message }));
  await bothways.connect();
  await bothways.call("Demo", "Login", { User: user, Topics: topics });
  return { bothways, got };
}

/** A page of the browser that reports what its policy forbids. */
async function open(t, server, size = { width: 1280, height: 860 }) {
  const context = await browser.createBrowserContext();
  const page = await context.newPage();
  page.setDefaultTimeout(LONG);
  const faults = [];
  await page.setViewport(size);
  page.on("pageerror", (error) => faults.push(`error: ${error.message}`));
  page.on("console", (message) => /Content Security Policy|TrustedHTML/.test(message.text()) && faults.push(message.text()));
  await page.exposeFunction("violated", (text) => faults.push(text));
  await page.evaluateOnNewDocument(() =>
    document.addEventListener("securitypolicyviolation", (event) => window.violated(`${event.violatedDirective}: ${event.blockedURI}`)));
  await page.goto(server.page);
  t.after(async () => {
    const left = await page.evaluate(() => ({
      title: document.title,
      scripts: document.querySelectorAll("#app script, #app img, #app iframe, #app [onerror], #app [onload], #app [style*=url]").length,
    }));
    await context.close();
    assert.deepEqual(faults, []);
    assert.equal(left.scripts, 0, "no markup of a client became an element");
    assert.ok(!left.title.includes("owned"), left.title);
  });
  return page;
}

async function signIn(page, token) {
  await page.waitForSelector("#token");
  await page.type("#token", token);
  await page.keyboard.press("Enter");
}

const enter = async (page, token = TOKENS.BW_KICK) => {
  await signIn(page, token);
  await page.waitForSelector("header.bar", { timeout: LONG });
};

const go = (page, hash) => page.evaluate((hash) => void (location.hash = hash), hash);

/** Waits until the page shows this text. */
const sees = (page, text, where = "body") =>
  page.waitForFunction((text, where) => document.querySelector(where)?.innerText.includes(text), { timeout: LONG }, text, where);

const shot = async (page, name) => {
  if (!SHOTS) return;
  mkdirSync(SHOTS, { recursive: true });
  await page.screenshot({ path: `${SHOTS}/${name}.png`, fullPage: true });
};

const LIMIT = { timeout: 240_000 };

/** A test that needs the browser and the program. */
const real = (run) => async (t) => {
  if (!browser) return missing(t, "chromium");
  if (!bothwaysProgram()) return missing(t, "bothways (cargo build -p bothways-cli)");
  await run(t, await serve(t));
};

test("the page has the client that js/ builds", async () => {
  assert.equal(readFileSync(`${root}crates/http/admin/client.js`, "utf8"), await adminClient(), "run `npm run admin`");
});

test("a wrong token is refused, and the right one is let in", LIMIT, real(async (t, server) => {
  const page = await open(t, server);
  await signIn(page, "wrong-0123456789abcdef0123456789abc");
  await sees(page, "the admin token is missing or wrong", "[role=alert]");
  assert.equal(await page.$("header.bar"), null);
  await shot(page, "refused");
  await page.reload();
  await enter(page);
  await sees(page, "operator", ".who");
  assert.equal(await page.evaluate(() => sessionStorage.length + localStorage.length + document.cookie.length), 0, "the token is kept nowhere");
}));

test("sessions are listed, found by their users, and told", LIMIT, real(async (t, server) => {
  for (const user of ["ann", "anton", "bob"]) await client(t, server, user, ["news.sport"]);
  const page = await open(t, server);
  await enter(page);
  await go(page, "#/sessions");
  await sees(page, "anton", "table");
  assert.equal(await page.$$eval("tbody tr", (rows) => rows.length), 3);
  await page.type("#search", "an");
  await page.waitForFunction(() => document.querySelectorAll("tbody tr").length === 2, { timeout: LONG });
  await shot(page, "sessions");
  await page.click("tbody a");
  await sees(page, "Belongs to ann", ".story");
  await sees(page, "Subscribed to news.sport", ".story");
  await shot(page, "session");
  await go(page, "#/topics");
  await sees(page, "news.sport", "table");
}));

test("a push from the page arrives, and its receipt is shown as it comes", LIMIT, real(async (t, server) => {
  const ann = await client(t, server, "ann");
  const page = await open(t, server);
  await enter(page);
  await go(page, "#/push/user/ann");
  await page.waitForSelector("#payload");
  await page.$eval("#payload", (area) => (area.value = '{"text": "hello, ann"}'));
  await page.click("form.form button.primary");
  const { value, message } = await ann.got.find(() => true, "the push arrives");
  assert.deepEqual([message.path, message.method, value.text], ["Chat", "say", "hello, ann"]);
  await sees(page, "1 session: 1 handled.", ".receipts");
  await shot(page, "push");
  await go(page, "#/audit");
  await sees(page, "user ann", "table");
}));

test("a session that is sent away is over, and its client knows why", LIMIT, real(async (t, server) => {
  const ann = await client(t, server, "ann");
  const closed = new Inbox();
  ann.bothways.on("state", closed.put);
  const page = await open(t, server);
  await enter(page);
  await go(page, "#/sessions");
  await sees(page, "ann", "table");
  await page.click("tbody a");
  await page.waitForSelector("button.danger");
  await page.click("button.danger");
  await page.waitForSelector("dialog[open]");
  await page.$eval("dialog input[name=why]", (input) => (input.value = "lunch"));
  await shot(page, "kick");
  await page.click("dialog button.danger");
  await sees(page, "1 session ended", "#toasts");
  const state = await closed.find((state) => state.name === "closed", "the client is told");
  assert.match(state.why.message, /lunch/);
  await sees(page, "Ended: lunch", ".story");
}));

test("what a role does not allow is not there, and refused if it is asked", LIMIT, real(async (t, server) => {
  await client(t, server, "ann");
  const page = await open(t, server);
  await enter(page, TOKENS.BW_LOOK);
  await sees(page, "wall", ".who");
  await go(page, "#/push");
  await sees(page, "it may not push");
  await go(page, "#/sessions");
  await sees(page, "ann", "table");
  await page.click("tbody a");
  await sees(page, "Its story");
  assert.equal(await page.$("button.danger"), null);

  const asked = await page.evaluate(async (token) => {
    const { Bothways } = await import("./client.js");
    const client = new Bothways("/_rpcx_", { token });
    await client.connect();
    const push = { target: "Everyone", service_path: "A", service_method: "b", metadata: [], payload: "" };
    const [pushed, kicked] = await Promise.all([
      client.call("_bothways.Admin", "BeginPush", push).then(() => "done"),
      client.call("_bothways.Admin", "Kick", { target: "Everyone", why: "x" }).then(() => "done", (error) => error.message),
    ]);
    client.close();
    return [pushed, kicked];
  }, TOKENS.BW_PUSH);
  assert.equal(asked[0], "done");
  assert.match(asked[1], /your token's role is push: Kick needs kick/);
  await go(page, "#/audit");
  await sees(page, "Kick needs the role kick", "table");
}));

test("charts move under load", LIMIT, real(async (t, server) => {
  const ann = await client(t, server, "ann");
  const page = await open(t, server);
  await enter(page);
  await page.waitForSelector(".chart");
  let isOver = false;
  const load = (async () => {
    while (!isOver) await Promise.all(Array.from({ length: 50 }, () => ann.bothways.call("Arith", "Mul", { A: 6, B: 7 })));
  })();
  const inbound = () => {
    const chart = [...document.querySelectorAll(".chart")].find((chart) => chart.getAttribute("aria-label") === "Messages");
    return parseFloat(chart?.querySelector(".legend b")?.textContent.replace(",", "")) > 20;
  };
  await page.waitForFunction(inbound, { timeout: LONG });
  // A few seconds of points, each a second apart, so that the line has a shape.
  await page.waitForFunction(() => (document.querySelector(".chart .line")?.getAttribute("d").match(/L/g) ?? []).length >= 4, { timeout: LONG });
  await shot(page, "overview");
  isOver = true;
  await load;
  const words = await page.$eval(".chart .sr", (summary) => summary.textContent);
  assert.match(words, /Sessions: \d+, at most \d+/, "a chart can be read without eyes");
}));

test("names, topics and reasons of hostile clients are texts", LIMIT, real(async (t, server) => {
  await client(t, server, XSS, [XSS_TOPIC, "javascript:alert(1)"]);
  const page = await open(t, server, { width: 360, height: 740 });
  await enter(page);
  await go(page, "#/sessions");
  await sees(page, "<img src=x", "table");
  await page.click("tbody a");
  await sees(page, "Belongs to <img src=x", ".story");
  await go(page, "#/topics");
  await sees(page, "<svg onload", "table");
  await go(page, `#/topic/${encodeURIComponent(XSS_TOPIC)}`);
  await sees(page, "<img src=x");
  await go(page, `#/push/user/${encodeURIComponent(XSS)}`);
  await page.waitForSelector("#payload");
  await page.$eval("#method", (input, xss) => (input.value = `${xss.replaceAll(".", "")}.say`), XSS);
  await page.$eval("#payload", (area, xss) => (area.value = JSON.stringify(xss)), XSS);
  await page.click("form.form button.primary");
  await sees(page, "1 handled.", ".receipts");
  await go(page, "#/audit");
  await sees(page, "user <img src=x", "table");
  await go(page, "#/overview");
  await page.waitForSelector(".chart");
}));

test("nodes are shown, and an operator at one acts at all", LIMIT, async (t) => {
  if (!browser) return missing(t, "chromium");
  if (!bothwaysProgram()) return missing(t, "bothways (cargo build -p bothways-cli)");
  if (!natsServer()) return missing(t, "nats-server (BOTHWAYS_NATS_SERVER)");
  const cluster = ["--cluster", await broker(t), "--cluster-name", XSS.replace(/[^a-z]/g, "").slice(0, 12)];
  const here = await serve(t, cluster);
  const there = await serve(t, cluster);
  const doomed = await serve(t, cluster);
  await client(t, here, "ann");
  const far = await client(t, there, "ann");
  const hostile = await client(t, there, XSS);
  const closed = new Inbox();
  for (const one of [far, hostile]) one.bothways.on("state", closed.put);

  const page = await open(t, here);
  await enter(page);
  await go(page, "#/nodes");
  await page.waitForFunction(() => document.querySelectorAll("tbody tr").length === 3, { timeout: LONG });
  await sees(page, "this one", "table");
  await page.waitForFunction(() => /3 nodes, 3 sessions/.test(document.querySelector("[role=status].muted")?.innerText), { timeout: LONG });
  await shot(page, "nodes");

  // Sessions of all nodes, each with its node; the story of one that is elsewhere.
  await go(page, "#/sessions");
  await sees(page, "<img src=x", "table");
  const places = await page.$$eval("tbody td[data-name=Node]", (cells) => cells.map((cell) => cell.innerText.trim()));
  assert.deepEqual([places.length, new Set(places).size], [3, 2], "three sessions at two nodes");
  await shot(page, "sessions-of-nodes");
  const elsewhere = await page.$$eval("tbody tr", (rows) => rows.find((row) => row.innerText.includes("<img")).querySelector("th a").hash);
  await go(page, elsewhere);
  await sees(page, "Belongs to <img src=x", ".story");
  await shot(page, "session-elsewhere");

  // A push to a user of two nodes, and where it is known to be.
  await go(page, "#/push/user/ann");
  await page.waitForSelector("#payload");
  await page.click("form.form button.primary");
  await far.got.find(() => true, "the push arrives at the other node");
  await sees(page, "2 sessions: 2 handled.", ".receipts");

  // All sessions of a user are sent away, at both nodes.
  await go(page, "#/sessions");
  await page.waitForFunction(() => document.querySelectorAll("tbody tr").length === 3, { timeout: LONG });
  await page.evaluate(() => [...document.querySelectorAll("tbody th a")].find((link) => link.innerText === "ann").click());
  await page.waitForSelector("button.danger");
  await page.click("button.danger");
  await page.waitForSelector("dialog[open] input[value=user]");
  await page.click("dialog input[value=user]");
  await shot(page, "kick-user");
  await page.click("dialog button.danger");
  await page.waitForFunction(() => /2 sessions ended \(1 on [0-9a-f]{8}, 1 on [0-9a-f]{8}\)\./.test(document.querySelector("#toasts")?.innerText), { timeout: LONG });
  await closed.find((state) => state.name === "closed", "the client of the other node is told");

  // A node that answers nothing is named, wherever its answer is missing.
  doomed.child.kill("SIGSTOP");
  try {
    await go(page, "#/sessions");
    await sees(page, "1 node has not answered.");
    await shot(page, "sessions-silent");
    await go(page, "#/push/everyone");
    await page.waitForSelector("#payload");
    await page.click("form.form button.primary");
    await page.waitForSelector("dialog[open]");
    await page.click("dialog button.primary");
    await sees(page, "Not answered: ", ".receipts li:first-child");
    await shot(page, "push-unreached");
    await go(page, "#/nodes");
    await page.waitForFunction(() => /silent for|gone/.test(document.querySelector("table")?.innerText), { timeout: LONG });
    await shot(page, "nodes-silent");
  } finally {
    doomed.child.kill("SIGCONT");
  }
  for (const scheme of ["light", "dark"]) {
    const small = await open(t, here, { width: 360, height: 740 });
    await small.emulateMediaFeatures([{ name: "prefers-color-scheme", value: scheme }]);
    await enter(small);
    for (const name of ["nodes", "sessions"]) {
      await go(small, `#/${name}`);
      await small.waitForSelector("tbody tr");
      const over = await small.evaluate(() => document.documentElement.scrollWidth - innerWidth);
      assert.ok(over <= 0, `${name} is ${over} pixels too wide`);
      await shot(small, `360-${scheme}-${name}-cluster`);
    }
  }
});

test("mailboxes, dead letters, and what an operator does with them", LIMIT, async (t) => {
  if (!browser) return missing(t, "chromium");
  if (!bothwaysProgram()) return missing(t, "bothways (cargo build -p bothways-cli)");
  const server = await serve(t, ["--store", join(directory(t), "mail.redb")]);
  const page = await open(t, server);
  await enter(page);

  // To somebody who is not there, with what a hostile client would be called.
  const post = async (user, method) => {
    await go(page, `#/push/user/${encodeURIComponent(user)}`);
    await page.waitForSelector("#kept");
    await page.$eval("#method", (input, method) => (input.value = method), method);
    await page.click("#kept");
    await page.click("form.form button.primary");
    await sees(page, "kept in the mailbox.", ".receipts li:first-child");
    await go(page, "#/audit");
  };
  await post("ann", "Mail.first");
  await post("ann", `Mail.<b>`);
  await post(XSS, "Mail.first");
  await go(page, "#/mail");
  await sees(page, "<img src=x", "table");
  assert.equal(await page.$$eval("tbody tr", (rows) => rows.length), 2);
  await shot(page, "mail");
  await go(page, `#/mailbox/${encodeURIComponent(XSS)}`);
  await sees(page, "1 letter on this page");
  await go(page, "#/mailbox/ann");
  await sees(page, "Mail.<b>", "table");
  await sees(page, "none has read it yet");
  await shot(page, "mailbox");

  // Deleted by keyboard: the focus is on the button, and the dialog's answer is Enter.
  await page.evaluate(() => [...document.querySelectorAll("tbody tr")].find((row) => row.innerText.includes("<b>")).querySelector("button").focus());
  await page.keyboard.press("Enter");
  await page.waitForSelector("dialog[open]");
  await shot(page, "mail-delete");
  await page.click("dialog button.danger");
  await sees(page, "Deleted.", "#toasts");
  await page.waitForFunction(() => document.querySelectorAll("tbody tr").length === 1, { timeout: LONG });

  // A device that cannot handle it: after its tries it is a dead letter, with the reason.
  const seen = new Inbox();
  let fails = true;
  const bothways = new Bothways(server.service, { device: "<i>laptop</i>", onError: () => {} });
  t.after(() => bothways.close());
  bothways.onPush("*", "*", (value, message) => {
    seen.put(message);
    if (fails) throw new Error("the disk is full");
  });
  await bothways.connect();
  await bothways.call("Demo", "Login", { User: "ann" });
  await seen.count(5, "it is tried five times");
  await go(page, "#/dead/ann");
  await sees(page, "its handler failed", "table");
  await sees(page, "<i>laptop</i>", "table");
  await shot(page, "dead");
  await page.setViewport({ width: 360, height: 740 });
  const over = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
  assert.ok(over <= 0, `dead letters are ${over} pixels too wide`);
  await shot(page, "360-dead");
  await page.setViewport({ width: 1280, height: 860 });
  await go(page, "#/mail/dead");
  await sees(page, "ann", "table");

  fails = false;
  await go(page, "#/dead/ann");
  await page.waitForSelector("tbody button");
  await page.click("tbody button");
  await sees(page, "It is in the mailbox again.", "#toasts");
  await seen.count(6, "it is sent again, and handled");
  await go(page, "#/audit");
  await sees(page, "send again", "table");
  await sees(page, "delete a letter", "table");
  await shot(page, "mail-audit");

  // Whoever may only look sees the same, and can do nothing.
  await post("bob", "Mail.last");
  const wall = await open(t, server, { width: 360, height: 740 });
  await enter(wall, TOKENS.BW_LOOK);
  await go(wall, "#/mailbox/bob");
  await sees(wall, "Mail.last", "table");
  assert.equal(await wall.$("tbody button"), null);
  for (const scheme of ["light", "dark"]) {
    await wall.emulateMediaFeatures([{ name: "prefers-color-scheme", value: scheme }]);
    for (const name of ["mail", "mailbox/bob", "dead/ann"]) {
      await go(wall, `#/${name}`);
      await wall.waitForFunction(() => !document.body.innerText.includes("Loading"), { timeout: LONG });
      const over = await wall.evaluate(() => document.documentElement.scrollWidth - innerWidth);
      assert.ok(over <= 0, `${name} is ${over} pixels too wide`);
      await shot(wall, `360-${scheme}-${name.replace("/", "-")}`);
    }
  }
});

test("without a cluster and a store there are neither nodes nor mail", LIMIT, real(async (t, server) => {
  const page = await open(t, server);
  await enter(page);
  const views = await page.$$eval("nav a", (links) => links.map((link) => link.innerText));
  assert.deepEqual(views, ["Overview", "Sessions", "Topics", "Push", "Audit"]);
  await go(page, "#/nodes");
  await page.waitForSelector(".tiles");
}));

test("in 360 pixels nothing runs over the edge", LIMIT, real(async (t, server) => {
  await client(t, server, "a-user-of-a-long-name-without-any-blank-" + "x".repeat(150), ["topic." + "y".repeat(150)]);
  for (const scheme of ["light", "dark"]) {
    const page = await open(t, server, { width: 360, height: 740 });
    await page.emulateMediaFeatures([{ name: "prefers-color-scheme", value: scheme }]);
    const fits = async (name) => {
      const over = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
      assert.ok(over <= 0, `${name} is ${over} pixels too wide`);
      await shot(page, `360-${scheme}-${name}`);
    };
    await fits("sign-in");
    await enter(page);
    for (const [name, selector] of [["overview", ".chart .line"], ["sessions", "tbody tr"], ["topics", "tbody tr"], ["push", "#payload"], ["audit", "[role=status]"]]) {
      await go(page, `#/${name}`);
      await page.waitForSelector(selector);
      await fits(name);
    }
    await go(page, "#/sessions");
    await page.waitForSelector("tbody a");
    await page.click("tbody a");
    await page.waitForSelector(".story li");
    await fits("session");
    await page.click("button.danger");
    await page.waitForSelector("dialog[open]");
    await fits("dialog");
  }
}));

test("with the keyboard alone a session is found and sent away", LIMIT, real(async (t, server) => {
  await client(t, server, "ann");
  await client(t, server, "bob");
  const page = await open(t, server);
  await enter(page);
  const here = () => page.evaluate(() => {
    const element = document.activeElement;
    return element.textContent || element.id || element.name || element.tagName;
  });
  const tabTo = async (test, what) => {
    for (let at = 0; at < 40; at += 1) {
      await page.keyboard.press("Tab");
      if (test(await here())) return;
    }
    assert.fail(`no Tab leads to ${what}`);
  };
  await tabTo((name) => name === "Sessions", "the sessions");
  await page.keyboard.press("Enter");
  await sees(page, "bob", "table");
  await tabTo((name) => name === "search", "the search");
  await page.keyboard.type("bo");
  await page.waitForFunction(() => document.querySelectorAll("tbody tr").length === 1, { timeout: LONG });
  await tabTo((name) => name === "bob", "bob");
  await page.keyboard.press("Enter");
  await sees(page, "Belongs to bob", ".story");
  await tabTo((name) => name.startsWith("Send away"), "sending away");
  await page.keyboard.press("Enter");
  await page.waitForSelector("dialog[open]");
  assert.equal(await here(), "why");
  // Escape leaves without doing it, and the second time Enter does it.
  await page.keyboard.press("Escape");
  await page.waitForFunction(() => !document.querySelector("dialog"));
  assert.match(await here(), /^Send away/, "the focus is back where it was");
  await page.keyboard.press("Enter");
  await page.waitForSelector("dialog[open]");
  await page.keyboard.press("Enter");
  await sees(page, "1 session ended", "#toasts");
}));

test("the server is drained from the page", LIMIT, real(async (t, server) => {
  const ann = await client(t, server, "ann");
  const states = new Inbox();
  ann.bothways.on("state", states.put);
  const page = await open(t, server);
  await enter(page);
  await sees(page, "Stop this server");
  await page.click(".view > .row button.danger");
  await page.waitForSelector("dialog[open]");
  await page.$eval("dialog input[name=seconds]", (input) => (input.value = "2"));
  await page.click("dialog button.danger");
  await states.find((state) => state.name !== "connected", "the client is sent away");
  await within(server.ended, "the program ends when its server has");
}));
