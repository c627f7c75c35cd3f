//! `DEALLOCATE name` as the only command of a simple query: drivers whose library cannot send a Close (libpq before 17)
//! give up statements this way that they prepared by a Parse.

use std::borrow::Cow;

/// The name that a terminated query deallocates, if that is all it does. Anything unusual (comments, several commands,
/// ALL) is none.
pub(super) fn name(query: &[u8]) -> Option<Cow<'_, [u8]>> {
    let text = query.strip_suffix(b"\0")?.trim_ascii();
    let text = text.strip_suffix(b";").unwrap_or(text).trim_ascii_end();
    let mut rest = word(text, b"deallocate")?;
    if let Some(after) = word(rest, b"prepare") {
        rest = after;
    }
    match rest.strip_prefix(b"\"") {
        Some(quoted) => quoted_name(quoted.strip_suffix(b"\"")?),
        None if rest.eq_ignore_ascii_case(b"all") || rest.eq_ignore_ascii_case(b"prepare") => None,
        None => bare_name(rest),
    }
}

/// What follows a keyword and space.
fn word<'a>(text: &'a [u8], keyword: &[u8]) -> Option<&'a [u8]> {
    let (head, rest) = text.split_at_checked(keyword.len())?;
    let space = rest.first()?.is_ascii_whitespace();
    (space && head.eq_ignore_ascii_case(keyword)).then(|| rest.trim_ascii_start())
}

fn quoted_name(text: &[u8]) -> Option<Cow<'_, [u8]>> {
    (!text.is_empty() && !text.contains(&b'"')).then_some(Cow::Borrowed(text))
}

fn bare_name(text: &[u8]) -> Option<Cow<'_, [u8]>> {
    let begins = text.first().is_some_and(|first| first.is_ascii_alphabetic() || *first == b'_');
    let goes_on = text.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'$'));
    (begins && goes_on).then(|| Cow::Owned(text.to_ascii_lowercase()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_single_plain_deallocate_counts() {
        let cases: &[(&str, Option<&str>)] = &[
            ("DEALLOCATE _pg3_31", Some("_pg3_31")),
            ("deallocate Prepare\n\tSome$1 ;", Some("some$1")),
            ("deallocate \"A b\"", Some("A b")),
            ("deallocate preparer", Some("preparer")),
            ("DEALLOCATE ALL", None),
            ("deallocate prepare all", None),
            ("deallocate prepare", None),
            ("deallocate a; select 1", None),
            ("deallocate a -- b", None),
            ("deallocate \"a\"\"b\"", None),
            ("deallocate \"a\" \"b\"", None),
            ("deallocate", None),
            ("deallocated a", None),
            ("deallocate 1", None),
            ("deallocate \u{e4}", None),
            ("", None),
        ];
        for (query, expected) in cases {
            let found = name(format!("{query}\0").as_bytes()).map(Cow::into_owned);
            assert_eq!(found.as_deref(), expected.map(str::as_bytes), "{query}");
        }
        assert_eq!(name(b"deallocate a"), None, "not terminated");
    }
}
