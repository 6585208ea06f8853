//! What is packaged for operators is what their tools accept.

use std::{fs, path::Path, process::Command};

#[cfg(target_os = "linux")]
#[test]
fn the_units_are_what_systemd_takes() {
    if Command::new("systemd-analyze").arg("--version").output().is_err() {
        return eprintln!("skipped: no systemd-analyze");
    }
    let units = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../packaging/systemd");
    let place = tempfile::tempdir().expect("a folder");
    let copy = |name: &str| {
        let unit = fs::read_to_string(units.join(name)).expect("the unit is there");
        // It must be a program that is installed.
        let unit = unit.replace("/usr/local/bin/bothways", env!("CARGO_BIN_EXE_bothways"));
        fs::write(place.path().join(name), unit).expect("it can be written");
        place.path().join(name)
    };
    let (socket, service) = (copy("bothways.socket"), copy("bothways.service"));

    let verified = Command::new("systemd-analyze").arg("verify").args([socket, service]).output().expect("it runs");
    let said = String::from_utf8_lossy(&verified.stderr);
    assert!(verified.status.success() && !said.contains("bothways."), "{said}");
}

/// The commands of the units and of the image are commands of this program.
#[test]
fn what_is_started_is_what_the_program_takes() {
    let packaging = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../packaging");
    let service = fs::read_to_string(packaging.join("systemd/bothways.service")).expect("the unit is there");
    let line = service.lines().find_map(|line| line.strip_prefix("ExecStart=")).expect("it starts something");
    for word in line.split(' ').filter(|word| word.starts_with("--")) {
        let help = Command::new(env!("CARGO_BIN_EXE_bothways")).args(["serve", "--help"]).output().expect("it runs");
        assert!(String::from_utf8_lossy(&help.stdout).contains(word), "serve takes no {word}");
    }
    let image = fs::read_to_string(packaging.join("Dockerfile")).expect("it is there");
    assert!(image.contains(r#"CMD ["serve", "tcp@0.0.0.0:8972"]"#) && image.contains("cargo build --release --locked"));
}

/// The nodes of the compose file are started with options that there are, and over the version that tests run over.
#[cfg(feature = "nats")]
#[test]
fn the_compose_file_starts_what_there_is() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let file = fs::read_to_string(root.join("packaging/compose/cluster.yml")).expect("it is there");
    let help = Command::new(env!("CARGO_BIN_EXE_bothways")).args(["serve", "--help"]).output().expect("it runs");
    let help = String::from_utf8_lossy(&help.stdout).into_owned();
    let options: Vec<&str> =
        file.lines().filter_map(|line| line.trim().strip_prefix("- --")?.split('=').next()).collect();
    assert!(4 < options.len(), "{options:?}");
    for option in options {
        assert!(help.contains(&format!("--{option}")), "serve takes no --{option}");
    }
    let peers = fs::read_to_string(root.join("benches/src/compare/kinds.rs")).expect("it is there");
    let version = peers.split("nats-server/v2@v").nth(1).and_then(|rest| rest.split('"').next()).expect("a pin");
    assert!(file.contains(&format!("image: nats:{version}")), "tests run over {version}");
}
