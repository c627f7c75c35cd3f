//! What commands leave behind in a session that does not follow its client to the next server.
//!
//! Pure: the text of a command in, [`Kinds`] out. It knows no policy and no connection; `prepared` asks it on a message's way
//! to the server, and `shard` acts on the answer.
//!
//! Only what the text shows is recognised: what a function, a `DO` block, a trigger or a rule does inside cannot be seen. In
//! doubt the answer is that something is left: a rollback that undoes it and a command that fails count as well.
//!
//! Most texts are plain: [`look`] goes over their bytes once, looks at the first keyword and at four bytes that the words it
//! is after cannot do without, and is done. Only what may be something is taken apart ([`tokens`]).

mod calls;
mod commands;
mod kinds;
mod tokens;

pub use kinds::{Kind, Kinds};

use tokens::{Tokens, is_word, is_word_byte};

/// What is known of the session that a text is for.
#[derive(Clone, Copy)]
pub struct Session<'a> {
    /// Whether a parameter of this name, in any case, follows the client.
    pub follows: &'a dyn Fn(&str) -> bool,
    /// Whether a backslash escapes in every string (`standard_conforming_strings` is off).
    pub escapes: &'a dyn Fn() -> bool,
}

/// What the commands of a text, as in a Query or a Parse and without the terminating zero, leave behind.
#[inline]
pub fn look(text: &[u8], session: Session<'_>) -> Kinds {
    if is_plain(text) { Kinds::NONE } else { look_closely(text, session) }
}

/// What the function of this OID leaves behind that a FunctionCall calls. Those of PostgreSQL itself never change.
pub fn look_at_function(oid: u32) -> Kinds {
    match oid {
        2078 => Kind::Parameter.into(),
        2880..=2883 | 2886..=2889 => Kind::Lock.into(),
        1574 | 1576 | 1765 => Kind::Sequence.into(),
        _ => Kinds::NONE,
    }
}

#[cold]
fn look_closely(text: &[u8], session: Session<'_>) -> Kinds {
    let mut tokens = Tokens::new(text, (session.escapes)());
    let mut kinds = Kinds::NONE;
    loop {
        kinds |= commands::look(tokens.clone(), session);
        kinds |= calls::look(&mut tokens, session);
        if !tokens.next_statement() {
            return kinds;
        }
    }
}

/// Nothing in this text needs a closer look.
#[inline]
fn is_plain(text: &[u8]) -> bool {
    if begins_suspiciously(text.trim_ascii_start()) {
        return false;
    }
    let mut at = 0;
    while let Some(found) = text[at..].iter().position(|&byte| MARKS[usize::from(byte)]) {
        at += found;
        if is_suspicious(text, at) {
            return false;
        }
        at += 1;
    }
    true
}

/// The first word is that of a command that may leave something, or is hidden.
fn begins_suspiciously(text: &[u8]) -> bool {
    let Some(&first) = text.first() else { return false };
    let keyword: &[u8] = match first.to_ascii_lowercase() {
        b's' => b"set",
        b'l' => b"listen",
        b'p' => b"prepare",
        b'd' => b"declare",
        b'c' => b"create",
        b'e' => b"explain",
        b'(' => return false,
        other => return !is_word_byte(other),
    };
    text.len() >= keyword.len()
        && is_word(&text[..keyword.len()], keyword)
        && !text.get(keyword.len()).is_some_and(|&byte| is_word_byte(byte))
}

/// Whether the mark at this place belongs to a word that we are after, or parts two commands.
fn is_suspicious(text: &[u8], at: usize) -> bool {
    let (before, behind) = (&text[..at], &text[at + 1..]);
    match text[at] {
        b';' => !behind.trim_ascii().is_empty(),
        b'_' => {
            (ends_with(before, b"advisory") && begins_with(behind, b"lock"))
                || (ends_with(before, b"set") && begins_with(behind, b"config"))
        }
        b'v' | b'V' => {
            begins_with(behind, b"al") && (ends_with(before, b"next") || ends_with(before, b"set"))
        }
        _ => ends_with(before, b"tem"),
    }
}

fn ends_with(text: &[u8], word: &[u8]) -> bool {
    text.len() >= word.len() && is_word(&text[text.len() - word.len()..], word)
}

fn begins_with(text: &[u8], word: &[u8]) -> bool {
    text.len() >= word.len() && is_word(&text[..word.len()], word)
}

/// Each text that has to be taken apart has one of these: between two commands, in `advisory_lock` and `set_config`, in
/// `nextval` and `setval`, at the end of `temp`.
const MARKS: [bool; 256] = {
    let mut marks = [false; 256];
    let bytes = b";_vVpP";
    let mut at = 0;
    while at < bytes.len() {
        marks[bytes[at] as usize] = true;
        at += 1;
    }
    marks
};

#[cfg(test)]
mod tests;
