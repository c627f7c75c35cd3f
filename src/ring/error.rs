//! Why a shard's ring or executor could not be made, in words an operator can act on.

use std::{fmt, io};

use io_uring::{IoUring, Probe};

/// A shard cannot start.
#[derive(Debug)]
pub enum RingError {
    /// A setting is out of its range.
    Setting(&'static str),
    /// The kernel is older than 6.1; holds its release.
    KernelTooOld(String),
    /// io_uring is switched off for this process; holds the kernel's answer.
    Disabled(io::Error),
    /// The limit on locked memory is too low; holds it in bytes.
    LockedMemory(u64),
    /// The executor of the shard could not be made.
    Executor(String),
    /// Another system call failed: which, and why.
    System(&'static str, io::Error),
}

impl RingError {
    /// What the failure of `io_uring_setup` or a registration means.
    pub(super) fn of_setup(call: &'static str, error: io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::ENOSYS | libc::EPERM | libc::EACCES) => Self::Disabled(error),
            Some(libc::ENOMEM) if locked_memory_limit() != libc::RLIM_INFINITY => {
                Self::LockedMemory(locked_memory_limit())
            }
            Some(libc::EINVAL) if !kernel_is_new_enough(&kernel_release()) => {
                Self::KernelTooOld(kernel_release())
            }
            _ => Self::System(call, error),
        }
    }
}

impl fmt::Display for RingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Setting(what) => write!(f, "{what}"),
            Self::KernelTooOld(release) => write!(
                f,
                "the running kernel is {release}, but io_uring as it is used here needs Linux 6.1 or newer: \
                 boot a newer kernel"
            ),
            Self::Disabled(error) => write!(
                f,
                "io_uring is switched off for this process ({error}): set sysctl kernel.io_uring_disabled to 0 \
                 (or to 1 and run in the group of kernel.io_uring_group), and, in a container, allow the \
                 io_uring system calls in its seccomp profile"
            ),
            Self::LockedMemory(limit) => write!(
                f,
                "no memory for a shard's ring: the limit on locked memory (RLIMIT_MEMLOCK) is {limit} bytes, and \
                 shards need at least {LOCKED_MEMORY_MIN}: raise it with `ulimit -l`, or with LimitMEMLOCK= in the service's unit"
            ),
            Self::Executor(why) => write!(f, "the executor of a shard could not be made: {why}"),
            Self::System(call, error) => write!(f, "{call} failed: {error}"),
        }
    }
}

impl std::error::Error for RingError {}

/// Refuses kernels that lack what the ring is built on. Some of it fails only at the first receive, so that
/// the version is what to ask.
pub(super) fn check_kernel() -> Result<(), RingError> {
    let release = kernel_release();
    if kernel_is_new_enough(&release) { Ok(()) } else { Err(RingError::KernelTooOld(release)) }
}

/// Refuses to go on where io_uring is switched off: by sysctl, by a seccomp profile, or by how the kernel was built.
pub(super) fn check_io_uring() -> Result<(), RingError> {
    let ring = IoUring::new(1).map_err(|e| RingError::of_setup("io_uring_setup", e))?;
    ring.submitter()
        .register_probe(&mut Probe::new())
        .map_err(|e| RingError::of_setup("io_uring_register (probe)", e))
}

/// Refuses a limit below what glommio demands, in clearer words than its own.
pub(super) fn check_locked_memory() -> Result<(), RingError> {
    let limit = locked_memory_limit();
    if limit >= LOCKED_MEMORY_MIN { Ok(()) } else { Err(RingError::LockedMemory(limit)) }
}

/// An unreadable release counts as new: the calls that follow will tell.
fn kernel_is_new_enough(release: &str) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor) >= KERNEL_MIN,
        _ => true,
    }
}

fn kernel_release() -> String {
    // SAFETY: all zeroes is a valid utsname, and `uname` fills it with terminated strings.
    let release = unsafe {
        let mut name: libc::utsname = std::mem::zeroed();
        libc::uname(&raw mut name);
        name.release
    };
    release.iter().take_while(|c| **c != 0).map(|c| char::from(c.to_ne_bytes()[0])).collect()
}

fn locked_memory_limit() -> u64 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the kernel writes one rlimit, and `limit` is one.
    unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &raw mut limit) };
    limit.rlim_cur
}

/// SINGLE_ISSUER came with 6.0, DEFER_TASKRUN with 6.1.
const KERNEL_MIN: (u32, u32) = (6, 1);

/// What glommio asks for before it makes its rings.
const LOCKED_MEMORY_MIN: u64 = 512 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_compared_by_number() {
        for (release, enough) in [
            ("6.1.0", true),
            ("6.0.19", false),
            ("5.15.0-91-generic", false),
            ("6.18.44-fc", true),
            ("10.0", true),
        ] {
            assert_eq!(kernel_is_new_enough(release), enough, "{release}");
        }
    }

    #[test]
    fn messages_say_what_to_do() {
        let error = RingError::of_setup("io_uring_setup", io::Error::from_raw_os_error(libc::EPERM));
        assert!(error.to_string().contains("kernel.io_uring_disabled"), "{error}");
        let error = RingError::LockedMemory(65536);
        assert!(error.to_string().contains("RLIMIT_MEMLOCK"), "{error}");
        let error = RingError::KernelTooOld("5.10.0".into());
        assert!(error.to_string().contains("5.10.0"), "{error}");
    }
}
