//! Every test that `docs/go-differences.md` names is there.

use std::{fs, path::Path};

/// The page's references, `file::name`, and whether they lead somewhere.
#[test]
fn the_tests_that_pin_a_difference_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let page = fs::read_to_string(root.join("docs/go-differences.md")).expect("the page is there");
    let mut found = 0;
    for (file, name) in page.split('`').skip(1).step_by(2).filter_map(|code| code.split_once("::")) {
        let text = fs::read_to_string(root.join("crates").join(file)).unwrap_or_else(|error| panic!("{file}: {error}"));
        let wanted = if file.ends_with(".hex") { format!("name    {name}\n") } else { format!("fn {name}(") };
        assert!(text.contains(&wanted), "{file} has no {name}");
        found += 1;
    }
    assert!(40 < found, "{found} references were read");
}

/// A difference that nothing pins is an opinion.
#[test]
fn every_difference_is_pinned() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let page = fs::read_to_string(root.join("docs/go-differences.md")).expect("the page is there");
    let rows = page.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| |"));
    for row in rows {
        let cells: Vec<&str> = row.trim_matches('|').split('|').collect();
        assert_eq!(cells.len(), 5, "{row}");
        assert!(cells[4].contains("::"), "{row}");
    }
}
