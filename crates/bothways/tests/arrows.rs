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
        "beside",
        "extensions",
        "options",
        "config",
        "in_turn",
        "packing",
        "peer",
        "reply",
        "shares",
        "shrink",
    ],
    &["connection", "caller", "call"],
    &["session", "store"],
    &["cluster"],
    &["router", "layer", "handler"],
    &["client", "discovery"],
    &["server", "xclient", "testing", "raw"],
];

/// The modules of `src/session`, in rows as those of the library. What stands in one row may be a cycle: a push, its
/// receipt and its story; a session's state, its handle and what is held for it; topics and what tells of them.
const SESSION_ROWS: &[&[&str]] = &[
    &[
        "id",
        "one_or_many",
        "crowd",
        "ranks",
        "given_up",
        "side_by_side",
        "lock",
        "gate",
        "secrets",
        "shards",
        "queues",
        "keys",
        "topic",
        "subscribers",
        "history",
    ],
    &[
        "push",
        "flight",
        "receipt",
        "elsewhere",
        "each",
        "explain",
        "feed",
        "account",
        "parts",
        "came_with",
        "endings",
        "carried_call",
        "presence",
        "totals",
    ],
    &["acks"],
    &["ledger"],
    &["handle", "state", "claims", "batch", "long_batch"],
    &["target", "carried", "rules", "away", "call", "flusher", "fan_out"],
    &["options", "pasts"],
    &["hub", "kept", "tell", "users"],
    &["registry", "mailbox"],
    &["resume", "end", "user", "anywhere", "travel"],
    &["mod"],
];

/// Arrows of `src/session` that point up all the same, each with its reason.
const SESSION_UP: &[(&str, &str, &str)] =
    &[("handle", "registry", "a session reaches the tables that it is in, and does not keep them alive")];

fn row(module: &str) -> Option<usize> {
    row_in(ROWS, module)
}

fn row_in(rows: &[&[&str]], module: &str) -> Option<usize> {
    rows.iter().position(|row| row.contains(&module))
}

/// Files that only tests are made of.
const OF_TESTS: &[&str] = &["tests", "fixtures"];

/// Each Rust file below `dir`, with the module of the top level that it belongs to; none of tests.
fn files(dir: &Path, module: Option<&str>, found: &mut Vec<(String, String)>) {
    for entry in fs::read_dir(dir).expect("the folder is readable") {
        let path = entry.expect("an entry").path();
        let name = path.file_stem().expect("a name").to_str().expect("UTF-8").to_owned();
        let of = module.map_or_else(|| name.clone(), str::to_owned);
        if path.is_dir() {
            files(&path, Some(&of), found);
        } else if path.extension().is_some_and(|extension| extension == "rs")
            && of != "lib"
            && !OF_TESTS.contains(&&*name)
        {
            found.push((of, fs::read_to_string(&path).expect("a text")));
        }
    }
}

/// The modules of the top level that a text names behind `crate::`, comments and unit tests left out.
fn used(text: &str) -> Vec<String> {
    used_behind("crate::", text)
}

/// As [`used`], behind any prefix.
fn used_behind(prefix: &str, text: &str) -> Vec<String> {
    let text = text.split("#[cfg(test)]\nmod ").next().expect("a split gives one piece at least");
    let code: Vec<&str> = text.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
    let code = code.join("\n");
    let mut names = Vec::new();
    for (at, _) in code.match_indices(prefix) {
        if code[..at].ends_with(|before: char| before.is_alphanumeric() || matches!(before, '_' | ':')) {
            continue;
        }
        let rest = &code[at + prefix.len()..];
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
            match row(&used) {
                Some(of_used) if own < of_used => {
                    wrong.push(format!("`{module}` uses `{used}`, which stands above it"));
                }
                Some(_) => {}
                None => wrong.push(format!("`{module}` uses `crate::{used}`, which belongs to no module with a row")),
            }
        }
    }
    wrong.sort();
    wrong.dedup();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The table of `session` holds. What a module takes from `session` by a short name is looked up in its `mod.rs`.
#[test]
fn arrows_of_session_point_down() {
    let session = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/session");
    let mut found = Vec::new();
    files(&session, None, &mut found);
    let root = fs::read_to_string(session.join("mod.rs")).expect("a text");
    let (mut wrong, mut up) = (Vec::new(), Vec::new());
    for (module, text) in found.iter().filter(|(module, _)| module != "mod") {
        let Some(own) = row_in(SESSION_ROWS, module) else {
            wrong.push(format!("`{module}` has no row: give it one in this test"));
            continue;
        };
        // A file in a folder of its own names its neighbours by the longer path.
        let names = ["super::", "super::super::", "crate::session::"].map(|prefix| used_behind(prefix, text));
        for name in names.into_iter().flatten().filter(|name| name != "super") {
            let is_module = row_in(SESSION_ROWS, &name).is_some();
            let used = if is_module { Some(name) } else { reexported_by(&root, &name) };
            let Some(used) = used.filter(|used| row_in(SESSION_ROWS, used).is_some_and(|of_used| own < of_used)) else {
                continue;
            };
            match SESSION_UP.iter().find(|(from, to, _)| from == module && *to == used) {
                Some(known) => up.push(known),
                None => wrong.push(format!("`{module}` uses `{used}`, which stands above it")),
            }
        }
    }
    wrong.extend(SESSION_UP.iter().filter(|known| !up.contains(known)).map(|known| format!("{known:?} is no more")));
    for name in SESSION_ROWS.iter().copied().flatten() {
        if !found.iter().any(|(module, _)| module == name) {
            wrong.push(format!("`{name}` has a row and is no module"));
        }
    }
    wrong.sort();
    wrong.dedup();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The module of `session` from which its `mod.rs` exports this name: `push` for `Class`.
fn reexported_by(root: &str, name: &str) -> Option<String> {
    let lists = root.split("use self::{").skip(1).filter_map(|list| list.split("\n};").next());
    let lines = lists.flat_map(|list| list.lines().filter(|line| line.contains("::")));
    let mut of_name = lines.filter(|line| {
        let items = line.split_once("::").map_or("", |(_, items)| items);
        items.split(|c: char| !(c.is_alphanumeric() || c == '_')).any(|word| word == name)
    });
    of_name.next().and_then(ident)
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
    assert_eq!(used_behind("super::", "use super::{a::{b, c}, D};\nuse super::super::e;"), ["a", "D", "super"]);
    assert_eq!(reexported_by("pub use self::{\n    push::{Class, Push},\n};", "Class").as_deref(), Some("push"));
    assert_eq!(exported_by("pub use self::{\n    client::{Client, X},\n};", "Client").as_deref(), Some("client"));
}
