//! The limits of this process.

use std::io;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// How many file descriptors the process may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptors {
    /// What holds.
    pub soft: u64,
    /// What it may be raised to.
    pub hard: u64,
}

/// Raises `RLIMIT_NOFILE` as far as an ordinary process may, and tells what holds then. Compare it with
/// `Config::descriptors_needed`.
pub fn raise_descriptors() -> io::Result<Descriptors> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    }
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    Ok(Descriptors { soft, hard })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_soft_limit_becomes_the_hard_one() {
        let raised = raise_descriptors().unwrap();
        assert_eq!(raised.soft, raised.hard);
        assert_eq!(raise_descriptors().unwrap(), raised);
    }
}
