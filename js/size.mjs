// Fails if what a page loads is larger than it may be: minified, with gzip -9, ES2022, without what it does not import. The
// aim is 10 KB, and 5 KB for JSON alone, which they do not reach; these bounds keep what there is from growing. With names,
// as `node size.mjs subscribe handle`: what `bothways/json` costs with these.
import { gzipSync } from "node:zlib";
import { bundle } from "./build.mjs";

const most = { index: 11_950, json: 6_900 };

/** Bytes of a page's script that imports so much of an entry, before and after gzip. */
async function sizeOf(entry, names) {
  const contents = `export { ${names.join(", ")} } from "./src/${entry}.ts"`;
  const stdin = { contents, resolveDir: ".", loader: "ts" };
  const { code } = await bundle({ stdin, format: "esm", platform: "browser" });
  return [code.length, gzipSync(code, { level: 9 }).length];
}

const more = process.argv.slice(2);
for (const [entry, max] of Object.entries(most)) {
  const [bytes, packed] = await sizeOf(entry, ["Bothways", ...(entry == "json" ? more : [])]);
  const bound = more.length ? "" : `, at most ${max}`;
  console.log(`bothways/${entry}: ${bytes} bytes, ${packed} with gzip${bound}`);
  if (bound && packed > max) process.exitCode = 1;
}
