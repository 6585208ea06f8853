// Fails if an entry is larger than it may be: minified, with gzip, as a browser loads it. The aim is 10 KiB, and 5 KiB for
// JSON alone; these bounds keep what there is from growing.
import { gzipSync } from "node:zlib";
import { build } from "esbuild";
import { shared } from "./build.mjs";

const most = { index: 15.5 * 1024, json: 13.5 * 1024 };

for (const [entry, max] of Object.entries(most)) {
  const of = { ...shared, entryPoints: [`src/${entry}.ts`], format: "esm", platform: "browser", write: false };
  const { outputFiles } = await build(of);
  const [bytes, packed] = [outputFiles[0].contents.length, gzipSync(outputFiles[0].contents, { level: 9 }).length];
  console.log(`bothways/${entry}: ${bytes} bytes, ${packed} with gzip, at most ${max}`);
  if (packed > max) process.exitCode = 1;
}
