// Reads the golden files of `tests/interop/golden`, which real Go made: see the README there.
import { readdirSync, readFileSync } from "node:fs";
import { root } from "./helpers.mjs";

const folder = `${root}tests/interop/golden/`;

/** Paragraphs of a file: their comments by name, and their bytes. */
export function paragraphs(file) {
  return readFileSync(folder + file, "utf8").split("\n\n").map((paragraph) => {
    const said = {};
    let hex = "";
    for (const line of paragraph.split("\n")) {
      const comment = /^# (\w+): (.*)$/.exec(line);
      if (comment) said[comment[1]] = comment[2];
      else if (!line.startsWith("#")) hex += line.trim();
    }
    return { ...said, file, bytes: new Uint8Array(Buffer.from(hex, "hex")) };
  });
}

const files = () => readdirSync(folder).filter((file) => file.endsWith(".hex"));

/** Every frame. */
export const frames = () => files().flatMap(paragraphs).filter(({ decoded }) => decoded);

/** Every value of the files with this beginning. */
export const values = (prefix) =>
  files().filter((file) => file.startsWith(prefix)).flatMap(paragraphs).filter(({ go }) => go);

/** The blocks of `docs/protocol.md`, by name. */
export function documented() {
  const page = readFileSync(`${root}docs/protocol.md`, "utf8");
  return [...page.matchAll(/```hex (\S+)\n([\s\S]*?)```/g)].map(([, name, block]) => {
    const hex = block.replaceAll(/#.*$/gm, "").replaceAll(/\s/g, "");
    return { name, bytes: new Uint8Array(Buffer.from(hex, "hex")) };
  });
}
