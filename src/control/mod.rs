//! stand-in
#![allow(missing_docs, clippy::print_stderr)]
use crate::config::{Log, LogLevel};
use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
#[derive(Clone)]
pub struct Logger(Sender<String>, LogLevel);
impl Logger {
    pub fn start(log: &Log) -> Self {
        let (sender, receiver) = bounded::<String>(10000);
        std::thread::spawn(move || { for line in receiver { eprintln!("{line}"); } });
        Self(sender, log.level)
    }
    pub fn write(&self, level: LogLevel, text: String) { if level <= self.1 { let _ = self.0.try_send(format!("{level:?} {text}")); } }
    pub fn flush(&self) { std::thread::sleep(std::time::Duration::from_millis(50)); }
}
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal { Hangup, Terminate, Interrupt }
pub struct Signals(Receiver<Signal>);
impl Signals {
    pub fn take() -> io::Result<Self> {
        let mut signals = signal_hook::iterator::Signals::new([1, 2, 15])?;
        let (sender, receiver) = unbounded();
        std::thread::spawn(move || { for signal in signals.forever() { let _ = sender.send(match signal { 1 => Signal::Hangup, 2 => Signal::Interrupt, _ => Signal::Terminate }); } });
        Ok(Self(receiver))
    }
    pub fn receiver(&self) -> &Receiver<Signal> { &self.0 }
}
#[derive(Clone)]
pub struct Resolver;
impl Resolver {
    pub fn start() -> Self { Self }
    pub fn resolve(&self, name: &str, port: u16, reply: impl FnOnce(io::Result<Vec<SocketAddr>>) + Send + 'static) {
        let name = name.to_owned();
        std::thread::spawn(move || reply((name.as_str(), port).to_socket_addrs().map(Iterator::collect)));
    }
}
#[derive(Clone)]
pub struct Helpers;
impl Helpers {
    pub fn start(_shards: usize) -> Self { Self }
    pub fn submit(&self, job: Box<dyn FnOnce() + Send>) -> Result<(), ()> { std::thread::spawn(job); Ok(()) }
}
pub fn raise_descriptor_limit() -> io::Result<(u64, u64)> { Ok((20000, 20000)) }
