//! The log: shards hand lines over, one thread writes them.
//!
//! A shard never waits for whoever reads standard error. If that reader is slow the lines pile up in a channel; when
//! it is full they are dropped and counted, and the count is written as soon as something can be.

use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::mem;
use std::os::fd::AsFd;
use std::process;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use crossbeam_channel::{Receiver, Sender, bounded};

use super::affinity::Housekeeping;
use super::log_format;
use crate::config::{Log, LogFormat};
use crate::log_line::{Level, Line};

/// Takes lines of the log. Cheap to clone; every shard has its own.
#[derive(Clone, Debug)]
pub struct Logger {
    mail: Sender<Mail>,
    dropped: Arc<AtomicU64>,
    level: Level,
    format: LogFormat,
}

/// The end of the thread that writes.
#[derive(Debug)]
#[must_use = "the last lines are written only if somebody waits for it"]
pub struct LogWriter {
    mail: Sender<Mail>,
    finished: Receiver<()>,
}

#[derive(Debug)]
enum Mail {
    Line { time: SystemTime, format: LogFormat, line: Line },
    Finish,
}

impl Logger {
    /// Starts a log on standard error.
    pub fn start(settings: &Log, housekeeping: &Housekeeping) -> io::Result<(Logger, LogWriter)> {
        // A descriptor of its own: `Stderr` has a lock, and a panicking shard must not wait for it.
        let stderr = File::from(io::stderr().as_fd().try_clone_to_owned()?);
        Self::start_on(stderr, settings, housekeeping)
    }

    /// Starts a log on any other output.
    pub fn start_on(
        output: impl Write + Send + 'static,
        settings: &Log,
        housekeeping: &Housekeeping,
    ) -> io::Result<(Logger, LogWriter)> {
        let (mail, received) = bounded(LINES_WAITING_MAX);
        let (finish, finished) = bounded(1);
        let dropped = Arc::new(AtomicU64::new(0));
        let (level, format) = (settings.level, settings.format);
        let mut writer = Writer {
            mail: received,
            dropped: dropped.clone(),
            output,
            text: String::new(),
            lines: 0,
            format,
            pid: process::id(),
        };
        housekeeping.spawn("log", move || {
            writer.run();
            let _ = finish.send(());
        })?;
        Ok((Logger { mail: mail.clone(), dropped, level, format }, LogWriter { mail, finished }))
    }

    /// The same log with other settings, as after a reload.
    pub fn with(&self, settings: &Log) -> Logger {
        Logger { level: settings.level, format: settings.format, ..self.clone() }
    }

    /// Whether a line of that level would be written: ask before making one that costs something.
    pub fn takes(&self, level: Level) -> bool {
        level <= self.level
    }

    /// Hands a line over, stamped with the time. Never waits.
    pub fn line(&self, line: Line) {
        if !self.takes(line.level) {
            return;
        }
        let mail = Mail::Line { time: SystemTime::now(), format: self.format, line };
        if self.mail.try_send(mail).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Hands over a line that concerns nobody in particular.
    pub fn log(&self, level: Level, message: &str) {
        if self.takes(level) {
            self.line(Line::new(level, message));
        }
    }
}

impl LogWriter {
    /// Waits until all that was handed over before is written, at most so long. Tells whether it is.
    pub fn finish(self, at_most: Duration) -> bool {
        let deadline = Instant::now() + at_most;
        self.mail.send_timeout(Mail::Finish, at_most).is_ok() && self.finished.recv_deadline(deadline).is_ok()
    }
}

/// The thread's own side.
struct Writer<W> {
    mail: Receiver<Mail>,
    dropped: Arc<AtomicU64>,
    output: W,
    /// Lines formatted and not yet written, and how many they are.
    text: String,
    lines: u64,
    /// That of the latest line.
    format: LogFormat,
    pid: u32,
}

impl<W: Write> Writer<W> {
    fn run(&mut self) {
        while let Ok(mail) = self.mail.recv() {
            let more = self.gather(mail);
            self.tell_of_dropped();
            self.write();
            if !more {
                return;
            }
        }
    }

    /// Formats this line and all that wait behind it, up to a write's worth. False when it was the last.
    fn gather(&mut self, first: Mail) -> bool {
        let mut next = Some(first);
        while let Some(mail) = next {
            match mail {
                Mail::Line { time, format, line } => self.append(time, format, &line),
                Mail::Finish => return false,
            }
            next = match self.text.len() < WRITE_BYTES {
                true => self.mail.try_recv().ok(),
                false => None,
            };
        }
        true
    }

    fn append(&mut self, time: SystemTime, format: LogFormat, line: &Line) {
        self.format = format;
        self.lines += 1;
        log_format::append(&mut self.text, format, time, self.pid, line);
    }

    fn tell_of_dropped(&mut self) {
        let dropped = self.dropped.swap(0, Ordering::Relaxed);
        if dropped > 0 {
            let line =
                Line::warn(format!("{dropped} lines dropped: the log could not be written fast enough"));
            let lines = self.lines;
            self.append(SystemTime::now(), self.format, &line);
            // Should this write fail, what it tells of is dropped still; the telling itself is not.
            self.lines = lines + dropped;
        }
    }

    /// Writes what is formatted. A full disk or a reader that went away loses it, and the loss is told of when writing
    /// works again.
    fn write(&mut self) {
        if write_patiently(&mut self.output, self.text.as_bytes()).is_err() {
            self.dropped.fetch_add(self.lines, Ordering::Relaxed);
        }
        self.lines = 0;
        self.text.clear();
        if self.text.capacity() > 2 * WRITE_BYTES {
            mem::take(&mut self.text);
        }
    }
}

/// Writes all. Standard error may be shared with somebody who made it non-blocking; then this waits a little.
fn write_patiently(output: &mut impl Write, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match output.write(bytes) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => thread::sleep(WOULD_BLOCK_WAIT),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Lines that wait to be written: a second of logins and disconnections in a storm, some megabytes.
const LINES_WAITING_MAX: usize = 16_384;

/// One write takes as many lines as fit: a pipe's usual capacity.
const WRITE_BYTES: usize = 64 << 10;

/// Between two tries on a non-blocking output that is full.
const WOULD_BLOCK_WAIT: Duration = Duration::from_millis(10);

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    const SETTINGS: Log =
        Log { format: LogFormat::Text, level: Level::Info, connections: true, disconnections: true };
    const LONG: Duration = Duration::from_secs(10);

    /// An output that does for each write what the test says, else keeps the bytes.
    #[derive(Clone, Default)]
    struct Output {
        kept: Arc<Mutex<Vec<u8>>>,
        errors: Arc<Mutex<Vec<ErrorKind>>>,
        gate: Arc<Mutex<()>>,
    }

    impl Output {
        fn text(&self) -> String {
            String::from_utf8(self.kept.lock().unwrap().clone()).unwrap()
        }

        fn messages(&self) -> Vec<String> {
            let after_level = |line: &str| line.splitn(6, ' ').nth(5).unwrap().to_owned();
            self.text().lines().map(after_level).collect()
        }
    }

    impl Write for Output {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _open = self.gate.lock().unwrap();
            if let Some(error) = self.errors.lock().unwrap().pop() {
                return Err(error.into());
            }
            let part = bytes.len().div_ceil(2);
            self.kept.lock().unwrap().extend(&bytes[..part]);
            Ok(part)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn start(output: &Output) -> (Logger, LogWriter) {
        Logger::start_on(output.clone(), &SETTINGS, &Housekeeping::new(&[])).unwrap()
    }

    #[test]
    fn lines_are_written_in_order_and_finish_waits_for_them() {
        let output = Output::default();
        let (logger, writer) = start(&output);
        for number in 0..1000 {
            logger.log(Level::Info, &number.to_string());
        }
        logger.log(Level::Debug, "not this one");
        logger.with(&Log { level: Level::Debug, ..SETTINGS }).log(Level::Debug, "this one");
        assert!(writer.finish(LONG));
        let mut expected: Vec<String> = (0..1000).map(|number| number.to_string()).collect();
        expected.push("this one".into());
        assert_eq!(output.messages(), expected);
    }

    #[test]
    fn a_blocked_output_drops_lines_and_blocks_nobody() {
        let output = Output::default();
        let (logger, writer) = start(&output);
        let closed = output.gate.lock().unwrap();
        // The writer takes up to a write's worth with it before it blocks, and the channel keeps its bound.
        let handed_in = LINES_WAITING_MAX * 2;
        for _ in 0..handed_in {
            logger.log(Level::Info, "x");
        }
        drop(closed);
        assert!(writer.finish(LONG));
        let messages = output.messages();
        let written = messages.iter().filter(|message| *message == "x").count();
        let told = |message: &String| message.split_once(" lines dropped")?.0.parse::<usize>().ok();
        let dropped: usize = messages.iter().filter_map(told).sum();
        assert!(dropped > 0);
        assert_eq!(written + dropped, handed_in);
    }

    #[test]
    fn finish_has_a_bound() {
        let output = Output::default();
        let (logger, writer) = start(&output);
        let _closed = output.gate.lock().unwrap();
        logger.log(Level::Info, "x");
        assert!(!writer.finish(Duration::from_millis(20)));
    }

    #[test]
    fn a_failing_output_is_survived_and_told_of() {
        let output = Output::default();
        *output.errors.lock().unwrap() =
            vec![ErrorKind::BrokenPipe, ErrorKind::WouldBlock, ErrorKind::Interrupted];
        let (logger, writer) = start(&output);
        logger.log(Level::Info, "lost");
        while !output.errors.lock().unwrap().is_empty() {
            thread::yield_now();
        }
        while logger.dropped.load(Ordering::Relaxed) == 0 {
            thread::yield_now();
        }
        logger.log(Level::Info, "kept");
        assert!(writer.finish(LONG));
        assert_eq!(output.messages(), ["kept", "1 lines dropped: the log could not be written fast enough"]);
    }
}
