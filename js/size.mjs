// Fails if what a page loads is larger than it may be: minified, with gzip -9, ES2022, without what it does not import. 10 KB
// for `bothways`; what the bytes are, and why `bothways/json` does not have the 5 KB that were wanted, is in
// docs/decisions/javascript-size.md. With names, as `node size.mjs subscribe handle`: what `bothways/json` costs with these.
// With `--parts`: of what the bytes are.
import { gzipSync } from "node:zlib";
import { build } from "esbuild";
import { bundle, shared } from "./build.mjs";

const most = { index: 10_240, json: 5_850 };

/** Bytes of a page's script that imports so much of an entry, before and after gzip. */
async function sizeOf(entry, names) {
  const contents = `export { ${names.join(", ")} } from "./src/${entry}.ts"`;
  const stdin = { contents, resolveDir: ".", loader: "ts" };
  const { code } = await bundle({ stdin, format: "esm", platform: "browser" });
  return [code.length, gzipSync(code, { level: 9 }).length];
}

/** How many of the minified bytes each file of `src/` has, before gzip. */
async function partsOf(entry) {
  const stdin = { contents: `export { Bothways } from "./src/${entry}.ts"`, resolveDir: ".", loader: "ts" };
  const { metafile } = await build({ ...shared, stdin, format: "esm", write: false, metafile: true, outfile: "out.js" });
  const { inputs } = metafile.outputs["out.js"];
  const parts = Object.entries(inputs).map(([file, { bytesInOutput }]) => [file, bytesInOutput]).filter(([, bytes]) => bytes);
  return parts.sort(([, a], [, b]) => b - a);
}

const isAboutParts = process.argv[2] == "--parts";
const more = isAboutParts ? [] : process.argv.slice(2);
for (const [entry, max] of Object.entries(most)) {
  const [bytes, packed] = await sizeOf(entry, ["Bothways", ...(entry == "json" ? more : [])]);
  const bound = more.length ? "" : `, at most ${max}`;
  console.log(`bothways/${entry}: ${bytes} bytes, ${packed} with gzip${bound}`);
  if (bound && packed > max) process.exitCode = 1;
  if (isAboutParts) for (const [file, bytes] of await partsOf(entry)) console.log(`${String(bytes).padStart(8)} ${file}`);
}
