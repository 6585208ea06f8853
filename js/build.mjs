// Builds `dist/`: each entry as an ES module and as CommonJS, whole in one file, and the types of both.
import { execFileSync } from "node:child_process";
import { mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { build } from "esbuild";
import { minify } from "terser";
import { PRIVATE, shortNames } from "./mangle.mjs";

export const entries = ["index", "json", "node"];

/** What both builds have in common. Names that end in `_` are known to nobody outside, so that they may be short. */
export const shared = {
  bundle: true,
  target: "es2022",
  minify: true,
  // Fields without a value need no code.
  tsconfigRaw: { compilerOptions: { useDefineForClassFields: false, target: "ES2022" } },
  mangleProps: PRIVATE,
  mangleCache: shortNames(),
  legalComments: "none",
  logLevel: "warning",
};

/** The text of a bundle, and its source map if it has one. What esbuild has minified becomes 3 % smaller once more. */
export async function bundle(options) {
  const { outputFiles } = await build({ ...shared, outdir: "dist", ...options, write: false });
  const [script, content] = [".js", ".map"].map((end) => outputFiles.find(({ path }) => path.endsWith(end))?.text);
  const module = options.format != "iife";
  const made = await minify(script.replace(/^\/\/# sourceMappingURL.*/m, ""), {
    module,
    ecma: 2022,
    compress: { passes: 3, hoist_funs: true, pure_getters: true, unsafe_arrows: true, unsafe_methods: true },
    sourceMap: content && { content },
  });
  return { code: made.code, map: made.map };
}

if (process.argv[1] === new URL(import.meta.url).pathname) {
  rmSync("dist", { recursive: true, force: true });
  mkdirSync("dist");
  for (const entry of entries) {
    for (const [format, name] of [["esm", `${entry}.js`], ["cjs", `${entry}.cjs`]]) {
      const of = { entryPoints: [`src/${entry}.ts`], platform: entry == "node" ? "node" : "neutral" };
      const { code, map } = await bundle({ ...of, format, sourcemap: "external" });
      writeFileSync(`dist/${name}`, `${code}\n//# sourceMappingURL=${name}.map\n`);
      writeFileSync(`dist/${name}.map`, map);
    }
  }
  execFileSync(process.execPath, ["node_modules/typescript/bin/tsc", "-p", "."], { stdio: "inherit" });
  // CommonJS takes `.d.cts`, whose imports name each other so.
  for (const file of readdirSync("dist").filter((file) => file.endsWith(".d.ts"))) {
    const types = readFileSync(`dist/${file}`, "utf8").replaceAll(/(from|import\()\s*"(\.\/[\w-]+)\.js"/g, '$1 "$2.cjs"');
    writeFileSync(`dist/${file.replace(/\.ts$/, ".cts")}`, types.replaceAll('import( "', 'import("'));
  }
}
