//! From the TOML of one setting to its value and back: one `impl` for each kind of value there is.

use std::path::PathBuf;
use std::time::Duration;

use toml::Spanned;
use toml::de::DeValue;

use super::report::{Span, kind};
use super::{
    AuthType, Delay, Host, LeakPolicy, Listen, LogFormat, LogLevel, NAME_BYTES_MAX, PoolMode, Secret,
};

/// What the TOML of a setting can be read into.
pub(super) trait Value {
    /// What it has to look like, to say so: `a whole number`.
    fn shape(&self) -> String;

    /// Takes the value over.
    fn read(&mut self, value: &Spanned<DeValue<'_>>) -> Result<(), Wrong>;

    /// The TOML that reads as this; `None` when unset.
    fn show(&self) -> Option<String>;

    /// The value as a number, for the settings that have limits.
    fn number(&self) -> Option<u64> {
        None
    }
}

/// Why a value was not taken.
pub(super) enum Wrong {
    /// It is of another kind.
    Kind,
    /// It is of the right kind and still impossible: what follows the key's name, `must be ...`.
    Because(String),
    /// As before, said of a part of the value.
    Part(Span, String),
}

/// A value that was not taken: where it stands, and the whole sentence.
pub(super) struct Fault {
    pub span: Span,
    pub text: String,
}

type Toml<'a> = Spanned<DeValue<'a>>;

impl Value for bool {
    fn shape(&self) -> String {
        "true or false".into()
    }

    /// PgBouncer writes 0 and 1.
    fn read(&mut self, value: &Toml<'_>) -> Result<(), Wrong> {
        *self = match (value.get_ref(), integer(value)) {
            (DeValue::Boolean(flag), _) => *flag,
            (_, Some(0)) => false,
            (_, Some(1)) => true,
            _ => return Err(Wrong::Kind),
        };
        Ok(())
    }

    fn show(&self) -> Option<String> {
        Some(self.to_string())
    }
}

/// The whole numbers differ in size only.
macro_rules! whole_number {
    ($($number:ty),*) => {$(
        impl Value for $number {
            fn shape(&self) -> String {
                "a whole number".into()
            }

            fn read(&mut self, value: &Toml<'_>) -> Result<(), Wrong> {
                let number = integer(value).ok_or(Wrong::Kind)?;
                *self = <$number>::try_from(number).map_err(|_| too_far(number, <$number>::MAX as i128))?;
                Ok(())
            }

            fn show(&self) -> Option<String> {
                Some(self.to_string())
            }

            fn number(&self) -> Option<u64> {
                u64::try_from(*self).ok()
            }
        }
    )*};
}

whole_number!(u16, u32, usize);

/// A number of bytes, 0 for none.
impl Value for Option<usize> {
    fn shape(&self) -> String {
        "a whole number".into()
    }

    fn read(&mut self, value: &Toml<'_>) -> Result<(), Wrong> {
        let mut number = 0;
        usize::read(&mut number, value)?;
        *self = (number != 0).then_some(number);
        Ok(())
    }

    fn show(&self) -> Option<String> {
        self.map(|number| number.to_string())
    }

    fn number(&self) -> Option<u64> {
        self.and_then(|number| number.number())
    }
}

impl Value for Duration {
    fn shape(&self) -> String {
        "a number of seconds".into()
    }

    fn read(&mut self, value: &Toml<'_>) -> Result<(), Wrong> {
        *self = seconds(value)?;
        if self.is_zero() {
            return Err(because("must be more than 0: it cannot be switched off"));
        }
        Ok(())
    }

    fn show(&self) -> Option<String> {
        Some(self.as_secs_f64().to_string())
    }

    /// Whole seconds: what the kernel's options take.
    fn number(&self) -> Option<u64> {
        Some(self.as_secs())
    }
}

impl Value for Option<Duration> {
    fn shape(&self) -> String {
        "a number of seconds, 0 for off".into()
    }

    fn read(&mut self, value: &Toml<'_>) -> Result<(), Wrong> {
        *self = Some(seconds(value)?).filter(|duration| !duration.is_zero());
        Ok(())
    }

    fn show(&self) -> Option<String> {
        Some(self.unwrap_or_default().as_secs_f64().to_string())
    }
}

impl Value for Delay {
    fn shape(&self) -> String {
        "a number of seconds".into()
    }

    fn read(&mut self, value: &Toml<'_>) -> Result<(), Wrong> {
        self.0 = seconds(value)?;
        Ok(())
    }

    fn show(&self) -> Option<String> {
        Some(self.0.as_secs_f64().to_string())
    }
}

impl Value for String {
    fn shape(&self) -> String {
        "a string".into()
    }

    fn read(&mut self, value: &Toml<'_>) -> Result<(), Wrong> {
        let text = string(value)?;
        if text.contains('\0') {
            return Err(because("must not contain a zero byte"));
        }
        *self = text.to_owned();
        Ok(())
    }

    fn show(&self) -> Option<String> {
        Some(quoted(self))
    }
}

/// The name of a database, a user or an endpoint.
impl Value for Option<String> {
    fn shape(&self) -> String {
        "a string".into()
    }

    fn read(&mut self, value: &Toml<'_>) -> Result<(), Wrong> {
        let name = string(value)?;
        check_name(name).map_err(Wrong::Because)?;
        *self = Some(name.to_owned());
        Ok(())
    }

    fn show(&self) -> Option<String> {
        self.as_deref().map(quoted)
    }
}

impl Value for Option<Secret> {
    fn shape(&self) -> String {
        "a string".into()
    }

    fn read(&mut self, value: &Toml<'_>) -> Result<(), Wrong> {
        *self = Some(Secret::new(string(value)?));
        Ok(())
    }

    fn show(&self) -> Option<String> {
        self.as_ref().map(|secret| quoted(&secret.to_string()))
    }
}

impl Value for Option<PathBuf> {
    fn shape(&self) -> String {
        "a path".into()
    }

    fn read(&mut self, value: &Toml<'_>) -> Result<(), Wrong> {
        let path = string(value)?;
        if path.is_empty() {
            return Err(because("must not be empty; leave the line out instead"));
        }
        *self = Some(PathBuf::from(path));
        Ok(())
    }

    fn show(&self) -> Option<String> {
        self.as_ref().map(|path| quoted(&path.to_string_lossy()))
    }
}

/// A list of names, or as PgBouncer has it one string with commas.
impl Value for Vec<String> {
    fn shape(&self) -> String {
        "a list of strings".into()
    }

    fn read(&mut self, value: &Toml<'_>) -> Result<(), Wrong> {
        let mut names = Vec::new();
        for (span, name) in strings(value)? {
            check_name(name).map_err(|text| Wrong::Part(span, text))?;
            names.push(name.to_owned());
        }
        *self = names;
        Ok(())
    }

    fn show(&self) -> Option<String> {
        Some(list(self.iter().map(|name| quoted(name))))
    }
}

impl Value for Vec<Listen> {
    fn shape(&self) -> String {
        "a list of strings".into()
    }

    fn read(&mut self, value: &Toml<'_>) -> Result<(), Wrong> {
        let mut all = Vec::new();
        for (span, text) in strings(value)? {
            for listen in Listen::parse(text).map_err(|text| Wrong::Part(span.clone(), text))? {
                if all.contains(&listen) {
                    return Err(Wrong::Part(span, format!("has \"{}\" twice", listen.text())));
                }
                all.push(listen);
            }
        }
        if all.is_empty() {
            return Err(because("must not be empty: clients need a place to connect to"));
        }
        *self = all;
        Ok(())
    }

    fn show(&self) -> Option<String> {
        Some(list(self.iter().map(|listen| quoted(&listen.text()))))
    }
}

impl Value for Vec<Host> {
    fn shape(&self) -> String {
        "a string or a list of strings".into()
    }

    fn read(&mut self, value: &Toml<'_>) -> Result<(), Wrong> {
        let mut hosts = Vec::new();
        for (span, text) in strings(value)? {
            hosts.push(Host::parse(text).map_err(|text| Wrong::Part(span, text))?);
        }
        if hosts.is_empty() {
            return Err(because("must not be empty"));
        }
        *self = hosts;
        Ok(())
    }

    fn show(&self) -> Option<String> {
        let mut hosts = self.iter().map(|host| quoted(&host.text()));
        match self.len() {
            1 => hosts.next(),
            _ => Some(list(hosts)),
        }
    }
}

/// CPUs by their numbers.
impl Value for Vec<usize> {
    fn shape(&self) -> String {
        "a list of whole numbers".into()
    }

    fn read(&mut self, value: &Toml<'_>) -> Result<(), Wrong> {
        let DeValue::Array(array) = value.get_ref() else { return Err(Wrong::Kind) };
        let mut numbers = Vec::new();
        for element in array.iter() {
            let mut number = 0;
            usize::read(&mut number, element)?;
            numbers.push(number);
        }
        *self = numbers;
        Ok(())
    }

    fn show(&self) -> Option<String> {
        Some(list(self.iter().map(usize::to_string)))
    }
}

/// A CPU by its number; there is no default.
#[derive(Default)]
pub(super) struct Cpu(pub Option<usize>);

impl Value for Cpu {
    fn shape(&self) -> String {
        "a whole number".into()
    }

    fn read(&mut self, value: &Toml<'_>) -> Result<(), Wrong> {
        let mut number = 0;
        usize::read(&mut number, value)?;
        self.0 = Some(number);
        Ok(())
    }

    fn show(&self) -> Option<String> {
        self.0.map(|number| number.to_string())
    }
}

/// A value that is one of a few words.
trait Word: Copy + PartialEq + 'static {
    const WORDS: &[(&str, Self)];
    /// Words that are known and refused, and what is said then.
    const REFUSED: (&[&str], &str) = (&[], "");
}

impl Word for PoolMode {
    const WORDS: &[(&str, Self)] = &[
        ("session", PoolMode::Session),
        ("transaction", PoolMode::Transaction),
        ("statement", PoolMode::Statement),
    ];
}

impl Word for AuthType {
    const WORDS: &[(&str, Self)] = &[("trust", AuthType::Trust)];
    const REFUSED: (&[&str], &str) = (
        &["any", "plain", "md5", "scram-sha-256", "cert", "hba", "pam", "ldap"],
        "is not in this version; use \"trust\", and let `listen` be reached only by those you trust",
    );
}

impl Word for LeakPolicy {
    const WORDS: &[(&str, Self)] = &[
        ("allow", LeakPolicy::Allow),
        ("log", LeakPolicy::Log),
        ("reset", LeakPolicy::Reset),
        ("pin", LeakPolicy::Pin),
        ("refuse", LeakPolicy::Refuse),
    ];
}

impl Word for LogFormat {
    const WORDS: &[(&str, Self)] = &[("text", LogFormat::Text), ("json", LogFormat::Json)];
}

impl Word for LogLevel {
    const WORDS: &[(&str, Self)] = &[
        ("error", LogLevel::Error),
        ("warn", LogLevel::Warn),
        ("info", LogLevel::Info),
        ("debug", LogLevel::Debug),
    ];
}

impl<W: Word> Value for W {
    fn shape(&self) -> String {
        one_of(W::WORDS)
    }

    fn read(&mut self, value: &Toml<'_>) -> Result<(), Wrong> {
        let word = string(value)?;
        if let Some((_, meaning)) = W::WORDS.iter().find(|(known, _)| *known == word) {
            *self = *meaning;
            return Ok(());
        }
        let (refused, why) = W::REFUSED;
        if refused.contains(&word) {
            return Err(because(format!("= \"{word}\" {why}")));
        }
        Err(because(format!("must be {}, not \"{word}\"", one_of(W::WORDS))))
    }

    fn show(&self) -> Option<String> {
        W::WORDS.iter().find(|(_, meaning)| meaning == self).map(|(word, _)| quoted(word))
    }
}

/// A word, or what holds for all.
impl<W: Word> Value for Option<W> {
    fn shape(&self) -> String {
        one_of(W::WORDS)
    }

    fn read(&mut self, value: &Toml<'_>) -> Result<(), Wrong> {
        let [(_, any), ..] = W::WORDS else { return Err(Wrong::Kind) };
        let mut word = *any;
        word.read(value)?;
        *self = Some(word);
        Ok(())
    }

    fn show(&self) -> Option<String> {
        self.as_ref().and_then(Value::show)
    }
}

/// Refuses what cannot be the name of a database, a user or an endpoint.
pub(super) fn check_name(name: &str) -> Result<(), String> {
    match name {
        "" => Err("must not be an empty name".into()),
        _ if name.len() > NAME_BYTES_MAX => {
            Err(format!("must be a name of at most {NAME_BYTES_MAX} bytes; \"{name}\" has {}", name.len()))
        }
        _ if name.chars().any(char::is_control) => Err("must be a name without control characters".into()),
        _ => Ok(()),
    }
}

/// A text as a TOML basic string, which can also be a key.
pub(super) fn quoted(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for letter in text.chars() {
        match letter {
            '"' | '\\' => quoted.extend(['\\', letter]),
            '\n' => quoted.push_str("\\n"),
            _ if letter.is_control() => quoted.push_str(&format!("\\u{:04X}", u32::from(letter))),
            _ => quoted.push(letter),
        }
    }
    quoted.push('"');
    quoted
}

fn list(elements: impl Iterator<Item = String>) -> String {
    format!("[{}]", elements.collect::<Vec<_>>().join(", "))
}

fn because(text: impl Into<String>) -> Wrong {
    Wrong::Because(text.into())
}

fn one_of<W>(words: &[(&str, W)]) -> String {
    let words: Vec<String> = words.iter().map(|(word, _)| format!("\"{word}\"")).collect();
    match words.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} or {last}", rest.join(", ")),
        _ => words.concat(),
    }
}

fn too_far(number: i128, most: i128) -> Wrong {
    match number < 0 {
        true => because(format!("must not be negative, and is {number}")),
        false => because(format!("must be at most {most}, and is {number}")),
    }
}

fn integer(value: &Toml<'_>) -> Option<i128> {
    let integer = value.get_ref().as_integer()?;
    i128::from_str_radix(integer.as_str(), integer.radix()).ok()
}

fn string<'v>(value: &'v Toml<'_>) -> Result<&'v str, Wrong> {
    value.get_ref().as_str().ok_or(Wrong::Kind)
}

/// The strings of a list, or of one string with commas, each with where it stands.
fn strings<'v>(value: &'v Toml<'_>) -> Result<Vec<(Span, &'v str)>, Wrong> {
    let one = |element: &'v Toml<'_>| element.get_ref().as_str().map(|text| (element.span(), text));
    match value.get_ref() {
        DeValue::Array(array) => array
            .iter()
            .map(|element| {
                let found = kind(element.get_ref());
                one(element).ok_or_else(|| {
                    Wrong::Part(element.span(), format!("must have strings only, not {found}"))
                })
            })
            .collect(),
        DeValue::String(text) if text.is_empty() => Ok(Vec::new()),
        DeValue::String(text) => Ok(text.split(',').map(|part| (value.span(), part.trim())).collect()),
        _ => Err(Wrong::Kind),
    }
}

fn seconds(value: &Toml<'_>) -> Result<Duration, Wrong> {
    let seconds = match value.get_ref() {
        DeValue::Float(float) => float.as_str().parse::<f64>().map_err(|_| Wrong::Kind)?,
        _ => integer(value).ok_or(Wrong::Kind)? as f64,
    };
    if seconds.is_nan() || seconds > SECONDS_MAX {
        return Err(because(format!("must be at most {SECONDS_MAX} seconds, and is {seconds}")));
    }
    if seconds < 0.0 {
        return Err(because(format!("must not be negative, and is {seconds}")));
    }
    Ok(Duration::from_secs_f64(seconds))
}

/// Ten years: what is longer is a slip, and no deadline overflows.
const SECONDS_MAX: f64 = 10.0 * 365.0 * 86400.0;
