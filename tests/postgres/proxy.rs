//! A bad network: forwards TCP connections, cuts them after so many bytes, sends single bytes, or is slow.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::sleep;
use std::time::Duration;

use crate::random::Random;

/// What happens to one connection. Byte counts are `usize::MAX` where nothing does.
#[derive(Clone, Copy, Debug)]
pub struct Weather {
    /// Bytes from the one who dialled before the cut.
    pub up_bytes: usize,
    /// Bytes to the one who dialled before the cut.
    pub down_bytes: usize,
    pub pace: Pace,
    /// What is cut ends in bytes that mean nothing.
    pub garbage: bool,
}

/// How fast bytes go, both ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    Full,
    /// One byte per segment.
    Dribble,
    /// Each piece waits up to 200 ms.
    Jitter,
    /// Each piece is so many milliseconds on its way.
    Far(u64),
    /// 64 KB per second.
    Slow,
}

impl Weather {
    pub const FAIR: Weather =
        Weather { up_bytes: usize::MAX, down_bytes: usize::MAX, pace: Pace::Full, garbage: false };

    pub fn paced(pace: Pace) -> Self {
        Weather { pace, ..Weather::FAIR }
    }
}

/// The proxy; ends, with all its connections, when dropped.
#[derive(Debug)]
pub struct Proxy {
    port: u16,
    weather: Arc<Mutex<Weather>>,
    stop: Arc<AtomicBool>,
    /// Connections made so far, and those of them, the first, that lead nowhere any more.
    made: Arc<AtomicUsize>,
    silent: Arc<AtomicUsize>,
    streams: Arc<Mutex<Vec<TcpStream>>>,
}

impl Proxy {
    pub fn to_port(upstream: u16) -> Self {
        Self::over(TcpListener::bind("127.0.0.1:0").expect("a port"), upstream)
    }

    /// The same at a port chosen before.
    pub fn listening_at(port: u16, upstream: u16) -> Self {
        Self::over(TcpListener::bind(("127.0.0.1", port)).expect("still free"), upstream)
    }

    fn over(listener: TcpListener, upstream: u16) -> Self {
        let proxy = Self {
            port: listener.local_addr().expect("bound").port(),
            weather: Arc::new(Mutex::new(Weather::FAIR)),
            stop: Arc::default(),
            made: Arc::default(),
            silent: Arc::default(),
            streams: Arc::default(),
        };
        let (weather, stop, streams) = (proxy.weather.clone(), proxy.stop.clone(), proxy.streams.clone());
        let (made, silent) = (proxy.made.clone(), proxy.silent.clone());
        std::thread::spawn(move || {
            for down in listener.incoming().flatten() {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                let Ok(up) = TcpStream::connect(("127.0.0.1", upstream)) else { continue };
                let weather = *weather.lock().expect("lock");
                let mut kept = streams.lock().expect("lock");
                for stream in [&down, &up] {
                    stream.set_nodelay(true).expect("own socket");
                    kept.push(stream.try_clone().expect("a descriptor"));
                }
                let (down_too, up_too) = (down.try_clone().expect("one"), up.try_clone().expect("one"));
                let number = made.fetch_add(1, Ordering::Relaxed);
                let silence = (silent.clone(), number);
                std::thread::spawn(move || forward(down, up, weather.up_bytes, weather, silence));
                let silence = (silent.clone(), number);
                std::thread::spawn(move || forward(up_too, down_too, weather.down_bytes, weather, silence));
            }
        });
        proxy
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// For connections from now on.
    pub fn set(&self, weather: Weather) {
        *self.weather.lock().expect("lock") = weather;
    }

    /// Forgets all connections of now without a word, as a firewall does: what is sent on them arrives nowhere.
    pub fn silence(&self) {
        self.silent.store(self.made.load(Ordering::Relaxed), Ordering::Relaxed);
    }

    /// Ends all connections of now.
    pub fn cut(&self) {
        for stream in self.streams.lock().expect("lock").drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(("127.0.0.1", self.port));
        self.cut();
    }
}

/// Copies up to `left` bytes, then ends both directions.
fn forward(
    mut from: TcpStream,
    mut to: TcpStream,
    mut left: usize,
    Weather { pace, garbage, .. }: Weather,
    (silent, number): (Arc<AtomicUsize>, usize),
) {
    let mut random = Random::new(36);
    let mut chunk = [0; 16 * 1024];
    let mut alive = true;
    while left > 0 && alive {
        let most = left.min(chunk.len());
        let Ok(count @ 1..) = from.read(&mut chunk[..most]) else { break };
        if number < silent.load(Ordering::Relaxed) {
            continue;
        }
        match pace {
            Pace::Full | Pace::Dribble => {}
            Pace::Jitter => sleep(Duration::from_millis(random.below(200))),
            Pace::Far(time) => sleep(Duration::from_millis(time)),
            Pace::Slow => sleep(Duration::from_secs(count as u64) / (64 << 10)),
        }
        let mut pieces = chunk[..count].chunks(if pace == Pace::Dribble { 1 } else { count });
        alive = pieces.all(|piece| to.write_all(piece).is_ok());
        left -= count;
    }
    if garbage && left == 0 {
        let _ = to.write_all(&GARBAGE);
    }
    let _ = to.shutdown(Shutdown::Both);
    let _ = from.shutdown(Shutdown::Both);
}

/// Less than the shortest message, of which no tag and no length is any; what is behind a cut in the middle of a
/// message is its end.
const GARBAGE: [u8; 4] = [0xa5; 4];
