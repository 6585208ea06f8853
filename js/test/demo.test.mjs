// `bothways demo --web` in a real Chromium: the page of the program, with the client that the program has built in.
import assert from "node:assert/strict";
import { once } from "node:events";
import { readFileSync } from "node:fs";
import { createServer } from "node:http";
import { test } from "node:test";
import { chromium, launch } from "./browser.mjs";
import { Inbox, LONG, bothwaysProgram, missing, root, start } from "./helpers.mjs";

test("the program has the client of this folder built in", () => {
  const built = readFileSync(`${root}js/dist/index.js`, "utf8").replace(/^\/\/# sourceMappingURL.*\n?/m, "");
  const embedded = readFileSync(`${root}crates/cli/web/bothways.js`, "utf8");
  const how = "sed '/^\\/\\/# sourceMappingURL/d' js/dist/index.js > crates/cli/web/bothways.js";
  assert.ok(built === embedded, `crates/cli/web/bothways.js is not the client that is built here: ${how}`);
});

test("the page shows pushes, calls both ways, and a cut that loses nothing", { timeout: 240_000 }, async (t) => {
  if (!chromium()) return missing(t, "chromium");
  const path = bothwaysProgram();
  if (!path) return missing(t, "bothways");
  const program = start(t, path, ["demo", "--web=0"]);
  const line = await program.lines.find((line) => line.includes("http://"), "the demo listens");
  const page = await (await launch(t)).newPage();
  page.setDefaultTimeout(60_000);
  const errors = [];
  page.on("pageerror", (error) => errors.push(error.message));
  await page.evaluateOnNewDocument(() => {
    window.violations = [];
    addEventListener("securitypolicyviolation", (event) => violations.push(event.violatedDirective));
  });
  await page.goto(line.match(/http:\S+/)[0]);
  const until = (what) => page.waitForFunction(what, { timeout: LONG });
  const textOf = (id) => page.$eval(`#${id}`, (element) => element.textContent);

  await until("window.demo && demo.counts.received >= 2");
  await page.click("#multiply button");
  await until("document.getElementById('product').textContent === '42'");
  await page.click("#ask");
  await until("!document.getElementById('question').hidden");
  await page.click("#yes");
  await until("document.getElementById('said').textContent.includes('yes')");

  const before = await page.evaluate("demo.counts.received");
  await page.click("#cut");
  await until("demo.counts.resumed === 1");
  await until(`demo.counts.received >= ${before + 7}`);
  const counts = await page.evaluate("demo.counts");
  assert.deepEqual([counts.missing, counts.twice, counts.resumed], [0, 0, 1]);
  await until("document.querySelectorAll('#receipts li').length >= 2");
  assert.match(await textOf("receipts"), /handled by 1 of 1 tab/);
  assert.deepEqual([await page.evaluate("violations"), errors], [[], []]);

  await page.setViewport({ width: 360, height: 800 });
  assert.equal(await page.evaluate("document.documentElement.scrollWidth <= 360"), true, "it fits a telephone");
});

test("the page of the README shows pushes", { timeout: 120_000 }, async (t) => {
  if (!chromium()) return missing(t, "chromium");
  const path = bothwaysProgram();
  if (!path) return missing(t, "bothways");
  const readme = readFileSync(`${root}js/README.md`, "utf8");
  const [page, address] = [/```html\n([^]*?)```/, /ws@[\d.:]+/].map((what) => what.exec(readme).at(-1));
  assert.ok(readme.includes(`serve ${address} --origin`), "the server is where the page looks for it");

  const files = createServer(({ url }, response) => {
    const isPage = url === "/";
    response.setHeader("Content-Type", isPage ? "text/html" : "text/javascript");
    response.end(isPage ? page.replace(address, place) : readFileSync(`${root}js/dist/index.js`));
  });
  files.listen(0, "127.0.0.1");
  await once(files, "listening");
  t.after(() => files.close());
  const origin = `http://127.0.0.1:${files.address().port}`;
  const program = start(t, path, ["serve", "ws@127.0.0.1:0", "--origin", origin, "--push-every", "100ms"]);
  const line = await program.lines.find((line) => line.startsWith("listening on "), "it listens");
  const place = line.slice("listening on ".length);

  const shown = await (await launch(t)).newPage();
  const said = new Inbox();
  shown.on("console", (message) => said.put(message.text()));
  await shown.goto(origin);
  await shown.waitForFunction("document.title === 'connected' && document.querySelectorAll('#pushes li').length > 2", { timeout: LONG });
  assert.equal(await shown.$eval("#pushes li", (item) => item.textContent), "test_service_path.test_service_method: abcde");
  await said.find((text) => text === "42", "the answer");

  // From elsewhere it is refused, and says so.
  const elsewhere = await shown.browser().newPage();
  await elsewhere.goto(origin.replace("127.0.0.1", "localhost"));
  await elsewhere.waitForFunction("document.title === 'closed'", { timeout: LONG });
});
