//! PgBouncer's userlist: a line is `"user" "password"`, a doubled quote stands for one, the rest of a line is ignored.

use super::report::Report;
use super::values::check_name;
use super::{Secret, Users};

/// The users of a file's text. A user named twice has the later password, as in PgBouncer.
pub(super) fn parse(text: &str, report: &mut Report<'_>) -> Users {
    let mut users = Users::default();
    let mut offset = 0;
    for line in text.split_inclusive('\n') {
        match entry(line) {
            Ok(None) => {}
            Ok(Some((name, password))) => {
                users.0.insert(name, Secret::new(password));
            }
            Err(why) => report.add(offset..offset + line.len(), why),
        }
        offset += line.len();
    }
    users
}

/// The user and the password of a line; nothing for an empty line or a comment.
fn entry(line: &str) -> Result<Option<(String, String)>, String> {
    let line = line.trim_start_matches('\u{feff}').trim();
    if line.is_empty() || line.starts_with([';', '#']) {
        return Ok(None);
    }
    // The line is not repeated in the message: it may hold a password.
    let wrong = || "must be `\"user\" \"password\"`, both in double quotes".to_owned();
    let (name, rest) = quoted(line).ok_or_else(wrong)?;
    let (password, _) = quoted(rest.trim_start()).ok_or_else(wrong)?;
    check_name(&name).map_err(|why| format!("the user {why}"))?;
    Ok(Some((name, password)))
}

/// The text in quotes at the start, and what follows.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut rest = text.strip_prefix('"')?;
    let mut inside = String::new();
    loop {
        let (before, after) = rest.split_once('"')?;
        inside.push_str(before);
        match after.strip_prefix('"') {
            Some(after) => {
                inside.push('"');
                rest = after;
            }
            None => return Some((inside, after)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn read(text: &str) -> (Users, Vec<String>) {
        let mut report = Report::new(Path::new("users"), text);
        let users = parse(text, &mut report);
        (users, report.into_errors().iter().map(ToString::to_string).collect())
    }

    #[test]
    fn users_are_read_as_pgbouncer_reads_them() {
        let text = "; comment\n\"a\" \"x\"  ignored\r\n\n \"q\"\"uote\"  \"p\"\"w\"\n\"a\" \"y\"\n\"s\" \"SCRAM-SHA-256$1:2$3:4\"";
        let (users, errors) = read(text);
        assert_eq!(errors, [] as [&str; 0]);
        assert_eq!(users.len(), 3);
        assert_eq!(users.get("a").unwrap().reveal(), "y");
        assert_eq!(users.get("q\"uote").unwrap().reveal(), "p\"w");
        assert_eq!(users.get("s").unwrap().reveal(), "SCRAM-SHA-256$1:2$3:4");
    }

    #[test]
    fn each_broken_line_is_reported_and_no_password_shown() {
        let (users, errors) =
            read("\"good\" \"x\"\nbad topsecret\n\"open\" \"topsecret\n\"\" \"topsecret\"\n\"one\"\n");
        assert_eq!(users.len(), 1);
        assert_eq!(
            errors,
            [
                "users:2:1: must be `\"user\" \"password\"`, both in double quotes",
                "users:3:1: must be `\"user\" \"password\"`, both in double quotes",
                "users:4:1: the user must not be an empty name",
                "users:5:1: must be `\"user\" \"password\"`, both in double quotes",
            ]
        );
    }
}
