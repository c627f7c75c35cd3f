//! The same session directly and through the pooler: all that is answered, byte for byte.
//!
//! Nothing is left out but the process ids in notifications.

use crate::wire::{Address, Client, Fault, Frames};

/// What a client sends at once, and what it waits for before it goes on.
#[derive(Clone, Debug)]
pub enum Step {
    /// Everything is answered, whatever was skipped and whatever failed: a batch that always succeeds is added.
    All(Frames),
    /// A message with this tag: behind a Flush, or where the session ends.
    Until(Frames, u8),
}

impl From<Frames> for Step {
    fn from(frames: Frames) -> Self {
        Step::All(frames)
    }
}

/// Takes these steps in a session of its own, `before` each of which something else may be done, and returns what was
/// answered to each.
pub fn play(
    address: &Address,
    parameters: &[(&str, &str)],
    steps: &[Step],
    mut before: impl FnMut(usize),
) -> Vec<Vec<Vec<u8>>> {
    let mut client = Client::connect(address, parameters).expect("a login");
    let mut take = |(number, step): (usize, &Step)| {
        before(number);
        answer(&mut client, step)
    };
    let answers = steps.iter().enumerate().map(&mut take).collect();
    client.terminate();
    answers
}

/// The messages that answer this step, each with its tag. If the session ends so does the list, with a word about it.
pub fn answer(client: &mut Client, step: &Step) -> Vec<Vec<u8>> {
    let frames = match step {
        Step::All(frames) => ended(frames.clone()),
        Step::Until(frames, _) => frames.clone(),
    };
    client.send(&frames.0).expect("open");
    let mut seen: Vec<Vec<u8>> = Vec::new();
    loop {
        let mut message = match client.read() {
            Ok(message) => message,
            Err(Fault::Closed(_)) => {
                seen.push(b"(closed)".to_vec());
                return seen;
            }
            Err(fault) => {
                panic!("{fault} for {} after {:#?}", shown(&frames.0), shown_all(seen.iter().rev().take(5)))
            }
        };
        if message.tag == b'A' {
            message.body[..4].fill(0);
        }
        seen.push([&[message.tag], &message.body[..]].concat());
        let ends = match step {
            Step::All(_) => tags(&seen).ends_with(END),
            Step::Until(_, tag) => message.tag == *tag,
        };
        if ends {
            return seen;
        }
    }
}

/// Closes of a portal that is not there succeed even in a transaction that failed, and change nothing.
fn ended(frames: Frames) -> Frames {
    let close = |frames: Frames| frames.close(b'P', "nobody");
    close(close(close(frames.sync()))).sync()
}

const END: &[u8] = b"333Z";

fn tags(messages: &[Vec<u8>]) -> Vec<u8> {
    messages[messages.len().saturating_sub(END.len())..].iter().map(|message| message[0]).collect()
}

/// Fails, and shows where, unless the answers are the same.
pub fn assert_same(what: &str, step: &Step, expected: &[Vec<u8>], got: &[Vec<u8>]) {
    if expected == got {
        return;
    }
    let (Step::All(frames) | Step::Until(frames, _)) = step;
    let at = expected.iter().zip(got).take_while(|(one, two)| one == two).count();
    let around = |list: &[Vec<u8>]| shown_all(list.iter().skip(at.saturating_sub(3)).take(6));
    panic!(
        "{what}: after {at} equal messages, PostgreSQL: {:#?}, received: {:#?}\nrequest: {}",
        around(expected),
        around(got),
        shown(&frames.0)
    );
}

fn shown_all<'a>(list: impl Iterator<Item = &'a Vec<u8>>) -> Vec<String> {
    list.map(|each| shown(each)).collect()
}

fn shown(bytes: &[u8]) -> String {
    String::from_utf8_lossy(&bytes[..bytes.len().min(3000)]).replace('\0', "~")
}
