//! The program from outside: what it prints, and how it exits.
#![cfg(feature = "runtime")]
#![allow(clippy::unwrap_used)] // helpers of tests, outside `#[test]`

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};

fn pgpinion(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_pgpinion")).args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// A file of that text, in the directory of this run's tests.
fn file(name: &str, content: &str) -> String {
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
    fs::write(&path, content).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn check_says_that_all_is_fine() {
    let path =
        file("good.toml", "[endpoints.main]\nhost = \"db\"\nmax_connections = 2000\n[databases.\"*\"]\n");
    let output = pgpinion(&["check", "-c", &path]);
    let expected = format!("{path}: fine: 1 endpoint, 1 database, ");
    assert!(text(&output.stdout).starts_with(&expected), "{output:?}");
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), ""));
}

#[test]
fn check_can_show_what_holds() {
    let path =
        file("show.toml", "[endpoints.main]\nhost = \"db\"\nmax_connections = 2000\n[databases.\"*\"]\n");
    let output = pgpinion(&["check", "-c", &path, "--show"]);
    assert!(text(&output.stdout).contains("query_wait_timeout = 120"), "{output:?}");
    let shown = file("shown.toml", text(&output.stdout));
    assert_eq!(pgpinion(&["check", "-c", &shown, "--show"]).stdout, output.stdout);
}

#[test]
fn check_says_all_that_is_wrong() {
    let path = file("bad.toml", "[endpoints.main]\nhots = \"db\"\nmax_connections = 2000\n");
    let output = pgpinion(&["check", "-c", &path]);
    let expected = format!(
        "{path}:1:1: no database is named; [databases.\"*\"] with `endpoint = \"main\"` offers all of a server\n\
         {path}:1:12: [endpoints.main] needs a `host`, like `host = \"127.0.0.1\"`\n\
         {path}:2:1: unknown key `hots` in [endpoints.main]; did you mean `host`?\n"
    );
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(1), expected.as_str()));
}

#[test]
fn a_missing_file_and_wrong_arguments_differ_in_status() {
    assert_eq!(pgpinion(&["check", "-c", "/nowhere/p.toml"]).status.code(), Some(1));
    assert_eq!(pgpinion(&["run", "-c", "/nowhere/p.toml"]).status.code(), Some(1));
    let output = pgpinion(&["run"]);
    assert_eq!(output.status.code(), Some(2));
    let expected = "pgpinion: run needs -c FILE or --upstream HOST:PORT\nTry `pgpinion --help`.\n";
    assert_eq!(text(&output.stderr), expected);
}

#[test]
fn help_and_version_are_printed() {
    assert!(text(&pgpinion(&["--help"]).stdout).contains("run --upstream HOST:PORT"));
    assert_eq!(text(&pgpinion(&["--version"]).stdout), format!("pgpinion {}\n", env!("CARGO_PKG_VERSION")));
}
