//! Who may import whom. The edges that are missing are the architecture: a room that is not in a line's list cannot be
//! seen from that line's room. Also kept here: what may appear where, and how large a room may grow.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr, clippy::print_stdout)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Room, and the rooms it may import. A room is a file or folder of `src/`.
const MAY_IMPORT: &[(&str, &[&str])] = &[
    // Words.
    ("ids", &[]),
    ("time", &[]),
    ("limits", &[]),
    ("random", &[]),
    ("log_line", &["ids"]),
    ("slab", &[]),
    ("metrics", &["ids"]),
    // Bytes to messages.
    ("wire", &["limits"]),
    // Machines.
    ("config", &["log_line"]),
    ("server", &["wire", "limits"]),
    ("guard", &[]),
    ("prepared", &["wire", "limits", "server", "guard"]),
    ("session", &["wire", "limits", "prepared", "server"]),
    ("cancel_key", &["ids"]),
    ("parameters", &["wire"]),
    ("pool", &[]),
    ("admin", &["config", "ids", "metrics", "wire"]),
    ("ledger", &["ids", "limits", "random", "time"]),
    ("mail", &["ids", "ledger", "limits", "metrics", "parameters", "prepared", "server", "time"]),
    // One core, pure.
    (
        "shard",
        &[
            "admin",
            "cancel_key",
            "config",
            "guard",
            "ids",
            "ledger",
            "limits",
            "log_line",
            "mail",
            "metrics",
            "parameters",
            "pool",
            "prepared",
            "random",
            "server",
            "session",
            "slab",
            "time",
            "wire",
        ],
    ),
    // The kernel.
    ("ring", &["ids", "time"]),
    // Threads beside the shards.
    ("control", &["config", "ids", "log_line"]),
    // Where all meets.
    (
        "engine",
        &[
            "cancel_key",
            "config",
            "control",
            "ids",
            "limits",
            "log_line",
            "mail",
            "metrics",
            "ring",
            "shard",
            "slab",
            "server",
            "wire",
            "time",
        ],
    ),
    ("arguments", &["config"]),
    (
        "fuzzing",
        &[
            "cancel_key",
            "config",
            "guard",
            "ids",
            "prepared",
            "random",
            "server",
            "session",
            "shard",
            "slab",
            "time",
            "wire",
        ],
    ),
    ("main", &["arguments", "config", "control", "engine"]),
];

/// Rooms that build and pass their tests without glommio, io_uring and libc.
const PURE: &[&str] = &[
    "ids",
    "time",
    "limits",
    "random",
    "log_line",
    "slab",
    "metrics",
    "admin",
    "wire",
    "config",
    "server",
    "session",
    "cancel_key",
    "parameters",
    "pool",
    "ledger",
    "mail",
    "shard",
    "prepared",
    "guard",
];

fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// All files of `src/` as (room, path, text without comments).
fn files() -> Vec<(String, PathBuf, String)> {
    let mut found = Vec::new();
    let mut folders = vec![source()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let inner = path.strip_prefix(source()).unwrap();
                let room = inner.components().next().unwrap().as_os_str().to_string_lossy();
                let text = std::fs::read_to_string(&path).unwrap();
                let code: Vec<&str> =
                    text.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
                found.push((room.trim_end_matches(".rs").to_owned(), path, code.join("\n")));
            }
        }
    }
    found
}

/// Rooms named after `crate::` (or `pgpinion::` in main).
fn imports(code: &str) -> BTreeSet<String> {
    let mut rooms = BTreeSet::new();
    for prefix in ["crate::", "pgpinion::"] {
        for (at, _) in code.match_indices(prefix) {
            let rest = &code[at + prefix.len()..];
            let name: String = rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            if !name.is_empty() {
                rooms.insert(name);
            }
        }
    }
    rooms
}

#[test]
fn rooms_import_only_what_the_table_allows() {
    let table: BTreeMap<&str, &[&str]> = MAY_IMPORT.iter().copied().collect();
    for (room, path, code) in files() {
        if room == "lib" {
            continue;
        }
        let allowed = table.get(room.as_str()).unwrap_or_else(|| panic!("room `{room}` is not in the table"));
        for import in imports(&code) {
            assert!(
                import == room || allowed.contains(&import.as_str()),
                "{}: `{room}` imports `{import}`, which the table does not allow",
                path.display()
            );
        }
    }
}

#[test]
fn the_table_has_no_cycle() {
    let table: BTreeMap<&str, &[&str]> = MAY_IMPORT.iter().copied().collect();
    fn depth<'a>(room: &'a str, table: &BTreeMap<&'a str, &'a [&'a str]>, path: &mut Vec<&'a str>) {
        assert!(!path.contains(&room), "a cycle: {path:?} -> {room}");
        path.push(room);
        for next in table[room] {
            depth(next, table, path);
        }
        path.pop();
    }
    for room in table.keys() {
        depth(room, &table, &mut Vec::new());
    }
}

#[test]
fn pure_rooms_touch_no_kernel_and_no_clock() {
    for (room, path, code) in files() {
        if !PURE.contains(&room.as_str()) {
            continue;
        }
        for banned in [
            "glommio",
            "io_uring",
            "libc::",
            "async ",
            ".await;",
            ".await?",
            ".await)",
            ".await.",
            "std::time::Instant",
            "SystemTime",
            "unsafe",
        ] {
            // The one place that reads configuration files may name what it likes of the file system.
            assert!(!code.contains(banned), "{}: `{banned}` in a pure room", path.display());
        }
    }
}

#[test]
fn unsafe_code_lives_in_the_ring() {
    for (room, path, code) in files() {
        assert!(
            room == "ring" || !code.contains("unsafe {"),
            "{}: unsafe code outside the ring",
            path.display()
        );
    }
}

#[test]
fn files_fit_in_a_head() {
    for (_, path, _) in files() {
        if path.ends_with("tests.rs") {
            continue;
        }
        let lines = std::fs::read_to_string(&path).unwrap().lines().count();
        assert!(lines <= FILE_LINES_MAX, "{} has {lines} lines: make a folder of it", path.display());
    }
}

/// Tests at the end of a file included.
const FILE_LINES_MAX: usize = 800;
