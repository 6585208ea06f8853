//! Reads `golden/*.hex`, whose form `golden/README.md` tells.

use std::path::Path;

/// A paragraph of a golden file: its comments by their name, and its bytes.
#[derive(Clone, Debug, Default)]
pub struct Paragraph {
    comments: Vec<(String, String)>,
    /// The bytes; `None` if it has no line of hex.
    pub bytes: Option<Vec<u8>>,
}

impl Paragraph {
    /// What the comment of this name says.
    pub fn comment(&self, name: &str) -> Option<&str> {
        self.comments.iter().find(|(found, _)| found == name).map(|(_, text)| text.as_str())
    }
}

/// A golden file.
#[derive(Clone, Debug)]
pub struct GoldenFile {
    /// Its name, without the ending.
    pub name: String,
    /// What it holds, in order.
    pub paragraphs: Vec<Paragraph>,
}

/// All golden files of these beginnings, sorted by name.
///
/// # Panics
/// If one cannot be read.
pub fn files(beginnings: &[&str]) -> Vec<GoldenFile> {
    let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/golden"));
    let mut files: Vec<GoldenFile> = std::fs::read_dir(folder)
        .expect("golden is there")
        .map(|entry| entry.expect("golden can be read").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "hex"))
        .filter_map(|path| {
            let name = path.file_stem()?.to_str()?.to_owned();
            beginnings.iter().any(|beginning| name.starts_with(beginning)).then(|| {
                let text = std::fs::read_to_string(&path).expect("golden can be read");
                GoldenFile { name, paragraphs: text.split("\n\n").map(paragraph).collect() }
            })
        })
        .collect();
    files.sort_by(|a, b| a.name.cmp(&b.name));
    files
}

fn paragraph(text: &str) -> Paragraph {
    let mut paragraph = Paragraph::default();
    for line in text.lines() {
        match line.strip_prefix('#') {
            Some("(no bytes)" | " (no bytes)") => paragraph.bytes = Some(Vec::new()),
            Some(comment) => {
                let (name, value) = comment.split_once(": ").unwrap_or((comment, ""));
                paragraph.comments.push((name.trim().to_owned(), value.to_owned()));
            }
            None => paragraph.bytes.get_or_insert_default().extend(unhex(line)),
        }
    }
    paragraph
}

/// Hex digits as bytes.
///
/// # Panics
/// If it is anything else.
pub fn unhex(hex: &str) -> Vec<u8> {
    let digit = |c: u8| char::from(c).to_digit(16).unwrap_or_else(|| panic!("{hex:?} is no hex")) as u8;
    hex.as_bytes().chunks(2).map(|pair| digit(pair[0]) << 4 | digit(pair[1])).collect()
}

/// Bytes as hex digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
