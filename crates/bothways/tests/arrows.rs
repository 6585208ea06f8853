//! Arrows point down: no module of the library uses one that stands above it.

use std::{fs, path::Path};

/// The modules of `src`, in rows: each may use its own row and those before it. A new module takes
/// the lowest row that has all it uses.
const ROWS: &[&[&str]] = &[
    &[
        "transport",
        "calm",
        "clock",
        "codec",
        "stats",
        "error",
        "guard",
        "options",
        "config",
        "in_turn",
        "packing",
        "peer",
        "reply",
        "shrink",
    ],
    &["connection", "caller"],
    &["session"],
    &["router", "layer", "handler"],
    &["client", "discovery"],
    &["server", "xclient", "testing"],
];

fn row(module: &str) -> Option<usize> {
    ROWS.iter().position(|row| row.contains(&module))
}

/// Each Rust file below `dir`, with the module of the top level that it belongs to.
fn files(dir: &Path, module: Option<&str>, found: &mut Vec<(String, String)>) {
    for entry in fs::read_dir(dir).expect("the folder is readable") {
        let path = entry.expect("an entry").path();
        let name = path.file_stem().expect("a name").to_str().expect("UTF-8").to_owned();
        let of = module.map_or_else(|| name.clone(), str::to_owned);
        if path.is_dir() {
            files(&path, Some(&of), found);
        } else if path.extension().is_some_and(|extension| extension == "rs") && of != "lib" {
            found.push((of, fs::read_to_string(&path).expect("a text")));
        }
    }
}

/// The modules of the top level that a text names behind `crate::`, comments and unit tests left out.
fn used(text: &str) -> Vec<String> {
    let text = text.split("#[cfg(test)]\nmod ").next().expect("a split gives one piece at least");
    let code: Vec<&str> = text.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
    let code = code.join("\n");
    let mut names = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        if code[..at].ends_with(|before: char| before.is_alphanumeric() || before == '_') {
            continue;
        }
        let rest = &code[at + "crate::".len()..];
        match rest.strip_prefix('{') {
            Some(group) => names.extend(heads(group)),
            None => names.extend(ident(rest)),
        }
    }
    names
}

/// The first names of a `{…}` list: of `a::{b, c}, d::e}` they are `a` and `d`.
fn heads(group: &str) -> Vec<String> {
    let (mut depth, mut piece, mut heads) = (0_usize, String::new(), Vec::new());
    for c in group.chars() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => heads.extend(ident(&std::mem::take(&mut piece))),
            _ => {}
        }
        if depth == 0 && c != ',' {
            piece.push(c);
        }
    }
    heads.extend(ident(&piece));
    heads
}

fn ident(text: &str) -> Option<String> {
    let name: String = text.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
    (!name.is_empty()).then_some(name)
}

/// The table holds. What a module takes from the crate's root by a short name is looked up in `lib.rs`.
#[test]
fn arrows_point_down() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    files(&src, None, &mut found);
    let root = fs::read_to_string(src.join("lib.rs")).expect("a text");
    let mut wrong = Vec::new();
    for (module, text) in found {
        let Some(own) = row(&module) else {
            wrong.push(format!("`{module}` has no row: give it one in this test"));
            continue;
        };
        for name in used(&text) {
            let used = if row(&name).is_some() { name } else { exported_by(&root, &name).unwrap_or(name) };
            if row(&used).is_some_and(|of_used| own < of_used) {
                wrong.push(format!("`{module}` uses `{used}`, which stands above it"));
            }
        }
    }
    wrong.sort();
    wrong.dedup();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The module from which `lib.rs` exports this name: `client` for `Client`.
fn exported_by(root: &str, name: &str) -> Option<String> {
    let exports = root.split("pub use self::{").nth(1)?.split("};").next()?;
    let line = exports.lines().find(|line| {
        line.split(|c: char| !(c.is_alphanumeric() || c == '_')).any(|word| word == name) && line.contains("::")
    })?;
    ident(line).filter(|module| row(module).is_some())
}

/// The reader of `use` lines sees nested groups, paths in the text, and short names of the root.
#[test]
fn uses_are_read() {
    let text = "//! crate::not_this\nuse crate::{a::{b, c}, d::e,\n f};\nfn g() { crate::h::i(); }";
    assert_eq!(used(text), ["a", "d", "f", "h"]);
    assert_eq!(exported_by("pub use self::{\n    client::{Client, X},\n};", "Client").as_deref(), Some("client"));
}
