//! The exact account of what a server still has to answer.
//!
//! Every message sent to a server that gets an answer is entered ([`Owed::sent`]); every message that comes back is
//! held against the entries ([`Owed::received`]). The server is at rest when nothing is left. What the protocol
//! chapter makes hard, and how it is kept:
//!
//! - An error in the extended protocol makes the server skip everything up to the next Sync: the entries in
//!   between are struck, and what is sent before that Sync is not entered.
//! - CopyDone and CopyFail are answered in COPY IN only; anywhere else they are dropped without a word. They are
//!   entered, and struck when they come to the front outside COPY IN.
//! - During COPY IN the server ignores Sync. A Sync sent before the end of the data is struck when the COPY ends
//!   well. When it ends badly nobody can know whether the server had read that Sync before it failed: the
//!   connection is [in doubt](Owed::in_doubt) and will be closed instead of reused.

use crate::wire::backend::tag as reply;
use crate::wire::frontend::tag as request;
use std::collections::VecDeque;
use std::fmt;

/// A message sent that has its own answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Entry {
    Query,
    Function,
    Sync,
    Parse,
    Bind,
    Describe,
    Execute,
    Close,
    /// CopyDone or CopyFail.
    CopyEnd,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Copy {
    #[default]
    None,
    In,
    Out,
    Both,
}

/// A message of the server that answers nothing that was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Nonsense {
    /// Its type.
    pub tag: u8,
}

impl fmt::Display for Nonsense {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.tag.is_ascii_graphic() {
            write!(f, "unexpected message of type '{}'", char::from(self.tag))
        } else {
            write!(f, "unexpected message of type {:#04x}", self.tag)
        }
    }
}

/// See the module.
#[derive(Debug, Default)]
pub struct Owed {
    entries: VecDeque<Entry>,
    copy: Copy,
    /// The server skips what it gets until a Sync.
    skipping: bool,
    /// Extended-protocol messages were sent after the last Sync or Query: an implicit transaction may be open.
    batch_open: bool,
    /// Syncs of which nobody knows whether they will be answered.
    uncertain: u32,
}

impl Owed {
    /// Enters a message that is about to be sent to the server.
    #[inline]
    pub fn sent(&mut self, tag: u8) {
        let entry = match tag {
            request::QUERY => Entry::Query,
            request::SYNC => Entry::Sync,
            request::PARSE => Entry::Parse,
            request::BIND => Entry::Bind,
            request::DESCRIBE => Entry::Describe,
            request::EXECUTE => Entry::Execute,
            request::CLOSE => Entry::Close,
            request::FUNCTION_CALL => Entry::Function,
            request::COPY_DONE | request::COPY_FAIL => Entry::CopyEnd,
            _ => return,
        };
        match entry {
            Entry::Sync => self.skipping = false,
            _ if self.skipping => return,
            _ => {}
        }
        self.batch_open = match entry {
            Entry::Sync | Entry::Query | Entry::Function => false,
            Entry::CopyEnd => self.batch_open,
            _ => true,
        };
        self.entries.push_back(entry);
    }

    /// Holds a message of the server against what was sent.
    ///
    /// # Errors
    /// [`Nonsense`]: it answers nothing. Messages that may come at any time (notice, notification, parameter) are
    /// always right.
    #[inline]
    pub fn received(&mut self, tag: u8) -> Result<(), Nonsense> {
        match tag {
            reply::NOTICE_RESPONSE | reply::NOTIFICATION_RESPONSE | reply::PARAMETER_STATUS => return Ok(()),
            reply::ERROR_RESPONSE => return self.failed(),
            reply::READY_FOR_QUERY => return self.ready(),
            _ => {}
        }
        if self.copy == Copy::None {
            self.strike_stray_copy_ends();
        }
        let nonsense = if self.uncertain > 0 { Ok(()) } else { Err(Nonsense { tag }) };
        let Some(&first) = self.entries.front() else { return nonsense };
        match (tag, first) {
            (reply::PARSE_COMPLETE, Entry::Parse)
            | (reply::BIND_COMPLETE, Entry::Bind)
            | (reply::CLOSE_COMPLETE, Entry::Close)
            | (reply::ROW_DESCRIPTION | reply::NO_DATA, Entry::Describe)
            | (reply::EMPTY_QUERY_RESPONSE | reply::PORTAL_SUSPENDED, Entry::Execute) => {
                self.entries.pop_front();
                Ok(())
            }
            (reply::PARAMETER_DESCRIPTION, Entry::Describe)
            | (reply::DATA_ROW, Entry::Execute | Entry::Query)
            | (reply::ROW_DESCRIPTION | reply::EMPTY_QUERY_RESPONSE, Entry::Query)
            | (reply::FUNCTION_CALL_RESPONSE, Entry::Function) => Ok(()),
            (reply::COMMAND_COMPLETE, Entry::Execute | Entry::Query) => self.completed(first),
            (reply::COPY_IN_RESPONSE, Entry::Execute | Entry::Query) => self.begin_copy(Copy::In),
            (reply::COPY_OUT_RESPONSE, Entry::Execute | Entry::Query) => self.begin_copy(Copy::Out),
            (reply::COPY_BOTH_RESPONSE, Entry::Execute | Entry::Query) => self.begin_copy(Copy::Both),
            (reply::COPY_DATA, _) if matches!(self.copy, Copy::Out | Copy::Both) => Ok(()),
            (reply::COPY_DONE, _) if matches!(self.copy, Copy::Out | Copy::Both) => {
                if self.copy == Copy::Out {
                    self.copy = Copy::None;
                }
                Ok(())
            }
            _ => nonsense,
        }
    }

    fn begin_copy(&mut self, copy: Copy) -> Result<(), Nonsense> {
        self.copy = copy;
        Ok(())
    }

    fn completed(&mut self, first: Entry) -> Result<(), Nonsense> {
        if matches!(self.copy, Copy::In | Copy::Both) {
            let end = self.entries.iter().position(|&entry| entry == Entry::CopyEnd);
            match end {
                Some(end) => drop(self.entries.drain(1..=end)),
                None if self.copy == Copy::In && !self.in_doubt() => {
                    return Err(Nonsense { tag: reply::COMMAND_COMPLETE });
                }
                None => {}
            }
        }
        self.copy = Copy::None;
        if first == Entry::Execute {
            self.entries.pop_front();
        }
        Ok(())
    }

    fn failed(&mut self) -> Result<(), Nonsense> {
        let was_copying_in = matches!(self.copy, Copy::In | Copy::Both);
        self.copy = Copy::None;
        if was_copying_in {
            self.doubt_syncs_within_the_data();
        } else {
            self.strike_stray_copy_ends();
        }
        match self.entries.front() {
            // The server will say ReadyForQuery for these in any case.
            Some(Entry::Query | Entry::Function | Entry::Sync) => {}
            Some(_) => {
                let sync = self.entries.iter().position(|&entry| entry == Entry::Sync);
                self.entries.drain(..sync.unwrap_or(self.entries.len()));
                self.skipping = sync.is_none();
            }
            // Between requests only the end of the session is an error: its FATAL message is read elsewhere.
            None => {}
        }
        Ok(())
    }

    fn doubt_syncs_within_the_data(&mut self) {
        let end =
            self.entries.iter().position(|&entry| entry == Entry::CopyEnd).unwrap_or(self.entries.len());
        let before = self.entries.len();
        let mut at = 0;
        self.entries.retain(|&entry| {
            at += 1;
            at > end || entry != Entry::Sync
        });
        self.uncertain += (before - self.entries.len()) as u32;
    }

    #[inline]
    fn ready(&mut self) -> Result<(), Nonsense> {
        self.copy = Copy::None;
        self.strike_stray_copy_ends();
        match self.entries.front() {
            Some(Entry::Sync | Entry::Query | Entry::Function) => {
                self.entries.pop_front();
                self.strike_stray_copy_ends();
                Ok(())
            }
            _ if self.uncertain > 0 => {
                self.uncertain -= 1;
                self.skipping = false;
                Ok(())
            }
            _ => Err(Nonsense { tag: reply::READY_FOR_QUERY }),
        }
    }

    #[inline]
    fn strike_stray_copy_ends(&mut self) {
        while self.entries.front() == Some(&Entry::CopyEnd) {
            self.entries.pop_front();
        }
    }

    /// Everything sent is answered and nothing half said is open: the transaction status of the last ReadyForQuery
    /// tells the rest.
    #[inline]
    pub fn is_settled(&self) -> bool {
        self.entries.is_empty() && !self.skipping && !self.batch_open && self.copy == Copy::None
    }

    /// Nobody can know whether another ReadyForQuery will come.
    pub fn in_doubt(&self) -> bool {
        self.uncertain > 0
    }

    /// Messages sent that are not answered yet.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Nothing is owed; see also [`Owed::is_settled`].
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The server waits for the client's data of a COPY.
    pub fn copies_in(&self) -> bool {
        matches!(self.copy, Copy::In | Copy::Both)
    }

    /// The server skips what it gets until a Sync.
    pub fn awaits_sync(&self) -> bool {
        self.skipping
    }

    /// Messages of the extended protocol were sent after the last Sync: an implicit transaction may be open, which the
    /// next Sync commits.
    pub fn is_batch_open(&self) -> bool {
        self.batch_open
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Plays a script: `>` sends what follows, `<` receives it.
    fn play(script: &[(char, &str)]) -> Result<Owed, Nonsense> {
        let mut owed = Owed::default();
        for (direction, tags) in script {
            for tag in tags.bytes() {
                match direction {
                    '>' => owed.sent(tag),
                    _ => owed.received(tag)?,
                }
            }
        }
        Ok(owed)
    }

    #[test]
    fn scripts_that_settle() {
        let scripts: &[(&str, &[(char, &str)])] = &[
            ("simple", &[('>', "Q"), ('<', "TDDCZ")]),
            ("several statements", &[('>', "Q"), ('<', "TDCTDCZ")]),
            ("empty query", &[('>', "Q"), ('<', "IZ")]),
            ("simple error", &[('>', "Q"), ('<', "TDEZ")]),
            ("two pipelined, first fails", &[('>', "QQ"), ('<', "EZTDCZ")]),
            ("extended", &[('>', "PBDES"), ('<', "12TDCZ")]),
            ("statement described", &[('>', "PDS"), ('<', "1tTZ")]),
            ("no data", &[('>', "PBDES"), ('<', "12nCZ")]),
            ("suspended portal", &[('>', "PBEES"), ('<', "12DsDCZ")]),
            ("flush, then sync", &[('>', "PBEH"), ('<', "12DC"), ('>', "S"), ('<', "Z")]),
            ("extended error", &[('>', "PBDES"), ('<', "1EZ")]),
            ("error before sync is sent", &[('>', "PB"), ('<', "E"), ('>', "DEQ"), ('>', "S"), ('<', "Z")]),
            ("pipeline, middle fails", &[('>', "PBESPBESPBES"), ('<', "12CZ1EZ12CZ")]),
            ("error at sync", &[('>', "PBES"), ('<', "12CEZ")]),
            ("simple within a batch", &[('>', "PQS"), ('<', "1CZZ")]),
            ("function call", &[('>', "F"), ('<', "VZ")]),
            ("notices anywhere", &[('>', "Q"), ('<', "NTNDASCNZN")]),
            ("copy out", &[('>', "Q"), ('<', "HdddcCZ")]),
            ("copy in", &[('>', "Q"), ('<', "G"), ('>', "dddc"), ('<', "CZ")]),
            ("copy in, sent ahead", &[('>', "Qdddc"), ('<', "GCZ")]),
            ("copy in fails, data goes on", &[('>', "Q"), ('<', "GE"), ('>', "ddc"), ('<', "Z")]),
            ("copy in fails by the client", &[('>', "Q"), ('<', "G"), ('>', "df"), ('<', "EZ")]),
            (
                "two copies in one query",
                &[('>', "Q"), ('<', "G"), ('>', "dc"), ('<', "CG"), ('>', "c"), ('<', "CZ")],
            ),
            ("extended copy, sync ignored", &[('>', "PBES"), ('<', "12G"), ('>', "ddcS"), ('<', "CZ")]),
            ("stray copy end", &[('>', "cQf"), ('<', "CZ")]),
            ("error of a copy that never began", &[('>', "PBESdcS"), ('<', "12EZZ")]),
        ];
        for (name, script) in scripts {
            let owed = play(script).unwrap_or_else(|nonsense| panic!("{name}: {nonsense}"));
            assert!(owed.is_settled() && !owed.in_doubt(), "{name}: {owed:?}");
        }
    }

    #[test]
    fn scripts_that_do_not_settle() {
        let scripts: &[(&str, &[(char, &str)])] = &[
            ("no answer", &[('>', "Q")]),
            ("no end", &[('>', "Q"), ('<', "TDC")]),
            ("second owed", &[('>', "QQ"), ('<', "CZ")]),
            ("batch without sync", &[('>', "PBEH"), ('<', "12C")]),
            ("skipping", &[('>', "PBH"), ('<', "E")]),
            ("copy open", &[('>', "Q"), ('<', "G")]),
            ("batch after sync", &[('>', "PSP"), ('<', "1Z1")]),
        ];
        for (name, script) in scripts {
            let owed = play(script).unwrap_or_else(|nonsense| panic!("{name}: {nonsense}"));
            assert!(!owed.is_settled(), "{name}: {owed:?}");
        }
    }

    #[test]
    fn answers_to_nothing_are_nonsense() {
        for (name, script) in [
            ("ready unasked", &[('<', "Z")][..]),
            ("second ready", &[('>', "Q"), ('<', "CZZ")]),
            ("row of a parse", &[('>', "PS"), ('<', "D")]),
            ("parse complete of a query", &[('>', "Q"), ('<', "1")]),
            ("ready before the batch is done", &[('>', "PS"), ('<', "Z")]),
            ("copy data outside a copy", &[('>', "Q"), ('<', "d")]),
            ("copy in complete before its end", &[('>', "Q"), ('<', "GC")]),
            ("authentication", &[('>', "Q"), ('<', "R")]),
        ] {
            assert!(play(script).is_err(), "{name}");
        }
    }

    #[test]
    fn a_sync_that_the_failing_copy_may_have_swallowed_leaves_doubt() {
        let owed = play(&[('>', "PBES"), ('<', "12GE"), ('>', "dcS"), ('<', "Z")]).unwrap();
        assert!(owed.in_doubt());
        let owed = play(&[('>', "PBES"), ('<', "12GEZ"), ('>', "dcS"), ('<', "Z")]).unwrap();
        assert!(!owed.in_doubt() && owed.is_settled(), "both were answered: {owed:?}");
    }

    /// Found by fuzzing: one answer was held against the account all the same.
    #[test]
    fn in_doubt_nothing_is_nonsense() {
        let owed = play(&[('>', "PBES"), ('<', "12GE"), ('>', "SQ"), ('<', "ZGC1dV")]).unwrap();
        assert!(owed.in_doubt());
    }
}
