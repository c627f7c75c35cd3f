//! What is left behind from within a command: by functions, and by `SELECT ... INTO TEMP`.

use super::commands::follows;
use super::tokens::{Token, Tokens, is_word};
use super::{Kind, Kinds, Session};

/// What the rest of a command calls; goes to its end.
pub(super) fn look(tokens: &mut Tokens<'_>, session: Session<'_>) -> Kinds {
    let mut kinds = Kinds::NONE;
    let mut inserts = false;
    while let Some(token) = tokens.next() {
        if token.is(b"into") && !inserts && goes_into_temporary(tokens.clone()) {
            kinds |= Kind::Temporary.into();
        }
        inserts = token.is(b"insert") || token.is(b"merge");
        let Some(name) = token.name() else { continue };
        let Some(kind) = function(name) else { continue };
        if !tokens.accept_symbol(b'(') {
            continue;
        }
        kinds |= match kind {
            Kind::Parameter => set_config(tokens.clone(), session),
            kind => kind.into(),
        };
    }
    kinds
}

fn function(name: &[u8]) -> Option<Kind> {
    FUNCTIONS.iter().find(|(each, _)| is_word(name, each)).map(|(_, kind)| *kind)
}

/// `SELECT ... INTO [ TEMPORARY | TEMP ] [ TABLE ] name`, behind INTO.
fn goes_into_temporary(mut tokens: Tokens<'_>) -> bool {
    let _ = tokens.accept(b"local") || tokens.accept(b"global");
    tokens.accept(b"temporary") || tokens.accept(b"temp") || tokens.accept(b"pg_temp")
}

/// `set_config(name, value, is_local)`, behind the parenthesis. It leaves nothing if it says so itself: by a name that
/// follows the client, or by `true` for the third argument.
fn set_config(mut tokens: Tokens<'_>, session: Session<'_>) -> Kinds {
    let name = match tokens.next() {
        Some(Token::Text(name)) if tokens.accept_symbol(b',') => Some(name),
        _ => None,
    };
    if name.is_some_and(|name| follows(name, session)) {
        return Kinds::NONE;
    }
    let role = |name| is_word(name, b"role") || is_word(name, b"session_authorization");
    let kind = if name.is_some_and(role) { Kind::Role } else { Kind::Parameter };
    // Without a name in its place it is not known where the first argument ends.
    let is_local = name.is_some() && behind_comma(&mut tokens) && tokens.accept(b"true");
    if is_local && tokens.accept_symbol(b')') { Kinds::NONE } else { kind.into() }
}

/// Goes behind the next comma that stands in no parentheses of its own.
fn behind_comma(tokens: &mut Tokens<'_>) -> bool {
    let mut depth = 0_usize;
    for token in tokens {
        match token {
            Token::Symbol(b'(' | b'[') => depth += 1,
            Token::Symbol(b')' | b']') if depth == 0 => return false,
            Token::Symbol(b')' | b']') => depth -= 1,
            Token::Symbol(b',') if depth == 0 => return true,
            _ => {}
        }
    }
    false
}

const FUNCTIONS: &[(&[u8], Kind)] = &[
    (b"set_config", Kind::Parameter),
    (b"pg_advisory_lock", Kind::Lock),
    (b"pg_advisory_lock_shared", Kind::Lock),
    (b"pg_try_advisory_lock", Kind::Lock),
    (b"pg_try_advisory_lock_shared", Kind::Lock),
    (b"nextval", Kind::Sequence),
    (b"setval", Kind::Sequence),
];
