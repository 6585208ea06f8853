//! Every promise in `docs/promises.md` names its bound and the test that would fail if it were broken, and that
//! test is there.
//!
//! A test is named `file::test`, the file under `crates/` or under the repository; `file.hex::record` is a record in
//! a table of frames, and `file::doc Item` the example in the documentation of a public item, which is run too.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// One row of the page.
struct Promise {
    id: String,
    text: String,
    bound: String,
    tests: Vec<(String, String)>,
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The rows of all tables of a page, or what is wrong with one.
fn promises(page: &str) -> Result<Vec<Promise>, String> {
    let rows = page.lines().filter(|line| line.starts_with('|'));
    let rows = rows.filter(|line| !line.starts_with("|---") && !line.starts_with("| id |"));
    rows.map(promise).collect()
}

fn promise(row: &str) -> Result<Promise, String> {
    let cells: Vec<&str> = row.trim().trim_matches('|').split(" | ").map(str::trim).collect();
    let [id, text, bound, tests] = cells[..] else {
        return Err(format!("a row has an id, a promise, its bound and its test: {row}"));
    };
    let named = tests.split('`').skip(1).step_by(2).map(|test| test.split_once("::"));
    let tests = named.map(|test| test.map(|(file, name)| (file.to_owned(), name.to_owned())));
    let tests = tests.collect::<Option<Vec<_>>>().ok_or_else(|| format!("a test is `file::name`: {row}"))?;
    Ok(Promise { id: id.to_owned(), text: text.to_owned(), bound: bound.to_owned(), tests })
}

/// What is wrong with a row, given the texts of files.
fn fault(promise: &Promise, text_of: &mut impl FnMut(&str) -> Option<String>) -> Option<String> {
    let Promise { id, text, bound, tests } = promise;
    if id.is_empty() || text.is_empty() || bound.is_empty() {
        return Some(format!("{id}: a cell is empty"));
    }
    if tests.is_empty() {
        return Some(format!("{id}: a promise without a test: {text}"));
    }
    tests.iter().find_map(|(file, name)| match text_of(file) {
        None => Some(format!("{id}: there is no file {file}")),
        Some(code) if !has_test(file, &code, name) => Some(format!("{id}: {file} has no test {name}")),
        Some(_) => None,
    })
}

/// Whether a file has a test of this name.
fn has_test(file: &str, code: &str, name: &str) -> bool {
    if file.ends_with(".hex") {
        return code.contains(&format!("name    {name}\n"));
    }
    if file.ends_with(".go") {
        return code.contains(&format!("\nfunc {name}(t *testing.T) {{\n"));
    }
    let lines: Vec<&str> = code.lines().map(str::trim_start).collect();
    // What stands above a function or an item, from it upwards.
    let above = |at: usize| lines[..at].iter().rev().take_while(|line| line.starts_with(['#', '/']));
    if let Some(item) = name.strip_prefix("doc ") {
        let kinds = ["fn", "async fn", "struct", "enum", "trait", "mod", "macro_rules!"];
        let heads: Vec<String> = kinds.iter().flat_map(|kind| head(kind, item)).collect();
        return lines.iter().enumerate().any(|(at, line)| {
            heads.iter().any(|head| line.starts_with(head)) && above(at).any(|line| line.starts_with("/// ```"))
        });
    }
    let function = format!("fn {name}(");
    if file.ends_with(".mjs") {
        return code.contains(&format!("test(\"{name}\"")) || code.contains(&format!("test(`{name}`"));
    }
    // A table of cases, as in `tests/interop/tests/go_client.rs`, has tests without a function.
    let case = format!("{name} \"");
    lines.iter().enumerate().any(|(at, line)| {
        let is_function = line.starts_with(&function) || line.starts_with(&format!("async {function}"));
        (is_function && above(at).any(|line| line.starts_with("#[") && line.contains("test")))
            || (line.starts_with(&case) && code.contains("macro_rules! cases"))
    })
}

fn head(kind: &str, item: &str) -> Vec<String> {
    let behind = ["(", "<", " ", ";"];
    behind.iter().map(|behind| format!("pub {kind} {item}{behind}")).collect()
}

#[test]
fn every_promise_has_a_bound_and_a_test_that_exists() {
    let page = fs::read_to_string(root().join("docs/promises.md")).expect("the page is there");
    let promises = promises(&page).unwrap_or_else(|error| panic!("{error}"));
    let mut texts = BTreeMap::new();
    let mut text_of = |file: &str| {
        let read = || {
            let places = [root().join("crates").join(file), root().join(file)];
            places.iter().find_map(|path| fs::read_to_string(path).ok())
        };
        texts.entry(file.to_owned()).or_insert_with(read).clone()
    };
    let faults: Vec<String> = promises.iter().filter_map(|promise| fault(promise, &mut text_of)).collect();
    assert!(faults.is_empty(), "{}", faults.join("\n"));

    let ids: BTreeSet<&str> = promises.iter().map(|promise| promise.id.as_str()).collect();
    assert_eq!(ids.len(), promises.len(), "an id stands twice");
    assert!(180 <= promises.len(), "{} promises were read", promises.len());
}

/// The test of the page is worth what it refuses.
#[test]
fn a_promise_without_a_test_is_found() {
    let fault_of = |row: &str| {
        let promise = promise(row)?;
        let mut text_of = |file: &str| {
            let code = "/// ```\npub fn shown(\n\n#[test]\n    fn tested() {}\nfn helper() {}\n";
            (file == "a.rs").then(|| code.to_owned())
        };
        fault(&promise, &mut text_of).map_or(Ok(()), Err)
    };
    fault_of("| X1 | It holds. | - | `a.rs::tested` |").expect("all is there");
    fault_of("| X1 | It holds. | - | `a.rs::tested`, `a.rs::doc shown` |").expect("all is there");
    let faulty = [
        "| X1 | It holds. | - | later |",
        "| X1 | It holds. |  | `a.rs::tested` |",
        "| X1 | It holds. | `a.rs::tested` |",
        "| X1 | It holds. | - | `a.rs::missing` |",
        "| X1 | It holds. | - | `a.rs::helper` |",
        "| X1 | It holds. | - | `b.rs::tested` |",
        "| X1 | It holds. | - | `a.rs::doc helper` |",
        "| X1 | It holds. | - | `a.rs` |",
    ];
    for row in faulty {
        assert!(fault_of(row).is_err(), "{row}");
    }
}
