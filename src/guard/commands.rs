//! Commands that leave something, by their first words.

use super::tokens::{Token, Tokens, is_word};
use super::{Kind, Kinds, Session};

/// What the command that begins here leaves behind.
pub(super) fn look(mut tokens: Tokens<'_>, session: Session<'_>) -> Kinds {
    let Some(Token::Word(first)) = tokens.next() else { return Kinds::NONE };
    if is_word(first, b"set") {
        set(tokens, session)
    } else if is_word(first, b"listen") {
        Kind::Listen.into()
    } else if is_word(first, b"prepare") {
        // PREPARE TRANSACTION ends one.
        if tokens.accept(b"transaction") { Kinds::NONE } else { Kind::Prepared.into() }
    } else if is_word(first, b"declare") {
        declare(tokens)
    } else if is_word(first, b"create") {
        create(tokens)
    } else if is_word(first, b"explain") {
        explain(tokens)
    } else {
        Kinds::NONE
    }
}

/// `SET [ SESSION | LOCAL ] ...`, behind the first word.
fn set(mut tokens: Tokens<'_>, session: Session<'_>) -> Kinds {
    let from = tokens.clone();
    let local = tokens.accept(b"local");
    let for_session = !local && tokens.accept(b"session");
    if tokens.clone().accept_symbol(b'.') {
        // Such a word is the first part of a name.
        tokens = from;
    } else if local || tokens.accept(b"transaction") || tokens.accept(b"constraints") {
        return Kinds::NONE;
    } else if for_session && tokens.accept(b"characteristics") {
        return characteristics(tokens, session);
    } else if tokens.accept(b"authorization")
        || (tokens.accept(b"session") && tokens.accept(b"authorization"))
    {
        return unless_default(tokens, Kind::Role);
    }
    one(tokens, session)
}

/// `name [ = | TO ] value`.
fn one(mut tokens: Tokens<'_>, session: Session<'_>) -> Kinds {
    let Some(name) = tokens.next().and_then(Token::name) else { return Kinds::NONE };
    if tokens.accept_symbol(b'.') {
        // Those of extensions are not reported.
        while tokens.next().is_some() && tokens.accept_symbol(b'.') {}
        return unless_default(tokens, Kind::Parameter);
    }
    if is_word(name, b"role") || is_word(name, b"session_authorization") {
        return unless_default(tokens, Kind::Role);
    }
    let name: &[u8] = match tokens.clone().next() {
        Some(token) if is_word(name, b"time") && token.is(b"zone") => {
            tokens.next();
            b"timezone"
        }
        _ if is_word(name, b"names") => b"client_encoding",
        _ if is_word(name, b"schema") => b"search_path",
        _ => name,
    };
    if follows(name, session) { Kinds::NONE } else { unless_default(tokens, Kind::Parameter) }
}

/// Nothing is left of what goes back to how it was: `[ = | TO ] DEFAULT`, `NONE` of a role.
fn unless_default(mut tokens: Tokens<'_>, kind: Kind) -> Kinds {
    if !tokens.accept_symbol(b'=') {
        tokens.accept(b"to");
    }
    let goes_back = tokens.accept(b"default") || (kind == Kind::Role && tokens.accept(b"none"));
    if goes_back { Kinds::NONE } else { kind.into() }
}

/// `SET SESSION CHARACTERISTICS AS TRANSACTION ...`: three parameters.
fn characteristics(tokens: Tokens<'_>, session: Session<'_>) -> Kinds {
    let mut kinds = Kinds::NONE;
    for token in tokens {
        let name: &[u8] = if token.is(b"isolation") {
            b"default_transaction_isolation"
        } else if token.is(b"deferrable") {
            b"default_transaction_deferrable"
        } else if token.is(b"only") || token.is(b"write") {
            b"default_transaction_read_only"
        } else {
            continue;
        };
        if !follows(name, session) {
            kinds |= Kind::Parameter.into();
        }
    }
    kinds
}

/// Whether a parameter follows the client.
pub(super) fn follows(name: &[u8], session: Session<'_>) -> bool {
    std::str::from_utf8(name).is_ok_and(|name| (session.follows)(name))
}

/// `DECLARE name ... CURSOR [ WITH HOLD ] FOR query`, behind the first word.
fn declare(mut tokens: Tokens<'_>) -> Kinds {
    while let Some(token) = tokens.next() {
        if token.is(b"with") && tokens.accept(b"hold") {
            return Kind::Cursor.into();
        }
        if token.is(b"for") {
            break;
        }
    }
    Kinds::NONE
}

/// `CREATE [ OR REPLACE ] [ GLOBAL | LOCAL ] [ TEMPORARY | TEMP ] ...` and `CREATE ... pg_temp.name`, unless it goes with the
/// transaction.
fn create(mut tokens: Tokens<'_>) -> Kinds {
    let _ = tokens.accept(b"or") && tokens.accept(b"replace");
    let _ = tokens.accept(b"global") || tokens.accept(b"local");
    let mut temporary = tokens.accept(b"temporary") || tokens.accept(b"temp");
    let mut dropped = false;
    while let Some(token) = tokens.next() {
        temporary |= token.name().is_some_and(|name| is_word(name, b"pg_temp"));
        dropped |= token.is(b"on") && tokens.accept(b"commit") && tokens.accept(b"drop");
    }
    if temporary && !dropped { Kind::Temporary.into() } else { Kinds::NONE }
}

/// `EXPLAIN ANALYZE CREATE TEMP TABLE ... AS ...` makes the table.
fn explain(mut tokens: Tokens<'_>) -> Kinds {
    while let Some(token) = tokens.next() {
        if token.is(b"create") {
            return create(tokens);
        }
        if [&b"select"[..], b"with", b"insert", b"update", b"delete"].iter().any(|each| token.is(each)) {
            break;
        }
    }
    Kinds::NONE
}
