// The package as applications see it: its types, both kinds of modules, and sockets of other kinds.
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { bothwaysProgram, missing, root, rustServer, start } from "./helpers.mjs";

const require = createRequire(import.meta.url);

function folder(t) {
  const path = mkdtempSync(join(tmpdir(), "bothways-js-"));
  t.after(() => rmSync(path, { recursive: true }));
  return path;
}

test("the types are those of the documentation, for both kinds of modules", () => {
  const flags = ["--noEmit", "--strict", "--target", "ES2022", "--module", "NodeNext", "--moduleResolution", "NodeNext"];
  const more = ["--lib", "ES2022,DOM,DOM.Iterable", "--types", "node"];
  const tsc = require.resolve("typescript/bin/tsc");
  const made = spawnSync(process.execPath, [tsc, ...flags, ...more, "test/consumer.mts", "test/consumer.cts"], { cwd: `${root}js`, encoding: "utf8" });
  assert.equal(made.stdout, "");
  assert.equal(made.status, 0);
});

test("every entry is there as a module of both kinds, and alike", async () => {
  for (const entry of ["bothways", "bothways/json", "bothways/node"]) {
    const [esm, cjs] = [await import(entry), require(entry)];
    assert.deepEqual(Object.keys(esm).sort(), Object.keys(cjs).filter((name) => name !== "__esModule").sort());
    assert.equal(typeof new cjs.Bothways("ws@127.0.0.1:1").connect, "function");
  }
});

/** Runs a program, which must succeed, and returns what it says. */
function run(cwd, command, ...args) {
  const { status, stdout, stderr } = spawnSync(command, args, { cwd, encoding: "utf8" });
  assert.equal(status, 0, `${command} ${args.join(" ")}: ${stdout}${stderr}`);
  return stdout;
}

test("the package, installed where there is nothing else", (t) => {
  const [project, js] = [folder(t), `${root}js`];
  const [{ filename, files }] = JSON.parse(run(js, "npm", "pack", "--ignore-scripts", "--json", "--pack-destination", project));
  const names = files.map(({ path }) => path);
  assert.deepEqual(names.filter((name) => !/^dist\/[\w-]+\.(js|cjs|d\.ts|d\.cts|js\.map|cjs\.map)$/.test(name)).sort(), ["README.md", "package.json"]);
  writeFileSync(join(project, "package.json"), JSON.stringify({ name: "application", private: true }));
  run(project, "npm", "install", "--offline", "--no-audit", "--no-fund", "--ignore-scripts", join(project, filename));

  const shown = (entry) => `console.log(typeof Bothways, "call" in Bothways.prototype, "${entry}");`;
  for (const entry of ["bothways", "bothways/json", "bothways/node"]) {
    writeFileSync(join(project, "a.mjs"), `import { Bothways } from "${entry}"; ${shown(entry)}`);
    writeFileSync(join(project, "a.cjs"), `const { Bothways } = require("${entry}"); ${shown(entry)}`);
    for (const file of ["a.mjs", "a.cjs"]) assert.equal(run(project, process.execPath, file), `function true ${entry}\n`);
  }

  // A page has no types of Node; an application of Node has.
  writeFileSync(join(project, "page.mts"), 'import { Bothways, type Message } from "bothways"; const bw: Bothways = new Bothways("/_rpcx_"); bw.onPush("A", "b", (value: number, message: Message) => value + message.text()); const n: Promise<number> = bw.call<number>("A", "b"); void n;');
  const flags = ["--noEmit", "--strict", "--target", "ES2022", "--lib", "ES2022,DOM,DOM.Iterable"];
  const tsc = (...more) => run(project, process.execPath, require.resolve("typescript/bin/tsc"), ...flags, ...more);
  tsc("--module", "ESNext", "--moduleResolution", "Bundler", "page.mts");
  tsc("--module", "NodeNext", "--moduleResolution", "NodeNext", "page.mts");
});

test("the lock file names no registry", () => {
  assert.doesNotMatch(readFileSync(`${root}js/package-lock.json`, "utf8"), /"resolved"|registry/);
});

test("a unix socket", async (t) => {
  if (!rustServer()) return missing(t, "web-server");
  const { Bothways } = await import("bothways/node");
  const server = start(t, rustServer(), ["--addr", `unix@${join(folder(t), "socket")}`]);
  const [address] = await server.addresses();
  const bw = new Bothways(address, { token: "ann" });
  t.after(() => bw.close());
  await bw.connect();
  assert.deepEqual(await bw.call("Arith", "Mul", { A: 6, B: 7 }), { C: 42 });
  const gone = new Bothways("unix@/nowhere/at/all");
  await assert.rejects(gone.connect(), { code: "lost", message: /ENOENT/ });
});

test("TLS, and a certificate that is not trusted", async (t) => {
  if (!bothwaysProgram()) return missing(t, "bothways program");
  const { Bothways } = await import("bothways/node");
  const [key, cert] = ["key.pem", "cert.pem"].map((name) => join(folder(t), name));
  const made = spawnSync("openssl", ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
    "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", cert]);
  if (made.status !== 0) return missing(t, "openssl");
  const server = start(t, bothwaysProgram(), ["serve", "tls@127.0.0.1:0", "--tls-cert", cert, "--tls-key", key]);
  const line = await server.lines.find((line) => line.startsWith("listening on "), "it listens");
  const address = line.slice("listening on ".length);
  const bw = new Bothways(address, { tls: { ca: readFileSync(cert) } });
  t.after(() => bw.close());
  await bw.connect();
  assert.deepEqual(await bw.call("Arith", "Mul", { A: 6, B: 7 }), { C: 42 });
  await assert.rejects(new Bothways(address).connect(), { code: "lost", message: /self.signed/ });
});
