// Short names for the properties that nobody outside knows: those that end in `_`. Two that no object has both get the same
// one, so that one letter is enough for nearly all of them.
import { readdirSync, readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import ts from "typescript";

export const PRIVATE = /[a-z]_$/;
/** The letters that are frequent in a script that is minified come first: they take the fewest bits. */
const LETTERS = "etisnroalhcudpmfgbvwykxqjzETISNROALHCUDPMFGBVWYKXQJZ";

const folder = fileURLToPath(new URL("src/", import.meta.url));

/** How often each of these properties is named, and which of them some object has together. */
function survey() {
  const uses = new Map();
  const groups = [];
  const nameOf = (node) => (node?.name && ts.isIdentifier(node.name) && PRIVATE.test(node.name.text) ? node.name.text : undefined);
  const visit = (node) => {
    const isGroup = ts.isClassDeclaration(node) || ts.isInterfaceDeclaration(node) || ts.isTypeLiteralNode(node);
    const members = isGroup ? [...node.members] : ts.isObjectLiteralExpression(node) ? [...node.properties] : [];
    // Fields that a constructor's parameters are.
    for (const member of [...members]) if (ts.isConstructorDeclaration(member)) members.push(...member.parameters);
    const names = new Set(members.map(nameOf).filter(Boolean));
    if (names.size) groups.push(names);
    if (ts.isIdentifier(node) && PRIVATE.test(node.text)) uses.set(node.text, (uses.get(node.text) ?? 0) + 1);
    ts.forEachChild(node, visit);
  };
  for (const file of readdirSync(folder)) visit(ts.createSourceFile(file, readFileSync(folder + file, "utf8"), ts.ScriptTarget.ES2022));
  return { uses, groups };
}

/** The short name of each. */
export function shortNames() {
  const { uses, groups } = survey();
  const short = {};
  for (const [name] of [...uses].sort((a, b) => b[1] - a[1] || (a[0] < b[0] ? -1 : 1))) {
    const taken = new Set(groups.filter((group) => group.has(name)).flatMap((group) => [...group].map((other) => short[other])));
    const letter = [...LETTERS].find((letter) => !taken.has(letter));
    // Beyond the letters esbuild finds one.
    if (letter) short[name] = letter;
  }
  return short;
}
