//! The ring against the kernel, over socket pairs and loopback.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::fs;
use std::future::Future;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::rc::Rc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Poll, Waker};
use std::thread;
use std::time::Duration;

use bytes::Bytes;

use super::*;

/// Tests that measure time or load all cores run one after the other.
static ALONE: Mutex<()> = Mutex::new(());

/// Longer than anything takes; a test that gets there has failed.
const PATIENCE: Duration = Duration::from_secs(60);

fn small() -> RingSettings {
    RingSettings {
        sq_entries: 64,
        cq_entries: 256,
        recv_buffers: 64,
        recv_buffer_bytes: 4096,
        ..Default::default()
    }
}

fn ring(settings: &RingSettings) -> Ring {
    Ring::new(settings).unwrap()
}

/// Turns until `done`, handing each event to `see`.
fn drive(ring: &Ring, mut see: impl FnMut(Event), mut done: impl FnMut() -> bool) {
    let end = clock::now() + PATIENCE;
    while !done() {
        assert!(clock::now() < end, "nothing happens any more: {:?}", ring.stats());
        // What is sent at once is told before the turn sleeps, and may be all that was waited for.
        ring.turn_until(|| if done() { Instant::default() } else { end }, &mut see).unwrap();
    }
}

/// The same for a `done` that has turns of its own: it is asked between turns only.
fn drive_between(ring: &Ring, mut see: impl FnMut(Event), mut done: impl FnMut() -> bool) {
    let end = clock::now() + PATIENCE;
    while !done() {
        assert!(clock::now() < end, "nothing happens any more: {:?}", ring.stats());
        ring.turn(end, &mut see).unwrap();
    }
}

/// Turns until nothing is in flight but the doorbell, and checks that nothing is lost.
fn check_nothing_held(ring: &Ring) {
    drive(ring, |_| {}, || ring.stats().sockets == 0 && ring.stats().in_flight <= 1);
    assert_eq!(ring.stats().buffers_free, ring.stats().buffers);
}

fn pair() -> (OwnedFd, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    (ours.into(), theirs)
}

fn tcp_pair() -> (OwnedFd, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let theirs = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (listener.accept().unwrap().0.into(), theirs)
}

/// Runs a test that concerns the whole process in one of its own.
fn in_own_process(name: &str, test: impl FnOnce()) {
    if std::env::var_os(OWN_PROCESS).is_some() {
        return test();
    }
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", &format!("ring::tests::{name}"), "--nocapture"]).env(OWN_PROCESS, "1");
    let output = command.output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && out.contains("1 passed"), "{out}{err}");
}

const OWN_PROCESS: &str = "PGPINION_TEST_IN_OWN_PROCESS";

/// Bytes in which a gap or a swap shows.
fn pattern(length: usize, seed: u32) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2_654_435_761) | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state as u8
    };
    std::iter::repeat_with(next).take(length).collect()
}

fn set_buffer(fd: &impl AsRawFd, name: i32, bytes: i32) {
    // SAFETY: the kernel reads one int.
    let result =
        unsafe { libc::setsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, name, (&raw const bytes).cast(), 4) };
    assert_eq!(result, 0);
}

fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Runs tasks of a shard until `main` ends.
fn on_shard<F: Future<Output = ()> + 'static>(main: impl FnOnce(Ring, Tasks) -> F + Send) {
    run_shard(None, || async {
        let ring = ring(&small());
        let tasks = Tasks::new(|panic| std::panic::resume_unwind(panic));
        let finished = Rc::new(Cell::new(false));
        let (flag, main) = (Rc::clone(&finished), main(ring.clone(), tasks.clone()));
        tasks.spawn(async move {
            main.await;
            flag.set(true);
        });
        let end = clock::now() + PATIENCE;
        loop {
            if tasks.may_be_runnable() {
                tasks.settle().await;
            }
            if finished.get() {
                break;
            }
            assert!(clock::now() < end, "nothing happens any more: {:?}", ring.stats());
            ring.turn(end, &mut |_| {}).unwrap();
        }
    })
    .unwrap();
}

#[test]
fn settings_out_of_range_are_refused() {
    for settings in [
        RingSettings { recv_buffers: 500, ..small() },
        RingSettings { recv_buffers: 0, ..small() },
        RingSettings { sq_entries: 0, ..small() },
        RingSettings { sq_entries: 1024, cq_entries: 512, ..small() },
        RingSettings { recv_buffer_bytes: 1, ..small() },
    ] {
        assert!(matches!(Ring::new(&settings), Err(RingError::Setting(_))), "{settings:?}");
    }
}

#[test]
fn what_is_sent_arrives_and_what_arrives_is_delivered() {
    let _alone = ALONE.lock();
    let ring = ring(&small());
    let (ours, mut theirs) = pair();
    let socket = ring.adopt(ours, Owner(1));
    ring.set_owner(socket, Owner(7));
    ring.start_receiving(socket);
    ring.start_receiving(socket);
    theirs.write_all(b"hello").unwrap();
    let seen = RefCell::new(Vec::new());
    drive(
        &ring,
        |event| match event {
            Event::Received { socket: from, owner, buffer } => {
                assert_eq!((from, owner), (socket, Owner(7)));
                ring.send(socket, Outgoing::Buffer(buffer.range(1..5)));
                ring.send(socket, Outgoing::Own(Bytes::from_static(b"!")));
                seen.borrow_mut().extend_from_slice(&buffer);
            }
            Event::Sent { bytes, unsent, .. } => assert_eq!((bytes, unsent), (5, 0)),
            other => panic!("{other:?}"),
        },
        || !seen.borrow().is_empty() && ring.unsent(socket) == 0,
    );
    let mut answer = [0; 5];
    theirs.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"ello!");
    theirs.shutdown(Shutdown::Write).unwrap();
    let ended = Cell::new(false);
    drive(&ring, |event| ended.set(matches!(event, Event::Ended { error: None, .. })), || ended.get());
    ring.close(socket, CloseMode::Now);
    check_nothing_held(&ring);
}

#[test]
fn many_pieces_arrive_in_order_through_a_narrow_socket() {
    let _alone = ALONE.lock();
    for (count, length) in [(1, 3_000_000), (3, 700_001), (1000, 1009), (5000, 7)] {
        let ring = ring(&small());
        let (ours, mut theirs) = pair();
        set_buffer(&ours, libc::SO_SNDBUF, 4608);
        let sent = pattern(count * length, count as u32);
        let socket = ring.adopt(ours, Owner(1));
        let reader = thread::spawn(move || {
            let mut read = Vec::new();
            theirs.read_to_end(&mut read).unwrap();
            read
        });
        for piece in sent.chunks(length) {
            ring.send(socket, Outgoing::Own(Bytes::copy_from_slice(piece)));
        }
        assert_eq!(ring.unsent(socket), sent.len());
        let confirmed = Cell::new(0);
        drive(
            &ring,
            |event| match event {
                Event::Sent { bytes, unsent, .. } => {
                    confirmed.set(confirmed.get() + bytes);
                    assert_eq!(unsent, sent.len() - confirmed.get());
                }
                Event::Unsent { bytes, .. } => confirmed.set(confirmed.get() - bytes),
                other => panic!("{other:?}"),
            },
            || ring.unsent(socket) == 0,
        );
        ring.close(socket, CloseMode::AfterSending(LINGER));
        check_nothing_held(&ring);
        assert!(reader.join().unwrap() == sent, "{count} pieces of {length}");
    }
}

#[test]
fn one_send_carries_all_that_a_turn_queued() {
    let _alone = ALONE.lock();
    let ring = ring(&small());
    let (ours, mut theirs) = pair();
    let socket = ring.adopt(ours, Owner(1));
    for _ in 0..10 {
        ring.send(socket, Outgoing::Own(Bytes::from_static(b"0123456789")));
    }
    let sends = Cell::new(0);
    drive(&ring, |_| sends.set(sends.get() + 1), || ring.unsent(socket) == 0);
    assert_eq!(sends.get(), 1);
    let mut all = [0; 100];
    theirs.read_exact(&mut all).unwrap();
    assert_eq!(all, *b"0123456789".repeat(10));
}

#[test]
fn a_dead_peer_is_reported() {
    let _alone = ALONE.lock();
    let ring = ring(&small());
    let (ours, theirs) = pair();
    drop(theirs);
    let socket = ring.adopt(ours, Owner(1));
    ring.send(socket, Outgoing::Own(Bytes::from_static(b"anybody?")));
    let error = Cell::new(None);
    drive(
        &ring,
        |event| match event {
            Event::Ended { error: Some(errno), .. } => error.set(Some(errno)),
            Event::Sent { .. } => {}
            other => panic!("{other:?}"),
        },
        || error.get().is_some(),
    );
    assert_eq!(error.get(), Some(libc::EPIPE));
    ring.send(socket, Outgoing::Own(Bytes::from_static(b"still")));
    assert_eq!(ring.unsent(socket), 0);
    ring.close(socket, CloseMode::AfterSending(LINGER));
    check_nothing_held(&ring);
}

#[test]
fn a_ring_out_of_buffers_recovers() {
    let _alone = ALONE.lock();
    let ring = ring(&RingSettings { recv_buffers: 8, recv_buffer_bytes: 512, ..small() });
    let mut peers = Vec::new();
    for number in 0..32 {
        let (ours, mut theirs) = pair();
        theirs.write_all(&pattern(4000, number)).unwrap();
        theirs.shutdown(Shutdown::Write).unwrap();
        ring.start_receiving(ring.adopt(ours, Owner(u64::from(number))));
        peers.push(theirs);
    }
    // Everything is held until nothing more can come, then let go.
    let held = RefCell::new(Vec::new());
    let received: RefCell<HashMap<Owner, Vec<u8>>> = RefCell::default();
    let ended = Cell::new(0);
    drive(
        &ring,
        |event| match event {
            Event::Received { owner, buffer, .. } => {
                received.borrow_mut().entry(owner).or_default().extend_from_slice(&buffer);
                held.borrow_mut().push(buffer);
            }
            Event::Ended { socket, error: None, .. } => {
                ended.set(ended.get() + 1);
                ring.close(socket, CloseMode::Now);
            }
            Event::Closed { .. } => {}
            other => panic!("{other:?}"),
        },
        || {
            if held.borrow().len() == 8 {
                held.borrow_mut().clear();
            }
            // The last few do not fill the ring.
            if ring.stats().in_flight <= 1 {
                held.borrow_mut().clear();
            }
            ended.get() == 32
        },
    );
    held.borrow_mut().clear();
    assert!(ring.stats().out_of_buffers > 0);
    for number in 0..32 {
        assert!(received.borrow()[&Owner(u64::from(number))] == pattern(4000, number), "socket {number}");
    }
    check_nothing_held(&ring);
}

/// A relay as the engine is one: it stops receiving above a mark and goes on below it.
struct Relay {
    ring: Ring,
    others: HashMap<SocketId, SocketId>,
    unsent_max: usize,
}

impl Relay {
    fn join(&mut self, one: OwnedFd, other: OwnedFd) {
        let (one, other) = (self.ring.adopt(one, Owner(0)), self.ring.adopt(other, Owner(0)));
        self.others.extend([(one, other), (other, one)]);
        self.ring.start_receiving(one);
        self.ring.start_receiving(other);
    }

    fn see(&mut self, event: Event) {
        match event {
            Event::Received { socket, buffer, .. } => {
                let other = self.others[&socket];
                self.ring.send(other, Outgoing::Buffer(buffer));
                let unsent = self.ring.unsent(other);
                self.unsent_max = self.unsent_max.max(unsent);
                if unsent > HIGH_WATER {
                    self.ring.stop_receiving(socket);
                }
            }
            Event::Sent { socket, unsent, .. } if unsent < HIGH_WATER / 2 => {
                self.ring.start_receiving(self.others[&socket]);
            }
            Event::Ended { socket, .. } => {
                self.ring.close(self.others[&socket], CloseMode::AfterSending(LINGER));
                self.ring.close(socket, CloseMode::AfterSending(LINGER));
            }
            _ => {}
        }
    }
}

const HIGH_WATER: usize = 64 * 1024;

#[test]
fn a_reader_that_stops_holds_up_nobody_else() {
    let _alone = ALONE.lock();
    let ring = ring(&small());
    let mut relay = Relay { ring: ring.clone(), others: HashMap::new(), unsent_max: 0 };
    let total = 20_000_000;
    let (slow_in, mut writer) = pair();
    let (slow_out, mut reader) = pair();
    relay.join(slow_in, slow_out);
    let (brisk_in, mut asking) = pair();
    let (brisk_out, mut answering) = pair();
    relay.join(brisk_in, brisk_out);
    let writing = thread::spawn(move || {
        writer.write_all(&pattern(total, 5)).unwrap();
        writer.shutdown(Shutdown::Write).unwrap();
        let mut rest = Vec::new();
        writer.read_to_end(&mut rest).unwrap();
    });
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let done = &done;
        scope.spawn(move || {
            let mut question = [0; 100];
            // Round trips go on while the other connection's reader reads nothing.
            for number in 0..5000 {
                let text = pattern(100, number);
                asking.write_all(&text).unwrap();
                answering.read_exact(&mut question).unwrap();
                assert!(question == *text);
                answering.write_all(&question).unwrap();
                asking.read_exact(&mut question).unwrap();
            }
            // Only now the slow one begins to read.
            let mut read = Vec::new();
            reader.read_to_end(&mut read).unwrap();
            assert!(read == pattern(total, 5));
            done.store(true, Ordering::SeqCst);
            drop(asking);
        });
        let bell = ring.doorbell();
        scope.spawn(move || {
            while !done.load(Ordering::SeqCst) {
                thread::sleep(Duration::from_millis(1));
            }
            bell.ring();
        });
        drive(&ring, |event| relay.see(event), || done.load(Ordering::SeqCst));
    });
    drive(&ring, |event| relay.see(event), || ring.stats().sockets == 0);
    writing.join().unwrap();
    // A mark's worth, and what a multishot receive may deliver before the stop reaches it.
    let bound = HIGH_WATER + usize::from(small().recv_buffers) * small().recv_buffer_bytes as usize;
    assert!(relay.unsent_max <= bound, "{} bytes were queued", relay.unsent_max);
    check_nothing_held(&ring);
}

#[test]
fn receiving_stops_and_goes_on_without_losing_a_byte() {
    let _alone = ALONE.lock();
    let ring = ring(&small());
    let (ours, mut theirs) = pair();
    let socket = ring.adopt(ours, Owner(1));
    let sent = pattern(3_000_000, 3);
    let copy = sent.clone();
    let writing = thread::spawn(move || theirs.write_all(&copy).unwrap());
    ring.start_receiving(socket);
    let received = RefCell::new(Vec::new());
    let ended = Cell::new(false);
    let mut turns = 0u32;
    drive_between(
        &ring,
        |event| match event {
            Event::Received { buffer, .. } => received.borrow_mut().extend_from_slice(&buffer),
            Event::Ended { .. } => ended.set(true),
            other => panic!("{other:?}"),
        },
        || {
            turns += 1;
            ring.stop_receiving(socket);
            if turns.is_multiple_of(3) {
                // While the cancellation is on its way.
                ring.turn(Instant::from_nanos(0), &mut |event| match event {
                    Event::Received { buffer, .. } => received.borrow_mut().extend_from_slice(&buffer),
                    Event::Ended { .. } => ended.set(true),
                    other => panic!("{other:?}"),
                })
                .unwrap();
            }
            ring.start_receiving(socket);
            ended.get()
        },
    );
    writing.join().unwrap();
    assert!(*received.borrow() == sent);
    ring.close(socket, CloseMode::Now);
    check_nothing_held(&ring);
}

#[test]
fn a_stopped_socket_receives_nothing() {
    let _alone = ALONE.lock();
    let ring = ring(&small());
    let (ours, mut theirs) = pair();
    let socket = ring.adopt(ours, Owner(1));
    ring.start_receiving(socket);
    ring.turn(Instant::from_nanos(0), &mut |_| {}).unwrap();
    ring.stop_receiving(socket);
    drive(&ring, |event| panic!("{event:?}"), || ring.stats().in_flight <= 1);
    theirs.write_all(b"later").unwrap();
    ring.turn(clock::now() + Duration::from_millis(30), &mut |event| panic!("{event:?}")).unwrap();
    ring.start_receiving(socket);
    let received = Cell::new(false);
    drive(&ring, |event| received.set(matches!(event, Event::Received { .. })), || received.get());
}

#[test]
fn what_arrives_is_told_from_the_low_water_mark_on() {
    let _alone = ALONE.lock();
    let ring = ring(&small());
    let (ours, mut theirs) = tcp_pair();
    let socket = ring.adopt(ours, Owner(1));
    ring.start_receiving(socket);
    ring.set_low_water(socket, 1000);
    ring.turn(Instant::from_nanos(0), &mut |_| {}).unwrap();
    let wait = || clock::now() + Duration::from_millis(30);
    let received = Cell::new(0);
    let count = |event| match event {
        Event::Received { buffer, .. } => received.set(received.get() + buffer.len()),
        other => panic!("{other:?}"),
    };
    let arrived = |bytes| received.get() == bytes;
    theirs.write_all(&[0; 999]).unwrap();
    ring.turn(wait(), &mut |event| panic!("{event:?}")).unwrap();
    theirs.write_all(&[0]).unwrap();
    drive(&ring, count, || arrived(1000));
    theirs.write_all(&[0; 10]).unwrap();
    ring.turn(wait(), &mut |event| panic!("{event:?}")).unwrap();
    // A lower mark lets through what has come.
    ring.set_low_water(socket, 1);
    drive(&ring, count, || arrived(1010));
    ring.set_low_water(socket, 1000);
    theirs.write_all(&[0; 10]).unwrap();
    theirs.shutdown(Shutdown::Write).unwrap();
    let ended = Cell::new(false);
    let to_the_end = |event| match event {
        Event::Ended { .. } => ended.set(true),
        other => count(other),
    };
    drive(&ring, to_the_end, || ended.get());
    assert_eq!(received.get(), 1020, "what the peer sent last is told with its end");
}

#[test]
fn loopback_has_the_plainest_congestion_control() {
    let of = |fd: &OwnedFd| {
        let (mut name, mut length) = ([0u8; 16], 16);
        // SAFETY: the kernel writes a name of up to 16 bytes, and how long it is.
        let result = unsafe {
            let (name, length) = (name.as_mut_ptr().cast(), &raw mut length);
            libc::getsockopt(fd.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_CONGESTION, name, length)
        };
        assert_eq!(result, 0);
        name.split(|&byte| byte == 0).next().unwrap().to_vec()
    };
    for peer in ["127.0.0.1", "127.1.2.3", "::1", "::ffff:127.0.0.1"] {
        let (ours, _theirs) = tcp_pair();
        set_loopback_congestion(ours.as_fd(), peer.parse().unwrap()).unwrap();
        assert_eq!(of(&ours), b"reno", "{peer}");
    }
    let (ours, _theirs) = tcp_pair();
    let before = of(&ours);
    set_loopback_congestion(ours.as_fd(), "192.0.2.1".parse().unwrap()).unwrap();
    assert_eq!(of(&ours), before, "other peers keep what the host has");
}

#[test]
fn a_completion_that_comes_too_late_is_dropped_and_its_buffer_returned() {
    let _alone = ALONE.lock();
    let ring = ring(&small());
    let (ours, mut theirs) = pair();
    let first = ring.adopt(ours, Owner(1));
    ring.start_receiving(first);
    ring.turn(Instant::from_nanos(0), &mut |_| {}).unwrap();
    theirs.write_all(b"too late").unwrap();
    // The kernel has the bytes for the first socket when its slot goes to a second.
    let removed = ring.state().sockets.table.remove(first.into());
    let (ours, mut theirs_second) = pair();
    let second = ring.adopt(ours, Owner(2));
    assert_eq!((second.slot, second.generation), (first.slot, first.generation + 1));
    ring.start_receiving(second);
    drop(theirs);
    drive(&ring, |event| panic!("{event:?}"), || ring.stats().in_flight == 2);
    assert_eq!(ring.stats().buffers_free, ring.stats().buffers);
    theirs_second.write_all(b"in time").unwrap();
    let received = Cell::new(false);
    drive(
        &ring,
        |event| match event {
            Event::Received { owner: Owner(2), buffer, .. } => received.set(&*buffer == b"in time"),
            other => panic!("{other:?}"),
        },
        || received.get(),
    );
    drop(removed);
    for id in [first, second] {
        ring.close(id, CloseMode::Now);
    }
    check_nothing_held(&ring);
}

#[test]
fn a_burst_larger_than_both_queues_passes() {
    let _alone = ALONE.lock();
    let settings = RingSettings { sq_entries: 8, cq_entries: 16, recv_buffers: 1024, ..small() };
    let ring = ring(&settings);
    let mut peers = Vec::new();
    let mut ids = Vec::new();
    for number in 0..500 {
        let (ours, theirs) = pair();
        let socket = ring.adopt(ours, Owner(number));
        ring.start_receiving(socket);
        ring.send(socket, Outgoing::Own(Bytes::from_static(b"ping")));
        ids.push(socket);
        peers.push(theirs);
    }
    let sent = Cell::new(0);
    drive(
        &ring,
        |event| sent.set(sent.get() + usize::from(matches!(event, Event::Sent { .. }))),
        || sent.get() == 500,
    );
    for peer in &mut peers {
        let mut ping = [0; 4];
        peer.read_exact(&mut ping).unwrap();
        peer.write_all(b"pong").unwrap();
    }
    let received = Cell::new(0);
    drive(
        &ring,
        |event| received.set(received.get() + usize::from(matches!(event, Event::Received { .. }))),
        || received.get() == 500,
    );
    for id in ids {
        ring.close(id, CloseMode::Now);
    }
    check_nothing_held(&ring);
}

#[test]
fn closing_after_sending_delivers_everything_though_bytes_are_unread() {
    let _alone = ALONE.lock();
    for _ in 0..20 {
        let ring = ring(&small());
        let (ours, mut theirs) = tcp_pair();
        set_buffer(&ours, libc::SO_SNDBUF, 8192);
        let socket = ring.adopt(ours, Owner(1));
        // Unread by us when we close: without lingering, it would reset the connection.
        theirs.write_all(&pattern(20_000, 1)).unwrap();
        let sent = pattern(600_000, 2);
        ring.send(socket, Outgoing::Own(Bytes::from(sent.clone())));
        ring.close(socket, CloseMode::AfterSending(LINGER));
        let reader = thread::spawn(move || {
            let mut read = Vec::new();
            let mut piece = vec![0; 65536];
            loop {
                // Still talking while we say good-bye.
                let _ = theirs.write_all(b"and another thing");
                match theirs.read(&mut piece) {
                    Ok(0) => return Ok(read),
                    Ok(count) => read.extend_from_slice(&piece[..count]),
                    Err(error) => return Err(error),
                }
            }
        });
        let events = RefCell::new(Vec::new());
        drive(&ring, |event| events.borrow_mut().push(event), || ring.stats().sockets == 0);
        ring.turn(clock::now(), &mut |event| events.borrow_mut().push(event)).unwrap();
        assert!(
            matches!(events.borrow()[..], [Event::Closed { owner: Owner(1), .. }]),
            "{:?}",
            events.borrow()
        );
        assert!(reader.join().unwrap().unwrap() == sent);
        check_nothing_held(&ring);
    }
}

#[test]
fn lingering_ends_by_itself_or_by_closing_now() {
    let _alone = ALONE.lock();
    let ring = ring(&small());
    for (upgrade, least, most) in [(false, 1000, 1400), (true, 0, 300)] {
        let (ours, theirs) = tcp_pair();
        let socket = ring.adopt(ours, Owner(1));
        ring.start_receiving(socket);
        ring.send(socket, Outgoing::Own(Bytes::from_static(b"good-bye")));
        ring.close(socket, CloseMode::AfterSending(LINGER));
        let start = clock::now();
        let closed = Cell::new(0);
        if upgrade {
            ring.turn(clock::now(), &mut |_| {}).unwrap();
            ring.close(socket, CloseMode::Now);
            ring.close(socket, CloseMode::Now);
        }
        drive(
            &ring,
            |event| {
                assert!(matches!(event, Event::Closed { .. }), "{event:?}");
                closed.set(closed.get() + 1);
            },
            || closed.get() == 1,
        );
        let took = clock::now().since(start).as_millis();
        assert!((least..most).contains(&took), "{took} ms");
        drop(theirs);
        check_nothing_held(&ring);
        assert_eq!(closed.get(), 1);
    }
}

#[test]
fn a_socket_is_taken_out_with_what_it_has_unread() {
    let _alone = ALONE.lock();
    let ring = ring(&small());
    let (ours, mut theirs) = pair();
    let socket = ring.adopt(ours, Owner(9));
    ring.start_receiving(socket);
    ring.turn(clock::now(), &mut |_| {}).unwrap();
    theirs.write_all(b"before").unwrap();
    ring.take(socket);
    let (received, taken) = (RefCell::new(Vec::new()), RefCell::new(None));
    drive(
        &ring,
        |event| match event {
            Event::Received { buffer, .. } => received.borrow_mut().extend_from_slice(&buffer),
            Event::Taken { owner: Owner(9), fd, .. } => *taken.borrow_mut() = Some(fd),
            other => panic!("{other:?}"),
        },
        || taken.borrow().is_some(),
    );
    let mut stream = UnixStream::from(taken.take().unwrap());
    theirs.write_all(b" after").unwrap();
    theirs.shutdown(Shutdown::Write).unwrap();
    stream.read_to_end(&mut received.borrow_mut()).unwrap();
    assert_eq!(*received.borrow(), b"before after");
    check_nothing_held(&ring);
}

#[test]
fn a_socket_is_taken_out_when_it_has_sent_what_it_has() {
    let _alone = ALONE.lock();
    // What goes at once, and what waits for the peer to read.
    for length in [10, 4 << 20] {
        let ring = ring(&small());
        let (ours, mut theirs) = pair();
        let socket = ring.adopt(ours, Owner(9));
        ring.start_receiving(socket);
        ring.send(socket, Outgoing::Own(Bytes::from(pattern(length, 7))));
        let (sent, taken) = (Cell::new(0), RefCell::new(None));
        let reader = thread::spawn(move || {
            let mut read = vec![0; length];
            theirs.read_exact(&mut read).unwrap();
            (theirs, read)
        });
        drive(
            &ring,
            |event| match event {
                Event::Sent { bytes, .. } => {
                    sent.set(sent.get() + bytes);
                    // Told before the system call that does it, if it is small.
                    ring.take(socket);
                }
                Event::Unsent { bytes, .. } => sent.set(sent.get() - bytes),
                Event::Taken { owner: Owner(9), fd, .. } => *taken.borrow_mut() = Some((fd, sent.get())),
                other => panic!("{other:?}"),
            },
            || taken.borrow().is_some(),
        );
        let (fd, sent_before) = taken.take().unwrap();
        assert_eq!(sent_before, length, "all is sent, and told");
        let (theirs, read) = reader.join().unwrap();
        assert_eq!(read, pattern(length, 7));
        drop((fd, theirs));
        check_nothing_held(&ring);
    }
}

#[test]
fn a_socket_that_cannot_send_is_taken_out_all_the_same() {
    let _alone = ALONE.lock();
    let ring = ring(&small());
    let (ours, theirs) = pair();
    let socket = ring.adopt(ours, Owner(9));
    ring.send(socket, Outgoing::Own(Bytes::from(pattern(4 << 20, 7))));
    ring.turn(clock::now(), &mut |_| {}).unwrap();
    ring.take(socket);
    drop(theirs);
    let (ended, taken) = (Cell::new(false), Cell::new(false));
    drive(
        &ring,
        |event| match event {
            Event::Sent { .. } => {}
            Event::Ended { error: Some(_), .. } => ended.set(true),
            Event::Taken { .. } => taken.set(true),
            other => panic!("{other:?}"),
        },
        || taken.get(),
    );
    assert!(ended.get(), "and it is told first that it ended");
    check_nothing_held(&ring);
}

#[test]
fn a_hundred_thousand_sockets_come_and_go() {
    in_own_process("a_hundred_thousand_sockets_come_and_go", || {
        let ring = ring(&small());
        let listener = tcp_listener("127.0.0.1:0".parse().unwrap(), 128).unwrap();
        let SocketAddress::Inet(address) = local_address(listener.as_fd()).unwrap() else { unreachable!() };
        let listening = ring.listen(listener, 3);
        let before = descriptors();
        let mut random = 1u64;
        let mut peers: VecDeque<(SocketId, UnixStream)> = VecDeque::new();
        let mut streams: VecDeque<TcpStream> = VecDeque::new();
        let adopted = Cell::new(0);
        let mut see = |event| match event {
            Event::Accepted { tag: 3, fd } => {
                adopted.set(adopted.get() + 1);
                let socket = ring.adopt(fd, Owner(adopted.get()));
                ring.start_receiving(socket);
                ring.send(socket, Outgoing::Own(Bytes::from_static(b"welcome")));
            }
            Event::Received { socket, buffer, .. } => ring.send(socket, Outgoing::Buffer(buffer)),
            Event::Ended { socket, error, .. } => {
                ring.close(
                    socket,
                    if error.is_some() { CloseMode::Now } else { CloseMode::AfterSending(LINGER) },
                );
            }
            Event::Sent { .. } | Event::Unsent { .. } | Event::Closed { .. } => {}
            other => panic!("{other:?}"),
        };
        for number in 0..100_000u64 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let dice = random >> 33;
            if number % 16 == 0 {
                let mut stream = TcpStream::connect(address).unwrap();
                stream.write_all(b"hello").unwrap();
                streams.push_back(stream);
            } else {
                let (ours, mut theirs) = pair();
                let socket = ring.adopt(ours, Owner(0));
                ring.start_receiving(socket);
                if dice.is_multiple_of(2) {
                    theirs.write_all(b"hello").unwrap();
                }
                peers.push_back((socket, theirs));
            }
            if dice % 8 < 3 {
                ring.turn(clock::now(), &mut see).unwrap();
            }
            if (peers.len() > 100 || dice.is_multiple_of(5))
                && let Some((socket, peer)) = peers.pop_front()
            {
                match dice % 7 {
                    0 => ring.close(socket, CloseMode::Now),
                    1 => ring.close(socket, CloseMode::AfterSending(LINGER)),
                    _ => {}
                }
                drop(peer);
            }
            if streams.len() > 50 {
                streams.pop_front();
            }
        }
        peers.clear();
        // Those that still wait to be accepted are in the kernel's queue.
        drive(&ring, &mut see, || adopted.get() == 6250);
        streams.clear();
        drive(&ring, &mut see, || ring.stats().sockets == 0);
        ring.close_listener(listening);
        check_nothing_held(&ring);
        assert_eq!(descriptors(), before - 1);
    });
}

#[test]
fn a_ring_leaves_nothing_behind() {
    in_own_process("a_ring_leaves_nothing_behind", || {
        let before = descriptors();
        for _ in 0..50 {
            let ring = ring(&small());
            let listener = tcp_listener("127.0.0.1:0".parse().unwrap(), 16).unwrap();
            ring.listen(listener, 0);
            let (ours, mut theirs) = pair();
            let socket = ring.adopt(ours, Owner(1));
            ring.start_receiving(socket);
            ring.send(socket, Outgoing::Own(Bytes::from(vec![1; 10_000_000])));
            theirs.write_all(b"in a buffer").unwrap();
            ring.turn(clock::now(), &mut |_| {}).unwrap();
        }
        assert_eq!(descriptors(), before);
    });
}

#[test]
fn accepting_recovers_when_descriptors_are_free_again() {
    in_own_process("accepting_recovers_when_descriptors_are_free_again", || {
        let ring = ring(&small());
        let listener = tcp_listener("127.0.0.1:0".parse().unwrap(), 16).unwrap();
        let SocketAddress::Inet(address) = local_address(listener.as_fd()).unwrap() else { unreachable!() };
        let (ours, theirs) = pair();
        let victim = ring.adopt(ours, Owner(1));
        let client = TcpStream::connect(address).unwrap();
        ring.listen(listener, 4);
        // The kernel looks at the limit when the accept is submitted.
        let limit = limit_descriptors(None);
        limit_descriptors(Some(0));
        let failures = Cell::new(0);
        let start = clock::now();
        drive(
            &ring,
            |event| {
                assert!(matches!(event, Event::AcceptFailed { tag: 4, .. }), "{event:?}");
                failures.set(failures.get() + 1);
            },
            || failures.get() == 3,
        );
        let took = clock::now().since(start);
        limit_descriptors(Some(limit));
        assert!(took >= Duration::from_millis(190), "spins: {took:?}");
        let before = clock::now();
        ring.close(victim, CloseMode::Now);
        let accepted = Cell::new(false);
        drive(
            &ring,
            |event| accepted.set(accepted.get() || matches!(event, Event::Accepted { .. })),
            || accepted.get(),
        );
        assert!(clock::now().since(before) < Duration::from_millis(90), "waits though a socket was closed");
        drop((client, theirs));
    });
}

/// Sets the limit, if there is one to set, and returns the present one.
fn limit_descriptors(limit: Option<u64>) -> u64 {
    let mut value = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the kernel writes and reads one rlimit.
    unsafe {
        assert_eq!(libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut value), 0);
        let present = value.rlim_cur;
        if let Some(limit) = limit {
            value.rlim_cur = limit;
            assert_eq!(libc::setrlimit(libc::RLIMIT_NOFILE, &raw const value), 0);
        }
        present
    }
}

#[test]
fn no_ring_of_the_doorbell_is_lost() {
    let _alone = ALONE.lock();
    let ring = ring(&small());
    let (rung, answered) = (AtomicU64::new(0), AtomicU64::new(0));
    let bell = ring.doorbell();
    thread::scope(|scope| {
        scope.spawn(|| {
            for number in 1..=100_000 {
                rung.store(number, Ordering::Relaxed);
                bell.ring();
                // Each ring must be answered, whether it found the ring asleep, falling asleep or awake.
                let mut looks = 0u64;
                while answered.load(Ordering::Relaxed) < number {
                    looks += 1;
                    if looks.is_multiple_of(64) {
                        thread::yield_now()
                    } else {
                        std::hint::spin_loop()
                    }
                    assert!(looks < 1_000_000_000, "ring {number} was lost");
                }
            }
        });
        drive(
            &ring,
            |event| {
                assert!(matches!(event, Event::Doorbell), "{event:?}");
                answered.store(rung.load(Ordering::Relaxed), Ordering::Relaxed);
            },
            || answered.load(Ordering::Relaxed) == 100_000,
        );
    });
}

#[test]
fn a_turn_ends_at_its_deadline() {
    let _alone = ALONE.lock();
    for busy_poll in [Duration::ZERO, Duration::from_millis(5)] {
        let ring = ring(&RingSettings { busy_poll, ..small() });
        let until = clock::now() + Duration::from_millis(50);
        let turns = Cell::new(0);
        while clock::now() < until {
            ring.turn(until, &mut |event| panic!("{event:?}")).unwrap();
            turns.set(turns.get() + 1);
        }
        assert!(clock::now().since(until) < Duration::from_millis(30));
        assert!(turns.get() <= 3, "{} turns", turns.get());
    }
}

#[test]
fn busy_polling_sees_what_arrives() {
    let _alone = ALONE.lock();
    let ring = ring(&RingSettings { busy_poll: Duration::from_millis(20), ..small() });
    let (ours, mut theirs) = pair();
    ring.start_receiving(ring.adopt(ours, Owner(1)));
    let writing = thread::spawn(move || {
        for _ in 0..200 {
            theirs.write_all(b"x").unwrap();
            thread::sleep(Duration::from_micros(300));
        }
        theirs
    });
    let received = Cell::new(0);
    drive(
        &ring,
        |event| {
            let Event::Received { buffer, .. } = event else { panic!("{event:?}") };
            received.set(received.get() + buffer.len());
        },
        || received.get() == 200,
    );
    drop(writing.join().unwrap());
}

/// A value from one task to another of the same thread.
fn local_channel<T>() -> (impl FnOnce(T), impl Future<Output = T>) {
    let place: Rc<RefCell<(Option<T>, Option<Waker>)>> = Rc::new(RefCell::new((None, None)));
    let receiving = Rc::clone(&place);
    let send = move |value| {
        place.borrow_mut().0 = Some(value);
        let waker = place.borrow_mut().1.take();
        if let Some(waker) = waker {
            waker.wake();
        }
    };
    let receive = std::future::poll_fn(move |context| {
        let mut place = receiving.borrow_mut();
        match place.0.take() {
            Some(value) => Poll::Ready(value),
            None => {
                place.1 = Some(context.waker().clone());
                Poll::Pending
            }
        }
    });
    (send, receive)
}

#[test]
fn a_chain_of_tasks_runs_to_its_end() {
    let _alone = ALONE.lock();
    on_shard(|ring, tasks| async move {
        let (last, end) = local_channel();
        let mut next: Box<dyn FnOnce(u32)> = Box::new(last);
        // Spawned last to first, so that each wake-up goes to a task that was polled before its waker.
        for _ in 0..1000 {
            let (send, receive) = local_channel();
            let forward = std::mem::replace(&mut next, Box::new(send));
            tasks.spawn(async move { forward(receive.await + 1) });
        }
        let start = clock::now();
        ring.sleep_until(start + Duration::from_millis(20)).await;
        next(0);
        assert_eq!(end.await, 1000);
        assert!(clock::now().since(start) < Duration::from_secs(2), "slept on a runnable task");
    });
}

#[test]
fn tasks_spawn_tasks() {
    let _alone = ALONE.lock();
    fn descend(tasks: Tasks, left: u32, done: Box<dyn FnOnce(u32)>) {
        let inner = tasks.clone();
        tasks.spawn(async move {
            match left {
                0 => done(7),
                _ => descend(inner, left - 1, done),
            }
        });
    }
    on_shard(|_, tasks| async move {
        let (send, receive) = local_channel();
        descend(tasks.clone(), 1000, Box::new(send));
        assert_eq!(receive.await, 7);
        assert_eq!(tasks.alive(), 1);
    });
}

#[test]
fn a_panic_ends_only_its_task() {
    let _alone = ALONE.lock();
    run_shard(None, || async {
        let panics = Rc::new(Cell::new(0));
        let seen = Rc::clone(&panics);
        let tasks = Tasks::new(move |panic| {
            assert_eq!(panic.downcast_ref::<&str>(), Some(&"as expected by a test"));
            seen.set(seen.get() + 1);
        });
        let survived = Rc::new(Cell::new(false));
        let flag = Rc::clone(&survived);
        tasks.spawn(async { std::panic::panic_any("as expected by a test") });
        tasks.spawn(async move { flag.set(true) });
        tasks.settle().await;
        assert_eq!((panics.get(), survived.get(), tasks.alive()), (1, true, 0));
        assert!(!tasks.may_be_runnable());
    })
    .unwrap();
}

#[test]
fn settling_stays_out_of_the_reactor() {
    let _alone = ALONE.lock();
    run_shard(None, || async {
        let tasks = Tasks::new(|panic| std::panic::resume_unwind(panic));
        let start = clock::now();
        let rounds = 100_000;
        for _ in 0..rounds {
            tasks.settle().await;
        }
        let each = clock::now().since(start).as_nanos() / rounds;
        // Three system calls alone would take longer.
        println!("a yield takes {each} ns");
        assert!(each < 2000, "a yield takes {each} ns");
    })
    .unwrap();
}

#[test]
fn an_idle_shard_makes_no_system_calls() {
    let _alone = ALONE.lock();
    on_shard(|ring, _| async move {
        let enters = ring.stats().enters;
        ring.sleep_until(clock::now() + Duration::from_millis(1500)).await;
        assert!(ring.stats().enters - enters <= 3, "{} enters", ring.stats().enters - enters);
    });
}

#[test]
fn too_little_lockable_memory_is_named() {
    in_own_process("too_little_lockable_memory_is_named", || {
        let limit = libc::rlimit { rlim_cur: 65536, rlim_max: 65536 };
        // SAFETY: the kernel reads one rlimit.
        assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const limit) }, 0);
        let error = run_shard(None, || async {}).unwrap_err();
        assert!(matches!(error, RingError::LockedMemory(65536)), "{error:?}");
    });
}

#[test]
fn another_thread_gives_a_task_its_value() {
    let _alone = ALONE.lock();
    on_shard(|ring, tasks| async move {
        let (sender, orders) = crossbeam_channel::unbounded::<Promise<u64>>();
        let worker = thread::spawn(move || {
            let mut number = 0;
            for promise in orders {
                number += 1;
                if number % 10 == 0 { drop(promise) } else { promise.fulfil(number) }
            }
        });
        let (done, all_done) = local_channel();
        tasks.spawn({
            let ring = ring.clone();
            async move {
                for number in 1..=2000 {
                    let (promise, value) = ring.remote();
                    sender.send(promise).unwrap();
                    let expected = if number % 10 == 0 { Err(Broken) } else { Ok(number) };
                    assert_eq!(value.await, expected);
                }
                // A task that does not wait any more is no trouble.
                let (promise, value) = ring.remote();
                drop(value);
                sender.send(promise).unwrap();
                done(());
            }
        });
        all_done.await;
        worker.join().unwrap();
        assert_eq!(ring.state().waits.len(), 0);
    });
}

#[test]
fn connecting_succeeds_is_refused_or_times_out() {
    in_own_process("connecting_succeeds_is_refused_or_times_out", || {
        on_shard(|ring, _| async move {
            let before = descriptors();
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let address = SocketAddress::Inet(listener.local_addr().unwrap());
            let soon = || clock::now() + Duration::from_secs(10);
            let fd = ring.connect(stream_socket(&address).unwrap(), &address, soon()).await.unwrap();
            assert_eq!(peer_address(fd.as_fd()).unwrap(), address);
            drop((listener, fd));
            let refused = ring.connect(stream_socket(&address).unwrap(), &address, soon()).await;
            assert_eq!(refused.unwrap_err().kind(), ErrorKind::ConnectionRefused);
            let nowhere = SocketAddress::Unix("/nonexistent/.s.PGSQL.5432".into());
            let missing = ring.connect(stream_socket(&nowhere).unwrap(), &nowhere, soon()).await;
            assert_eq!(missing.unwrap_err().kind(), ErrorKind::NotFound);

            for (full, keep) in [full_tcp_listener(), full_unix_listener()] {
                let start = clock::now();
                let by = start + Duration::from_millis(300);
                let late = ring.connect(stream_socket(&full).unwrap(), &full, by).await;
                assert_eq!(late.unwrap_err().kind(), ErrorKind::TimedOut);
                let took = clock::now().since(start).as_millis();
                assert!((295..=330).contains(&took), "{full}: {took} ms");
                drop(keep);
            }
            assert_eq!(ring.state().waits.len(), 0);
            assert_eq!(descriptors(), before);
        });
    });
}

#[test]
fn a_connect_may_be_dropped_at_any_time() {
    in_own_process("a_connect_may_be_dropped_at_any_time", || {
        on_shard(|ring, _| async move {
            let before = descriptors();
            let (full, keep) = full_tcp_listener();
            for turns in 0..20 {
                let mut connect =
                    Box::pin(ring.connect(stream_socket(&full).unwrap(), &full, clock::now() + PATIENCE));
                let poll = std::future::poll_fn(|context| Poll::Ready(connect.as_mut().poll(context))).await;
                assert!(poll.is_pending());
                for _ in 0..turns % 3 {
                    ring.sleep_until(clock::now() + Duration::from_millis(1)).await;
                }
                drop(connect);
            }
            drop(keep);
            while ring.stats().in_flight > 1 {
                ring.sleep_until(clock::now() + Duration::from_millis(1)).await;
            }
            assert_eq!(ring.state().waits.len(), 0);
            assert_eq!(descriptors(), before);
        });
    });
}

/// A listener whose queue is full, so that a connect to it hangs; and what must be kept for that.
fn full_tcp_listener() -> (SocketAddress, Vec<OwnedFd>) {
    let listener = tcp_listener("127.0.0.1:0".parse().unwrap(), 0).unwrap();
    let address = local_address(listener.as_fd()).unwrap();
    let filler = (0..2).map(|_| start_connecting(&address)).collect::<Vec<_>>();
    thread::sleep(Duration::from_millis(10));
    (address, std::iter::once(listener).chain(filler).collect())
}

fn full_unix_listener() -> (SocketAddress, Vec<OwnedFd>) {
    let name = format!("pgpinion-full-{}", std::process::id()).into_bytes();
    let address = SocketAddress::Abstract(name);
    let listener = stream_socket(&address).unwrap();
    let raw = address.to_raw().unwrap();
    let (pointer, length) = raw.as_parts();
    // SAFETY: the address lives across the call.
    unsafe {
        assert_eq!(libc::bind(listener.as_raw_fd(), pointer, length), 0);
        assert_eq!(libc::listen(listener.as_raw_fd(), 0), 0);
    }
    let filler = start_connecting(&address);
    (address, vec![listener, filler])
}

fn start_connecting(address: &SocketAddress) -> OwnedFd {
    let fd = stream_socket(address).unwrap();
    let raw = address.to_raw().unwrap();
    let (pointer, length) = raw.as_parts();
    // SAFETY: the address lives across the call.
    unsafe {
        assert_eq!(libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK), 0);
        let result = libc::connect(fd.as_raw_fd(), pointer, length);
        let error = io::Error::last_os_error();
        assert!(result == 0 || error.raw_os_error() == Some(libc::EINPROGRESS), "{error}");
    }
    fd
}

#[test]
fn ten_thousand_idle_sockets_are_small() {
    in_own_process("ten_thousand_idle_sockets_are_small", || {
        let resident = || {
            let statm = fs::read_to_string("/proc/self/statm").unwrap();
            statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
        };
        let ring = ring(&RingSettings::default());
        let pairs: Vec<_> = (0..8000).map(|_| pair()).collect();
        let mut peers = Vec::with_capacity(pairs.len());
        let before = resident();
        for (ours, theirs) in pairs {
            ring.start_receiving(ring.adopt(ours, Owner(1)));
            peers.push(theirs);
        }
        ring.turn(clock::now(), &mut |event| panic!("{event:?}")).unwrap();
        let each = resident().saturating_sub(before) / peers.len();
        println!("an idle socket takes {each} bytes");
        assert!(each < 400, "an idle socket takes {each} bytes");
    });
}

const LINGER: Duration = Duration::from_secs(1);
