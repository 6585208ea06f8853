//! Nothing of NATS comes with the library.

use std::process::Command;

#[test]
fn the_library_has_nothing_of_nats() {
    let tree = |package: &str| {
        let cargo = Command::new(env!("CARGO"))
            .args(["tree", "--offline", "--all-features", "--edges", "normal,build", "--prefix", "none", "-p", package])
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .output()
            .expect("cargo runs");
        assert!(cargo.status.success(), "{}", String::from_utf8_lossy(&cargo.stderr));
        let tree = String::from_utf8(cargo.stdout).expect("a text");
        tree.lines().filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect::<Vec<String>>()
    };
    let of_nats = |name: &String| name.contains("nats") || name == "nkeys";
    assert!(tree("bothways-nats").iter().any(of_nats), "what is looked for is spelt so");
    let library = tree("bothways");
    assert!(library.iter().any(|name| name == "tokio") && !library.iter().any(of_nats), "{library:?}");
}
