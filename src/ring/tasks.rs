//! The tasks of a shard: what is strictly sequential, such as connecting and logging in.
//!
//! A shard may sleep in its ring only when no task is runnable, and glommio does not tell. So all tasks are spawned
//! here, where their polls are counted and their wake-ups noted: before a turn, the driver yields until a
//! yield in which no other task was polled.
//!
//! The driver yields by waking itself. glommio runs a task queue first in, first out, and asks its reactor only
//! when the queue is empty; with the driver in it, it never is. So a yield costs no system call.

use std::any::Any;
use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use glommio::TaskQueueHandle;

/// Spawns the tasks of one shard. Clones are handles to the same.
#[derive(Clone)]
pub struct Tasks {
    shared: Rc<Shared>,
}

struct Shared {
    polls: Cell<u64>,
    alive: Cell<usize>,
    runnable: Arc<AtomicBool>,
    on_panic: Box<dyn Fn(Box<dyn Any + Send>)>,
}

/// A task as glommio sees it.
struct Counted {
    future: Pin<Box<dyn Future<Output = ()>>>,
    shared: Rc<Shared>,
    /// glommio's waker, and ours around it.
    waker: Option<(Waker, Waker)>,
}

/// Notes that a task is runnable before it makes it so.
struct Noting {
    inner: Waker,
    runnable: Arc<AtomicBool>,
}

impl Tasks {
    /// For the executor of this thread. `on_panic` gets what a task panicked with; only that task ends.
    pub fn new(on_panic: impl Fn(Box<dyn Any + Send>) + 'static) -> Self {
        let runnable = Arc::new(AtomicBool::new(false));
        let on_panic = Box::new(on_panic);
        Self { shared: Rc::new(Shared { polls: Cell::new(0), alive: Cell::new(0), runnable, on_panic }) }
    }

    /// Starts a task. It runs when the driver next [settles](Self::settle).
    pub fn spawn(&self, future: impl Future<Output = ()> + 'static) {
        let shared = Rc::clone(&self.shared);
        shared.runnable.store(true, Ordering::Relaxed);
        shared.alive.set(shared.alive.get() + 1);
        let task = Counted { future: Box::pin(future), shared, waker: None };
        // The default queue is where `run_shard` runs the driver, and it cannot be removed.
        match glommio::spawn_local_into(task, TaskQueueHandle::default()) {
            Ok(task) => drop(task.detach()),
            Err(error) => unreachable!("the default task queue is always there: {error}"),
        }
    }

    /// Tasks that have not ended.
    pub fn alive(&self) -> usize {
        self.shared.alive.get()
    }

    /// False if certainly no task is runnable.
    pub fn may_be_runnable(&self) -> bool {
        self.shared.runnable.load(Ordering::Relaxed)
    }

    /// Lets the tasks run until none is runnable.
    pub async fn settle(&self) {
        loop {
            let before = self.shared.polls.get();
            self.shared.runnable.store(false, Ordering::Relaxed);
            yield_once().await;
            if self.shared.polls.get() == before && !self.may_be_runnable() {
                return;
            }
        }
    }
}

async fn yield_once() {
    let mut yielded = false;
    poll_fn(|context| {
        if yielded {
            return Poll::Ready(());
        }
        yielded = true;
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

impl Counted {
    fn noting_waker(&mut self, waker: &Waker) -> Waker {
        match &self.waker {
            Some((inner, noting)) if inner.will_wake(waker) => noting.clone(),
            _ => {
                let runnable = Arc::clone(&self.shared.runnable);
                let noting = Waker::from(Arc::new(Noting { inner: waker.clone(), runnable }));
                self.waker = Some((waker.clone(), noting.clone()));
                noting
            }
        }
    }
}

impl Future for Counted {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        this.shared.polls.set(this.shared.polls.get() + 1);
        let waker = this.noting_waker(context.waker());
        let mut context = Context::from_waker(&waker);
        match catch_unwind(AssertUnwindSafe(|| this.future.as_mut().poll(&mut context))) {
            Ok(poll) => poll,
            Err(payload) => {
                (this.shared.on_panic)(payload);
                Poll::Ready(())
            }
        }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.shared.alive.set(self.shared.alive.get() - 1);
    }
}

impl Wake for Noting {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.runnable.store(true, Ordering::Relaxed);
        self.inner.wake_by_ref();
    }
}
