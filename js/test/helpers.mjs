// What the tests share: the servers that they start, and what they wait for.
import { spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { existsSync } from "node:fs";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";

export const root = fileURLToPath(new URL("../..", import.meta.url));

/** Nothing that a test waits for takes longer, in milliseconds. */
export const LONG = 60_000;

/** Resolves with the first value that is not undefined. Rejects with `what` after {@link LONG}. */
export async function within(promise, what, ms = LONG) {
  let timer;
  const late = new Promise((_, no) => (timer = setTimeout(() => no(new Error(`too late: ${what}`)), ms)));
  try {
    return await Promise.race([promise, late]);
  } finally {
    clearTimeout(timer);
  }
}

/** Values that come one by one, and whoever waits for them. */
export class Inbox {
  values = [];
  #waiting = [];

  put = (value) => {
    this.values.push(value);
    for (const look of this.#waiting.splice(0)) look();
  };

  /** The first value of which this is true, also of those that came before. */
  async find(test, what, ms = LONG) {
    for (;;) {
      const found = this.values.find(test);
      if (found !== undefined) return found;
      await within(new Promise((look) => this.#waiting.push(look)), what, ms);
    }
  }

  /** Waits until there are so many. */
  async count(count, what, ms = LONG) {
    await this.find(() => this.values.length >= count, what, ms);
    return this.values;
  }
}

/** A program that tells where it listens, takes lines and answers with lines of JSON that have the number of theirs. */
export class Program {
  lines = new Inbox();
  #next = 1;

  constructor(command, args) {
    this.child = spawn(command, args, { stdio: ["pipe", "pipe", "inherit"] });
    this.ended = once(this.child, "exit");
    this.ended.catch(() => {});
    this.child.stdin.on("error", () => {});
    createInterface({ input: this.child.stdout }).on("line", this.lines.put);
  }

  async addresses(count = 1) {
    const isAddress = (line) => line.startsWith("LISTENING ");
    await this.lines.find(() => this.lines.values.filter(isAddress).length >= count, "the server listens");
    return this.lines.values.filter(isAddress).map((line) => line.slice("LISTENING ".length));
  }

  async ask(command, ms = LONG) {
    const id = this.#next++;
    this.child.stdin.write(JSON.stringify({ id, ...command }) + "\n");
    const answer = await this.lines.find((line) => line.startsWith("{") && JSON.parse(line).id === id, JSON.stringify(command), ms);
    return JSON.parse(answer);
  }

  async stop() {
    this.child.stdin.end();
    this.child.kill();
    await within(this.ended, "a program ends");
  }
}

/** Says that a part is missing: where `CI` is set, that is a failure. */
export function missing(t, part) {
  if (process.env.CI) throw new Error(`${part} is missing`);
  t.skip(`skipped: no ${part}`);
}

const built = (name, variable) => {
  const path = process.env[variable] ?? `${root}target/debug/${name}`;
  return existsSync(path) ? path : undefined;
};

/** The server of these tests, in Rust; `test/run` builds it. */
export const rustServer = () => built("web-server", "BOTHWAYS_WEB_SERVER");

/** The program of the repository. */
export const bothwaysProgram = () => built("bothways", "BOTHWAYS_PROGRAM");

/** The Go server of the interop tests, built if there is Go. */
export function goServer() {
  const given = process.env.BOTHWAYS_GO_PROGRAMS;
  if (given && existsSync(`${given}/server`)) return `${given}/server`;
  const into = `${root}target/interop-go`;
  const made = spawnSync("go", ["build", "-o", `${into}/server`, "./cmd/server"], { cwd: `${root}tests/interop/go`, stdio: "inherit" });
  return made.status === 0 ? `${into}/server` : undefined;
}

/** Starts a program, and stops it with the test. */
export function start(t, path, args = []) {
  const program = new Program(path, args);
  t.after(() => program.stop());
  return program;
}
