//! How a line of the log looks. Whatever a client put into it, a line stays one line.

use std::fmt::{self, Display, Write};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::config::LogFormat;
use crate::log_line::{Fields, Level, Line};

/// Appends a line with its newline. Writing to a `String` cannot fail.
pub(super) fn append(text: &mut String, format: LogFormat, time: SystemTime, pid: u32, line: &Line) {
    let _ = match format {
        LogFormat::Text => append_text(text, time, pid, line),
        LogFormat::Json => append_json(text, time, pid, line),
    };
}

/// `2026-11-20 12:00:00.123 UTC [42] INFO message session=3.1 database=app`
fn append_text(text: &mut String, time: SystemTime, pid: u32, line: &Line) -> fmt::Result {
    let Utc { date, clock } = Utc::of(time);
    write!(text, "{date} {clock} UTC [{pid}] {} ", line.level)?;
    append_printable(text, bounded(&line.message));
    each_field(&line.fields, |name, value| {
        let _ = write!(text, " {name}=");
        match value.is_empty() || value.contains([' ', '"', '=']) {
            true => append_quoted(text, value),
            false => append_printable(text, value),
        }
    });
    writeln!(text)
}

/// `{"time":"2026-11-20T12:00:00.123Z","level":"info","pid":42,"message":"message","session":"3.1"}`
fn append_json(text: &mut String, time: SystemTime, pid: u32, line: &Line) -> fmt::Result {
    let Utc { date, clock } = Utc::of(time);
    let level = match line.level {
        Level::Error => "error",
        Level::Warn => "warn",
        Level::Info => "info",
        Level::Debug => "debug",
    };
    write!(text, "{{\"time\":\"{date}T{clock}Z\",\"level\":\"{level}\",\"pid\":{pid},\"message\":")?;
    append_quoted(text, bounded(&line.message));
    each_field(&line.fields, |name, value| {
        let _ = write!(text, ",\"{name}\":");
        append_quoted(text, value);
    });
    writeln!(text, "}}")
}

fn each_field(fields: &Fields, mut show: impl FnMut(&str, &str)) {
    let text = |id: Option<&dyn Display>| id.map(ToString::to_string);
    let session = text(fields.session.as_ref().map(|id| id as &dyn Display));
    let connection = text(fields.connection.as_ref().map(|id| id as &dyn Display));
    let all = [
        ("session", &session),
        ("connection", &connection),
        ("database", &fields.database),
        ("user", &fields.user),
        ("peer", &fields.peer),
    ];
    for (name, value) in all {
        if let Some(value) = value {
            show(name, bounded(value));
        }
    }
}

/// A JSON string. What is not printable is escaped in the text format as well, to the same end.
fn append_quoted(text: &mut String, value: &str) {
    text.push('"');
    for letter in value.chars() {
        match letter {
            '"' | '\\' => text.extend(['\\', letter]),
            _ => append_letter(text, letter),
        }
    }
    text.push('"');
}

fn append_printable(text: &mut String, value: &str) {
    value.chars().for_each(|letter| append_letter(text, letter));
}

/// Control characters would forge lines or drive the terminal of who reads them; U+2028 and U+2029 end lines for some.
fn append_letter(text: &mut String, letter: char) {
    match letter {
        '\n' => text.push_str("\\n"),
        '\t' => text.push_str("\\t"),
        _ if letter.is_control() || ('\u{2028}'..='\u{202e}').contains(&letter) => {
            let _ = write!(text, "\\u{:04x}", u32::from(letter));
        }
        _ => text.push(letter),
    }
}

/// As much of a text as a line may hold.
fn bounded(text: &str) -> &str {
    let end = (0..=TEXT_BYTES_MAX.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
    &text[..end.unwrap_or(0)]
}

/// A point in time as the log shows it.
struct Utc {
    date: String,
    clock: String,
}

impl Utc {
    fn of(time: SystemTime) -> Utc {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
        let (year, month, day) = civil(days);
        Utc {
            date: format!("{year:04}-{month:02}-{day:02}"),
            clock: format!(
                "{:02}:{:02}:{:02}.{:03}",
                second / 3600,
                second / 60 % 60,
                second % 60,
                since.subsec_millis()
            ),
        }
    }
}

/// Year, month and day of the days since 1970, by Howard Hinnant's `civil_from_days`: years start in March there, so that
/// the leap day is the last one.
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (400 * era + year_of_era + u64::from(month <= 2), month, day)
}

/// A message or a field is cut here: an error of PostgreSQL can repeat a query of any size.
const TEXT_BYTES_MAX: usize = 8192;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{IdSource, ShardId};

    fn shown(format: LogFormat, seconds: u64, line: Line) -> String {
        let mut text = String::new();
        append(&mut text, format, UNIX_EPOCH + Duration::from_millis(seconds * 1000 + 123), 42, &line);
        text
    }

    fn line() -> Line {
        let mut ids = IdSource::new(ShardId(3));
        Line::info("login\nforged \"line\"\u{1b}")
            .session(ids.session())
            .connection(ids.connection())
            .database("app")
            .user("o d\"d\\")
            .peer("127.0.0.1:5")
    }

    #[test]
    fn text_is_for_people() {
        assert_eq!(
            shown(LogFormat::Text, 1_795_176_000, line()),
            "2026-11-20 12:00:00.123 UTC [42] INFO login\\nforged \"line\"\\u001b session=3.1 connection=3.2 database=app \
             user=\"o d\\\"d\\\\\" peer=127.0.0.1:5\n"
        );
    }

    #[test]
    fn json_is_for_machines() {
        assert_eq!(
            shown(LogFormat::Json, 1_795_176_000, line()),
            "{\"time\":\"2026-11-20T12:00:00.123Z\",\"level\":\"info\",\"pid\":42,\
             \"message\":\"login\\nforged \\\"line\\\"\\u001b\",\"session\":\"3.1\",\"connection\":\"3.2\",\
             \"database\":\"app\",\"user\":\"o d\\\"d\\\\\",\"peer\":\"127.0.0.1:5\"}\n"
        );
    }

    #[test]
    fn dates_are_right_around_leap_days() {
        let table = [
            (0, "1970-01-01 00:00:00.123"),
            (951_782_399, "2000-02-28 23:59:59.123"),
            (951_782_400, "2000-02-29 00:00:00.123"),
            (951_868_800, "2000-03-01 00:00:00.123"),
            (1_735_689_599, "2024-12-31 23:59:59.123"),
            (4_107_542_400, "2100-03-01 00:00:00.123"),
        ];
        for (seconds, expected) in table {
            assert!(shown(LogFormat::Text, seconds, Line::info("")).starts_with(expected), "{expected}");
        }
    }

    #[test]
    fn a_line_is_bounded() {
        let long = "ü".repeat(TEXT_BYTES_MAX);
        let text = shown(LogFormat::Text, 0, Line::info(&long[..]).user(long));
        assert!(text.len() < 2 * TEXT_BYTES_MAX + 100);
    }
}
