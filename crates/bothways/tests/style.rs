//! What `STYLE.md` quotes is in the files that it names, what `docs/from-go.md` names is in the code, and words that
//! `STYLE.md` speaks against do not come back.
//!
//! A snippet follows a sentence that ends in `` From `path`: ``; several snippets may follow one such sentence.

use std::{
    collections::HashSet,
    fs,
    path::{Path, PathBuf},
};

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
    for of in ["bothways", "proto", "http"] {
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

/// Words that need a second reading, with what STYLE.md says in their place.
const NOT_SAID: &[(&str, &str)] = &[
    ("whoever", "anyone who, or a noun"),
    ("but for", "except for"),
    ("in spite of", "despite, or what happened"),
    ("nobody but", "only"),
    ("of before", "earlier, or older"),
    ("client of ours", "Bothways client"),
];

/// Names that were replaced by the field's word.
const NOT_NAMED: &[&str] = &[
    "Seldom",
    "Few",
    "Inlet",
    "Ears",
    "stirred",
    "tell_of_room",
    "handle_room",
    "unmade",
    "Trail",
    "give_way",
    "GiveWay",
];

/// A text as sentences: without comment marks and line breaks, where a phrase may be cut.
fn sentences(text: &str) -> String {
    let marks = |line: &str| line.trim().trim_start_matches(['/', '!', '#', '>']).trim().to_owned();
    text.lines().map(marks).collect::<Vec<_>>().join(" ")
}

/// Whether a phrase is in a text as whole words, in any case.
fn says(text: &str, phrase: &str) -> bool {
    let text = text.to_lowercase();
    text.match_indices(phrase).any(|(at, _)| {
        let is_letter = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
        !is_letter(text[..at].chars().next_back()) && !is_letter(text[at + phrase.len()..].chars().next())
    })
}

/// A sentence that begins with a free "who" and is no question.
fn begins_with_who(text: &str) -> Option<&str> {
    let starts = [". Who ", ": Who ", "; who "];
    let found = starts.iter().flat_map(|start| text.match_indices(start).map(|(at, _)| at + 2));
    found.into_iter().find_map(|at| {
        let sentence = &text[at..];
        let end = sentence.find(['.', '?', ':']).map_or(sentence.len(), |end| end + 1);
        (!sentence[..end].ends_with('?')).then_some(&sentence[..end])
    })
}

/// The files below a folder whose names end so.
fn files(folder: &Path, ends: &[&str], found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("the folder is readable") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
        match path.is_dir() {
            true if name != "target" && name != "node_modules" && !name.starts_with('.') => files(&path, ends, found),
            false if ends.iter().any(|end| name.ends_with(end)) => found.push(path),
            _ => {}
        }
    }
}

#[test]
fn no_word_comes_back_that_needs_a_second_reading() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut all = Vec::new();
    files(&root, &[".rs", ".md", ".go", ".toml", ".service", ".socket", "Dockerfile"], &mut all);
    let mut faults = Vec::new();
    for path in all.iter().filter(|path| !path.ends_with("STYLE.md") && !path.ends_with("tests/style.rs")) {
        let shown = path.strip_prefix(&root).unwrap_or(path).display();
        let text = fs::read_to_string(path).expect("a text");
        let sentences = sentences(&text);
        for (phrase, better) in NOT_SAID.iter().filter(|(phrase, _)| says(&sentences, phrase)) {
            faults.push(format!("{shown}: `{phrase}`; better: {better}"));
        }
        let is_test = path.components().any(|part| part.as_os_str().to_string_lossy().starts_with("tests"));
        if !is_test {
            faults.extend(begins_with_who(&sentences).map(|sentence| format!("{shown}: a free who: {sentence}")));
        }
        let is_code = path.extension().is_some_and(|end| end == "rs");
        let code = text.lines().map(|line| line.split("//").next().unwrap_or(line));
        let words: HashSet<&str> =
            code.flat_map(|line| line.split(|c: char| !c.is_alphanumeric() && c != '_')).collect();
        let named = NOT_NAMED.iter().filter(|name| is_code && words.contains(*name));
        faults.extend(named.map(|name| format!("{shown}: the name `{name}`")));
    }
    assert!(300 <= all.len(), "{} files were read", all.len());
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
}

/// The test of the words is worth what it refuses.
#[test]
fn a_word_that_needs_a_second_reading_is_found() {
    let of = |text: &str| sentences(text);
    assert!(says(&of("/// It goes to\n/// whoever asks."), "whoever"));
    assert!(says(&of("//! All of it, but\n//! for the last."), "but for"));
    assert!(!says(&of("/// A debut for all."), "but for"));
    assert!(begins_with_who(&of("/// It is told. Who asks twice is refused.")).is_some());
    assert!(begins_with_who(&of("/// It is told. Who asks? A client.")).is_none());
}
