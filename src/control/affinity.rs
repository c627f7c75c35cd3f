//! Which CPUs there are, and threads that keep to those the shards do not use.

use std::cell::Cell;
use std::io;
use std::thread::{self, JoinHandle};

use core_affinity::CoreId;

/// The CPUs this thread may run on, in ascending order. Ask before pinning anything.
pub fn cpus_allowed() -> io::Result<Vec<usize>> {
    let cores = core_affinity::get_core_ids().ok_or_else(io::Error::last_os_error)?;
    let mut cpus: Vec<usize> = cores.into_iter().map(|core| core.id).collect();
    cpus.sort_unstable();
    Ok(cpus)
}

/// Starts the threads of control, in turn on each of the housekeeping CPUs.
#[derive(Debug)]
pub struct Housekeeping {
    cpus: Vec<usize>,
    started: Cell<usize>,
}

impl Housekeeping {
    /// On these CPUs; on whichever the kernel likes if there are none.
    pub fn new(cpus: &[usize]) -> Self {
        Self { cpus: cpus.to_vec(), started: Cell::new(0) }
    }

    /// Starts a thread. The kernel shows at most 15 bytes of its name.
    pub fn spawn(&self, name: &str, body: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
        let cpu = self.next();
        thread::Builder::new().name(name.to_owned()).spawn(move || {
            if let Some(id) = cpu {
                // The CPU was in the affinity mask when the configuration was read. Should it be gone, the thread is as
                // useful elsewhere.
                core_affinity::set_for_current(CoreId { id });
            }
            body();
        })
    }

    fn next(&self) -> Option<usize> {
        let turn = self.started.replace(self.started.get().wrapping_add(1));
        self.cpus.get(turn.checked_rem(self.cpus.len())?).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_are_pinned_in_turn() {
        let allowed = cpus_allowed().unwrap();
        let last = *allowed.last().unwrap();
        let (send, receive) = crossbeam_channel::unbounded();
        let see = |housekeeping: &Housekeeping| {
            let send = send.clone();
            housekeeping
                .spawn("test", move || send.send(cpus_allowed().unwrap()).unwrap())
                .unwrap()
                .join()
                .unwrap();
            receive.recv().unwrap()
        };
        let pinned = Housekeeping::new(&[last, allowed[0]]);
        assert_eq!([see(&pinned), see(&pinned), see(&pinned)], [[last], [allowed[0]], [last]]);
        assert_eq!(see(&Housekeeping::new(&[])), allowed);
    }
}
