//! What `STYLE.md` quotes is in the files that it names.
//!
//! A snippet follows a sentence that ends in `` From `path`: ``; several snippets may follow one such sentence.

use std::{fs, path::Path};

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
