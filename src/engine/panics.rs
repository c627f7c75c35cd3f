//! What a panic does. Nothing that a peer sends should cause one; should it happen all the same:
//!
//! - while an event of a connection is handled: that connection and whom it is linked to are closed, it is logged with
//!   its backtrace and counted, and the shard lives on ([`guarded`]);
//! - in a room whose invariants all connections rest on: the process ends with a message, for its account of who holds
//!   what cannot be trusted any more, and the service manager starts a new one ([`report`]);
//! - anywhere else on a shard's thread, a second one while condemning included: the same ([`EndsTheProcess`]). A shard
//!   that is missing would leave its clients without an answer, and its permits with nobody.

use crate::control::log::Logger;
use crate::ids::Owner;
use crate::log_line::Line;
use crate::shard::Shard;
use std::fmt::Display;
use std::io::{self, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Lets the shard handle an event of `owner`, whom a panic condemns. False: there was one.
#[inline]
pub fn guarded(shard: &mut Shard, owner: Owner, handle: impl FnOnce(&mut Shard)) -> bool {
    let outcome = catch_unwind(AssertUnwindSafe(|| handle(shard)));
    if outcome.is_err() {
        shard.condemn(owner);
    }
    outcome.is_ok()
}

/// From here on panics go to the log with their place, and those in the rooms of [`ACCOUNTS`] end the process.
pub fn report(logger: Logger) {
    std::panic::set_hook(Box::new(move |panic| {
        let backtrace = std::backtrace::Backtrace::force_capture();
        logger.line(Line::error(format!("panic: {panic}\n{backtrace}")));
        let place = panic.location().map(|location| location.file()).unwrap_or_default();
        if is_of_accounts(place) {
            end_process(&format_args!("an account of connections is wrong, ending: {panic}"));
        }
    }));
}

/// Ends the process when a panic unwinds through the frame that holds this. The hook has logged which.
pub struct EndsTheProcess;

impl Drop for EndsTheProcess {
    fn drop(&mut self) {
        if std::thread::panicking() {
            end_process(&"a shard panicked outside of any connection, ending");
        }
    }
}

/// The log's thread may not get to it any more, or be at work: one write, so that nothing comes between.
fn end_process(why: &dyn Display) -> ! {
    let _ = io::stderr().write_all(format!("pgpinion: {why}\n").as_bytes());
    std::process::abort();
}

/// Whether a source file belongs to a room whose assertions guard what all connections share.
fn is_of_accounts(file: &str) -> bool {
    let file = file.strip_suffix(".rs").unwrap_or(file);
    ACCOUNTS.iter().any(|room| match file.rsplit_once(room) {
        Some((before, after)) => {
            (before.is_empty() || before.ends_with('/')) && (after.is_empty() || after.starts_with('/'))
        }
        None => false,
    })
}

/// As the compiler names their files: relative to the package, or behind its folder.
const ACCOUNTS: [&str; 5] = ["src/engine/post", "src/ledger", "src/pool", "src/ring", "src/slab"];
