// Makes `demo/index.html`, one file with everything in it, of `demo/page.html` and `demo/page.ts`. Nobody keeps it:
// `npm run demo` makes it anew.
import { readFileSync, writeFileSync } from "node:fs";
import { bundle } from "./build.mjs";

const { code } = await bundle({ entryPoints: ["demo/page.ts"], format: "iife", platform: "browser" });
const script = code.replaceAll("</script", "<\\/script");
const link = '<script type="module" src="./page.ts"></script>';
const page = readFileSync("demo/page.html", "utf8");
if (!page.includes(link)) throw new Error(`demo/page.html lacks ${link}`);
writeFileSync("demo/index.html", page.replace(link, () => `<script>${script}</script>`));
