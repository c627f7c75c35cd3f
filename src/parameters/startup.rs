//! Parameters in a startup packet: which are honoured, ignored, refused.

use super::Values;
use crate::wire::{Refusal, SqlState};

/// What the operator says about parameters of startup packets.
#[derive(Clone, Copy, Debug)]
pub struct Policy<'a> {
    /// `track_extra_parameters`: these are honoured too.
    pub tracked: &'a [String],
    /// `ignore_startup_parameters`: these are ignored.
    pub ignored: &'a [String],
}

impl Policy<'_> {
    fn ignores(&self, name: &str) -> bool {
        self.ignored.iter().any(|each| each.eq_ignore_ascii_case(name))
    }

    /// The name as it is written where it is honoured.
    fn honoured<'a>(&'a self, name: &str) -> Option<&'a str> {
        let extra = self.tracked.iter().map(String::as_str);
        HONOURED.into_iter().chain(extra).find(|each| each.eq_ignore_ascii_case(name))
    }
}

/// The values that a client asks for, as it wrote them; PostgreSQL has not looked at them yet. As PostgreSQL has it, what
/// stands in `options` comes first, and the last of several counts.
///
/// # Errors
/// The first parameter that is neither honoured nor ignored, with PgBouncer's words.
pub fn wishes(parameters: &[(String, String)], policy: Policy<'_>) -> Result<Values, Refusal> {
    let mut values = Values::default();
    let options = parameters.iter().rev().find(|(name, _)| name == "options");
    if let Some((_, options)) = options.filter(|_| !policy.ignores("options")) {
        for (name, value) in read_options(options)? {
            let refused = || refusal(format!("unsupported startup parameter in options: {name}"));
            take(&mut values, policy, &name, &value).ok_or_else(refused)?;
        }
    }
    for (name, value) in parameters {
        let of_the_protocol = PROTOCOL.contains(&name.as_str()) || name.starts_with("_pq_.");
        if !of_the_protocol {
            let refused = || refusal(format!("unsupported startup parameter: {name}"));
            take(&mut values, policy, name, value).ok_or_else(refused)?;
        }
    }
    Ok(values)
}

/// `None`: neither honoured nor ignored.
fn take(values: &mut Values, policy: Policy<'_>, name: &str, value: &str) -> Option<()> {
    if policy.ignores(name) {
        return Some(());
    }
    values.set(&policy.honoured(name)?.into(), value.into());
    Some(())
}

/// The settings of an `options` parameter: `-c name=value`, `-cname=value`, `--name=value`.
fn read_options(options: &str) -> Result<Vec<(String, String)>, Refusal> {
    let mut words = split_options(options).into_iter();
    let mut settings = Vec::new();
    while let Some(word) = words.next() {
        let setting = match (word.strip_prefix("--"), word.strip_prefix("-c")) {
            (Some(setting), _) => setting.to_owned(),
            (None, Some("")) => words.next().unwrap_or_default(),
            (None, Some(setting)) => setting.to_owned(),
            (None, None) => {
                let text = "unsupported options startup parameter: only '-c config=val' and '--config=val' are allowed";
                return Err(Refusal::new(SqlState::PROTOCOL_VIOLATION, text));
            }
        };
        match setting.split_once('=') {
            // PostgreSQL lets dashes stand for underscores here.
            Some((name, value)) if !name.is_empty() => {
                settings.push((name.replace('-', "_"), value.to_owned()));
            }
            _ => {
                let text = format!("startup parameter in options without a value: {setting}");
                return Err(Refusal::new(SqlState::SYNTAX_ERROR, text));
            }
        }
    }
    Ok(settings)
}

/// Cuts at white space (`pg_split_opts`); a backslash takes the next character for itself.
fn split_options(options: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut letters = options.chars();
    while let Some(letter) = letters.next() {
        match letter {
            ' ' | '\t' | '\n' | '\r' | '\x0b' | '\x0c' => words.extend(word.take()),
            '\\' => word.get_or_insert_default().extend(letters.next()),
            letter => word.get_or_insert_default().push(letter),
        }
    }
    words.extend(word);
    words
}

fn refusal(text: String) -> Refusal {
    Refusal::new(SqlState::PROTOCOL_VIOLATION, text).hint(
        "Name it in track_extra_parameters of pgpinion.toml to have it honoured, or in ignore_startup_parameters to have \
         it ignored.",
    )
}

/// What all clients may ask for: what PostgreSQL of any version reports and drivers send, and the one they send that is not
/// reported.
const HONOURED: [&str; 8] = [
    "application_name",
    "client_encoding",
    "DateStyle",
    "default_transaction_read_only",
    "IntervalStyle",
    "standard_conforming_strings",
    "TimeZone",
    "extra_float_digits",
];

/// Not parameters of the session.
const PROTOCOL: [&str; 4] = ["user", "database", "replication", "options"];

#[cfg(test)]
mod tests {
    use super::*;

    fn wish(parameters: &[(&str, &str)], tracked: &[&str], ignored: &[&str]) -> Result<Vec<String>, String> {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let parameters: Vec<(String, String)> =
            parameters.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        let (tracked, ignored) = (owned(tracked), owned(ignored));
        match wishes(&parameters, Policy { tracked: &tracked, ignored: &ignored }) {
            Ok(values) => Ok(values.iter().map(|(name, value)| format!("{name}={value}")).collect()),
            Err(refusal) => Err(format!("{} {}", refusal.code, refusal.message)),
        }
    }

    #[test]
    fn what_drivers_send_is_honoured() {
        let jdbc = [
            ("user", "u"),
            ("database", "d"),
            ("client_encoding", "UTF8"),
            ("DateStyle", "ISO"),
            ("TimeZone", "Europe/Berlin"),
            ("extra_float_digits", "2"),
            ("_pq_.x", "y"),
        ];
        let expected =
            ["DateStyle=ISO", "TimeZone=Europe/Berlin", "client_encoding=UTF8", "extra_float_digits=2"];
        assert_eq!(wish(&jdbc, &[], &[]).unwrap(), expected);
        assert_eq!(wish(&[("timezone", "PRC"), ("TIMEZONE", "UTC")], &[], &[]).unwrap(), ["TimeZone=UTC"]);
    }

    #[test]
    fn options_are_read_as_postgresql_reads_them() {
        for (options, expected) in [
            ("-c TimeZone=PRC", &["TimeZone=PRC"][..]),
            ("-ctimezone=PRC --datestyle=ISO", &["DateStyle=ISO", "TimeZone=PRC"]),
            ("  --application-name=a\\ b\\\\c\t", &["application_name=a b\\c"]),
            ("-c application_name=x=y", &["application_name=x=y"]),
            ("-c application_name=", &["application_name="]),
            ("", &[]),
            ("\\", &[]),
        ] {
            let found = wish(&[("options", options)], &[], &[]);
            if options == "\\" {
                assert!(found.is_err(), "{options:?} is a word that is no option");
                continue;
            }
            assert_eq!(found.unwrap(), expected, "{options:?}");
        }
        let both = [("TimeZone", "UTC"), ("options", "-c TimeZone=PRC")];
        assert_eq!(wish(&both, &[], &[]).unwrap(), ["TimeZone=UTC"], "options come first");
    }

    #[test]
    fn everything_else_is_refused_unless_the_operator_says_otherwise() {
        let search_path = [("search_path", "a")];
        let refused = "08P01 unsupported startup parameter: search_path";
        assert_eq!(wish(&search_path, &[], &[]).unwrap_err(), refused);
        assert_eq!(wish(&search_path, &["Search_Path"], &[]).unwrap(), ["Search_Path=a"]);
        assert_eq!(wish(&search_path, &[], &["SEARCH_PATH"]).unwrap(), [""; 0]);
        let options = [("options", "-c geqo=off")];
        let refused = "08P01 unsupported startup parameter in options: geqo";
        assert_eq!(wish(&options, &[], &[]).unwrap_err(), refused);
        assert_eq!(wish(&options, &[], &["options"]).unwrap(), [""; 0]);
        assert_eq!(wish(&options, &[], &["geqo"]).unwrap(), [""; 0]);
        for bad in ["-d 5", "x", "-c", "-c=", "-c =", "--=x", "-c name", "-", "--"] {
            assert!(wish(&[("options", bad)], &[], &[]).is_err(), "{bad}");
        }
    }
}
