// Builds `dist/`: each entry as an ES module and as CommonJS, whole in one file, and the types of both.
import { execFileSync } from "node:child_process";
import { copyFileSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { build } from "esbuild";

export const entries = ["index", "json", "node"];

/** What both builds have in common. Names that end in `_` are known to nobody outside, so that they may be short. */
export const shared = {
  bundle: true,
  target: "es2022",
  minify: true,
  // Fields without a value need no code.
  tsconfigRaw: { compilerOptions: { useDefineForClassFields: false, target: "ES2022" } },
  mangleProps: /[a-z]_$/,
  legalComments: "none",
  logLevel: "warning",
};

if (process.argv[1] === new URL(import.meta.url).pathname) {
  rmSync("dist", { recursive: true, force: true });
  for (const entry of entries) {
    const of = { ...shared, entryPoints: [`src/${entry}.ts`], platform: entry == "node" ? "node" : "neutral" };
    await build({ ...of, sourcemap: true, format: "esm", outfile: `dist/${entry}.js` });
    await build({ ...of, sourcemap: true, format: "cjs", outfile: `dist/${entry}.cjs` });
  }
  execFileSync(process.execPath, ["node_modules/typescript/bin/tsc", "-p", "."], { stdio: "inherit" });
  // CommonJS takes `.d.cts`, whose imports name each other so.
  for (const file of readdirSync("dist").filter((file) => file.endsWith(".d.ts"))) {
    const types = readFileSync(`dist/${file}`, "utf8").replaceAll(/(from|import\()\s*"(\.\/[\w-]+)\.js"/g, '$1 "$2.cjs"');
    writeFileSync(`dist/${file.replace(/\.ts$/, ".cts")}`, types.replaceAll('import( "', 'import("'));
  }
}
