// Builds the client that the admin page has, into the page: `npm run admin`. With `--check`: fails if the page has another
// one, so that the two stay in step.
import { readFileSync, writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { bundle } from "./build.mjs";

const root = fileURLToPath(new URL(".", import.meta.url));
const into = new URL("../crates/http/admin/client.js", import.meta.url);

export async function adminClient() {
  // The page calls, and nothing else.
  const stdin = { contents: 'export { Bothways, followPage, heedGoodbye } from "./src/json.ts"', resolveDir: root, loader: "ts" };
  const { code } = await bundle({ stdin, platform: "neutral", format: "esm" });
  return `// The client of js/, JSON only, as \`npm run admin\` builds it. Do not edit.\n${code}\n`;
}

if (process.argv[1] === new URL(import.meta.url).pathname) {
  const client = await adminClient();
  if (!process.argv.includes("--check")) writeFileSync(into, client);
  else if (readFileSync(into, "utf8") !== client) {
    console.error("crates/http/admin/client.js is not what js/ builds: run `npm run admin`");
    process.exit(1);
  }
}
