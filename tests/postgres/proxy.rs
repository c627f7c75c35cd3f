//! A bad network: forwards TCP connections, cuts them after so many bytes, or sends single bytes.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

/// What happens to one connection. Byte counts are `usize::MAX` where nothing does.
#[derive(Clone, Copy, Debug)]
pub struct Weather {
    /// Bytes from the one who dialled before the cut.
    pub up_bytes: usize,
    /// Bytes to the one who dialled before the cut.
    pub down_bytes: usize,
    /// One byte per segment, both ways.
    pub dribble: bool,
}

impl Weather {
    pub const FAIR: Weather = Weather { up_bytes: usize::MAX, down_bytes: usize::MAX, dribble: false };
    pub const DRIBBLE: Weather = Weather { dribble: true, ..Weather::FAIR };
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
                std::thread::spawn(move || forward(down, up, weather.up_bytes, weather.dribble, silence));
                let silence = (silent.clone(), number);
                std::thread::spawn(move || {
                    forward(up_too, down_too, weather.down_bytes, weather.dribble, silence)
                });
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
    dribble: bool,
    (silent, number): (Arc<AtomicUsize>, usize),
) {
    let mut chunk = [0; 16 * 1024];
    while left > 0 {
        let most = left.min(chunk.len());
        let Ok(count @ 1..) = from.read(&mut chunk[..most]) else { break };
        if number < silent.load(Ordering::Relaxed) {
            continue;
        }
        let pieces = chunk[..count].chunks(if dribble { 1 } else { count });
        if !pieces.into_iter().all(|piece| to.write_all(piece).is_ok()) {
            break;
        }
        left -= count;
    }
    let _ = to.shutdown(Shutdown::Both);
    let _ = from.shutdown(Shutdown::Both);
}
