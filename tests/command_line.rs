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
fn a_kernel_without_io_uring_is_told_before_anything_panics() {
    for errno in [EPERM, ENOSYS] {
        let deny = DENY_IO_URING_SETUP.replace("ERRNO", &errno.to_string());
        let output = run_after(&format!("denied-{errno}"), &deny);
        let told = text(&output.stderr);
        assert!(told.starts_with("pgpinion: shard 0 on CPU "), "{told}");
        assert!(told.contains("io_uring is switched off for this process"), "{told}");
        assert!(told.contains("sysctl kernel.io_uring_disabled"), "{told}");
        assert!(told.contains(&format!("os error {errno}")) && told.lines().count() == 1, "{told}");
        assert_eq!(output.status.code(), Some(1), "{told}");
    }
}

#[test]
fn a_kernel_that_is_too_old_is_told_before_anything_panics() {
    let output = run_after("old", "assert libc.personality(0x0020000) != -1  # UNAME26: calls itself 2.6");
    let told = text(&output.stderr);
    assert!(told.contains("the running kernel is 2.6."), "{told}");
    assert!(told.contains("needs Linux 6.1 or newer") && told.lines().count() == 1, "{told}");
    assert_eq!(output.status.code(), Some(1), "{told}");
}

/// `pgpinion run` in a process that has done this in Python before, on a socket file in a directory of that name.
fn run_after(name: &str, first: &str) -> Output {
    let directory = std::env::temp_dir().join(format!("pgpinion-{}-{name}", std::process::id()));
    fs::create_dir_all(&directory).unwrap();
    let listen = format!("unix:{}", directory.display());
    let program = format!("{PYTHON_BEGINS}\n{first}\n{PYTHON_ENDS}");
    let output = Command::new("timeout")
        .args(["20", "python3", "-c", &program, env!("CARGO_BIN_EXE_pgpinion")])
        .args(["run", "--upstream", "127.0.0.1:1", "--listen", &listen])
        .output()
        .unwrap();
    fs::remove_dir_all(&directory).unwrap();
    output
}

const PYTHON_BEGINS: &str = "import ctypes, os, struct, sys; libc = ctypes.CDLL(None, use_errno=True)";
const PYTHON_ENDS: &str = "os.execv(sys.argv[1], sys.argv[1:])";

/// A seccomp filter: load the number of the system call; io_uring_setup (425 on every architecture) gets an errno, all
/// else is allowed. 38 is PR_SET_NO_NEW_PRIVS, which it needs without root; 22 and 2 are PR_SET_SECCOMP and SECCOMP_MODE_FILTER.
const DENY_IO_URING_SETUP: &str = "
steps = [(0x20, 0, 0, 0), (0x15, 0, 1, 425), (0x06, 0, 0, 0x00050000 | ERRNO), (0x06, 0, 0, 0x7fff0000)]
code = ctypes.create_string_buffer(b''.join(struct.pack('HBBI', *step) for step in steps))
program = ctypes.create_string_buffer(struct.pack('HxxxxxxQ', len(steps), ctypes.addressof(code)))
assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, program, 0, 0) == 0, os.strerror(ctypes.get_errno())
";

const EPERM: i32 = 1;
const ENOSYS: i32 = 38;

#[test]
fn help_and_version_are_printed() {
    assert!(text(&pgpinion(&["--help"]).stdout).contains("run --upstream HOST:PORT"));
    assert_eq!(text(&pgpinion(&["--version"]).stdout), format!("pgpinion {}\n", env!("CARGO_PKG_VERSION")));
}
