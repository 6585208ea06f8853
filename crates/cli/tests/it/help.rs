//! What the help says, and what is said to those who type something wrong.

use crate::support::{bothways, finish, run};

const COMMANDS: [&str; 13] = [
    "demo",
    "serve",
    "call",
    "listen",
    "push",
    "connections",
    "nodes",
    "sessions",
    "explain",
    "kick",
    "dump",
    "load",
    "completions",
];

#[test]
fn help_names_every_command_and_where_to_start() {
    let help = run(&["--help"]);
    let out = help.ended(0);
    for part in COMMANDS.iter().chain(&["Start here:", "Exit codes:", "NO_COLOR", "bothways demo"]) {
        assert!(out.contains(part), "`{part}` is not in\n{out}");
    }
}

#[test]
fn every_command_has_help_with_an_example() {
    for command in COMMANDS {
        let help = run(&[command, "--help"]);
        let out = help.ended(0);
        assert!(out.contains("Example") && out.contains(&format!("bothways {command}")), "{out}");
    }
}

/// Not where services are, where it does not answer.
#[test]
fn operators_are_told_where_the_admin_service_answers() {
    for command in ["push", "connections", "nodes", "sessions", "explain", "kick"] {
        let help = run(&[command, "--help"]);
        let out = help.ended(0);
        assert!(out.contains(&format!("bothways {command} 127.0.0.1:8973")) && !out.contains(":8972"), "{out}");
        // It has a token of its own, and a client's is of no use there.
        let words = out.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(words.contains("Where the admin service answers") && !words.contains("--auth"), "{out}");
    }
}

#[test]
fn what_is_typed_wrong_is_named_with_what_is_right() {
    for (args, parts) in [
        (&["call", "127.0.0.1:1", "Arith"][..], &["Arith", "Service.Method"][..]),
        (&["call", "127.0.0.1", "Arith.Mul"], &["the port is missing", "tcp@127.0.0.1:8972"]),
        (&["call", "quic@h:1", "Arith.Mul"], &["unknown network `quic`", "known are"]),
        (&["call", "127.0.0.1:1", "Arith.Mul", "--timeout", "5"], &["a number and a unit", "250ms"]),
        (&["call", "127.0.0.1:1", "Arith.Mul", "--meta", "k"], &["key=value"]),
        (&["call", "127.0.0.1:1", "Arith.Mul", "{A:1}"], &["what is sent is not JSON", "hint:", "quote"]),
        (&["call", "127.0.0.1:1", "Arith.Mul", "@/does/not/exist"], &["cannot read the payload", "/does/not/exist"]),
        (&["call", "127.0.0.1:1", "Arith.Mul", "--auth-env", "BW_UNSET"], &["BW_UNSET is not set"]),
        (&["listen", "127.0.0.1:1", "--call", "Arith"], &["--call Arith", "Service.Method"]),
        (&["listen", "127.0.0.1:1", "--meta", "a=b"], &["--call"]),
        (&["serve", "127.0.0.1:0", "--admin-token-env", "BW_UNSET"], &["BW_UNSET is not set", "export BW_UNSET"]),
        (&["serve", "127.0.0.1:0", "--admin-token-file", "/does/not/exist"], &["cannot read the token"]),
        (&["serve", "127.0.0.1:0", "--admin", "127.0.0.1:0"], &["--admin-token-env"]),
        (&["serve", "127.0.0.1:0", "--admin", "0.0.0.0:0", "--admin-token-file", "Cargo.toml"], &["TLS"]),
        (&["demo", "--clients", "1"], &["2..=200"]),
        (&["push", "127.0.0.1:1", "--everyone", "A.b", "x"], &["--admin-token-env"]),
        (&["push", "127.0.0.1:1", "A.b", "x", "--admin-token-env", "T"], &["--everyone|--to"]),
        (&["explain", "127.0.0.1:1", "--admin-token-env", "T"], &["--user <NAME>|--session <ID>"]),
        (&["kick", "127.0.0.1:1", "--user", "ann", "--admin-token-env", "T"], &["--why"]),
        (&["push", "127.0.0.1:1", "--user", "a", "--topic", "b", "A.b", "x"], &["cannot be used with"]),
        (&["dump", "--proxy", "127.0.0.1:0"], &["--to"]),
        (&["dump", "--proxy", "unix@/x", "--to", "127.0.0.1:1"], &["only TCP"]),
        (&["dump", "/does/not/exist"], &["cannot open /does/not/exist"]),
        (&["load", "127.0.0.1:1", "--size", "1TiB"], &["64KiB"]),
        (&["load", "127.0.0.1:1", "--broadcast", "1", "7"], &["SIZE is at least 8"]),
        (&["load", "127.0.0.1:1", "--broadcast", "1", "8", "--rate", "1"], &["cannot be used with"]),
        (&["nothing"], &["unrecognized subcommand"]),
    ] {
        run(args).failed(2, parts);
    }
}

/// The help of each command has room in a terminal of 80 columns.
#[test]
fn help_has_room_in_80_columns() {
    for command in COMMANDS.map(Some).into_iter().chain([None]) {
        let help = run(&[command.as_slice(), &["--help"]].concat());
        for line in help.ended(0).lines() {
            assert!(line.chars().count() <= 80, "{command:?}: {line}");
        }
    }
}

#[test]
fn output_into_a_pipe_has_no_colours() {
    let ran = run(&["call", "127.0.0.1", "Arith.Mul"]);
    assert!(!ran.err.contains('\u{1b}'), "{ran:?}");
    let mut command = bothways(&["--help"]);
    command.env("NO_COLOR", "1");
    assert!(!finish(command, b"").out.contains('\u{1b}'));
}

#[test]
fn completions_are_a_script() {
    let ran = run(&["completions", "bash"]);
    assert!(ran.ended(0).contains("_bothways()"));
}
