// `bothways demo --web` in a real Chromium: the page of the program, with the client that the program has built in.
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import puppeteer from "puppeteer-core";
import { LONG, bothwaysProgram, missing, root, start } from "./helpers.mjs";

test("the program has the client of this folder built in", () => {
  const built = readFileSync(`${root}js/dist/index.js`, "utf8").replace(/^\/\/# sourceMappingURL.*\n?/m, "");
  const embedded = readFileSync(`${root}crates/cli/web/bothways.js`, "utf8");
  const how = "sed '/^\\/\\/# sourceMappingURL/d' js/dist/index.js > crates/cli/web/bothways.js";
  assert.ok(built === embedded, `crates/cli/web/bothways.js is not the client that is built here: ${how}`);
});

test("the page shows pushes, calls both ways, and a cut that loses nothing", { timeout: 240_000 }, async (t) => {
  const executablePath = spawnSync("sh", ["-c", "command -v chromium"], { encoding: "utf8" }).stdout.trim();
  const path = bothwaysProgram();
  if (!executablePath) return missing(t, "chromium");
  if (!path) return missing(t, "bothways");
  const program = start(t, path, ["demo", "--web=0"]);
  const line = await program.lines.find((line) => line.includes("http://"), "the demo listens");
  const browser = await puppeteer.launch({ executablePath, args: ["--no-sandbox", "--disable-gpu"], timeout: 60_000 });
  t.after(() => browser.close());

  const page = await browser.newPage();
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
