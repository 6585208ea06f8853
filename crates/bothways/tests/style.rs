//! What `STYLE.md` quotes is in the files that it names, and what `docs/from-go.md` names is in the code.
//!
//! A snippet follows a sentence that ends in `` From `path`: ``; several snippets may follow one such sentence.

use std::{collections::HashSet, fs, path::Path};

/// A snippet, and the file that it is from, if the page names one.
type Quote = (Option<String>, String);

/// The snippets of a page, in order.
fn quotes(page: &str) -> Vec<Quote> {
    let (mut quotes, mut file, mut above) = (Vec::new(), None, String::new());
    let mut open: Option<String> = None;
    for line in page.lines() {
        match &mut open {
            Some(_) if line == "```" => quotes.extend(open.take().map(|snippet| (file.clone(), snippet))),
            Some(snippet) => {
                snippet.push_str(line);
                snippet.push('\n');
            }
            None if line.starts_with("```") => {
                file = named(&above).or(file);
                above.clear();
                open = Some(String::new());
            }
            None if line.starts_with('#') => (file, above) = (None, String::new()),
            None => {
                above.push_str(line);
                above.push(' ');
            }
        }
    }
    quotes
}

/// The path behind the last "From" of a text that ends with it.
fn named(text: &str) -> Option<String> {
    let (_, path) = text.trim_end().strip_suffix("`:")?.rsplit_once("From `")?;
    Some(path.to_owned())
}

/// What is wrong with a quotation.
fn fault((file, snippet): &Quote, text_of: impl Fn(&str) -> Option<String>) -> Option<String> {
    let Some(file) = file else { return Some(format!("no file is named for:\n{snippet}")) };
    match text_of(file) {
        None => Some(format!("there is no file {file}")),
        // Lines are compared whole: a snippet begins with a line and ends with one.
        Some(text) if !format!("\n{text}").contains(&format!("\n{snippet}")) => {
            Some(format!("{file} does not have:\n{snippet}"))
        }
        Some(_) => None,
    }
}

#[test]
fn every_snippet_is_in_the_file_that_it_names() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let page = fs::read_to_string(root.join("STYLE.md")).expect("the page is there");
    let quotes = quotes(&page);
    let text_of = |file: &str| fs::read_to_string(root.join(file)).ok();
    let faults: Vec<String> = quotes.iter().filter_map(|quote| fault(quote, text_of)).collect();
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    assert!(8 <= quotes.len(), "{} snippets were read", quotes.len());
}

/// The test of the page is worth what it refuses.
#[test]
fn a_snippet_that_is_not_there_is_found() {
    let fault_of = |page: &str| {
        let text_of = |file: &str| (file == "a.rs").then(|| "fn a() {}\n    fn b() {}\n".to_owned());
        let quotes = quotes(page);
        assert!(!quotes.is_empty(), "{page}");
        quotes.iter().find_map(|quote| fault(quote, text_of))
    };
    assert_eq!(fault_of("From\n`a.rs`:\n\n```rust\nfn a() {}\n```\n\n```rust\n    fn b() {}\n```\n"), None);
    let faulty = [
        "From `a.rs`:\n\n```rust\nfn c() {}\n```\n",
        "From `a.rs`:\n\n```rust\nfn b() {}\n```\n",
        "From `b.rs`:\n\n```rust\nfn a() {}\n```\n",
        "As here:\n\n```rust\nfn a() {}\n```\n",
        "From `a.rs`:\n\n## Another\n\n```rust\nfn a() {}\n```\n",
    ];
    for page in faulty {
        assert!(fault_of(page).is_some(), "{page}");
    }
}

/// The names of ours that a page's tables give in their second column: `Type::method` is two names.
fn names(page: &str) -> Vec<&str> {
    let cells = page.lines().filter_map(|line| line.strip_prefix("| ")?.split(" | ").nth(1));
    let spans = cells.flat_map(|cell| cell.split('`').skip(1).step_by(2));
    let is_name = |span: &&str| span.chars().all(|c| c.is_alphanumeric() || c == '_' || c == ':');
    let plain = spans.map(|span| span.split('<').next().unwrap_or(span)).filter(is_name);
    plain.flat_map(|span| span.split("::")).filter(|name| !name.is_empty()).collect()
}

/// The names that the code declares: items and methods, and what a line begins with, such as variants.
fn declared(code: &str) -> HashSet<&str> {
    let kinds = ["fn", "struct", "enum", "trait", "mod", "const", "type"];
    let mut names = HashSet::new();
    for line in code.lines().map(str::trim_start) {
        let words: Vec<&str> = line.split(|c: char| !c.is_alphanumeric() && c != '_').collect();
        names.extend(words.first());
        names.extend(words.windows(2).filter(|pair| kinds.contains(&pair[0])).map(|pair| pair[1]));
    }
    names
}

fn code_of(folder: &Path, code: &mut String) {
    for entry in fs::read_dir(folder).expect("the folder is readable") {
        let path = entry.expect("an entry").path();
        match path.is_dir() {
            true => code_of(&path, code),
            false => code.push_str(&fs::read_to_string(path).expect("a text")),
        }
    }
}

/// `docs/from-go.md` names nothing that was renamed since.
#[test]
fn every_name_that_a_go_program_is_moved_to_is_there() {
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let page = fs::read_to_string(crates.join("../docs/from-go.md")).expect("the page is there");
    let mut code = String::new();
    for of in ["bothways", "proto"] {
        code_of(&crates.join(of).join("src"), &mut code);
    }
    let names = names(&page);
    assert!(150 <= names.len(), "{} names were read", names.len());
    let declared = declared(&code);
    let missing: Vec<&str> = names.into_iter().filter(|name| !declared.contains(name)).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

/// The test of the names is worth what it refuses.
#[test]
fn a_name_that_is_not_there_is_found() {
    assert_eq!(names("| Go | `A::b`, `c` | `d` |\n| a | `x y` |\n"), ["A", "b", "c"]);
    let code = "pub struct Apple {\n    pub core: u8,\n}\nimpl Apple {\n    pub fn peel(&self) {}\n}\n";
    let declared = declared(code);
    assert!(["Apple", "peel"].iter().all(|name| declared.contains(name)));
    assert!(!["App", "pee", "peeled", "core"].iter().any(|name| declared.contains(name)));
}

/// Every place that names the oldest version of Rust names the same one.
#[test]
fn the_oldest_version_of_rust_is_the_same_everywhere() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let text_of = |file: &str| fs::read_to_string(root.join(file)).expect("the file is there");
    let manifest = text_of("Cargo.toml");
    let (_, version) = manifest.split_once("rust-version = \"").expect("it has one");
    let (version, _) = version.split_once('"').expect("it ends");
    for (file, form) in [
        ("fuzz/Cargo.toml", format!("rust-version = \"{version}\"")),
        ("benches/peers/Cargo.toml", format!("rust-version = \"{version}\"")),
        ("README.md", format!("Rust {version} or newer")),
        ("packaging/Dockerfile", format!("FROM rust:{version}-")),
        (".github/workflows/ci.yml", format!("rustup toolchain install {version} ")),
        (".ci/api", format!("Rust {version}.")),
    ] {
        assert!(text_of(file).contains(&form), "{file} does not say: {form}");
    }
}
