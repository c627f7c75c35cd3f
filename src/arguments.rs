//! The command line: from arguments to what is asked for.

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;

use lexopt::prelude::*;

/// What somebody asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Serve clients.
    Run(Source),
    /// Say all that is wrong with a configuration.
    Check {
        /// The file.
        config: PathBuf,
        /// Whether to print the settings that hold.
        show: bool,
    },
    /// Print the version.
    Version,
    /// Print [`HELP`].
    Help,
}

/// Where the configuration comes from; what a reload reads again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// This file.
    File(PathBuf),
    /// Defaults, for one server.
    Upstream {
        /// `HOST:PORT`, or the directory of a socket.
        server: String,
        /// Where to listen; empty for the default.
        listen: Vec<String>,
    },
}

/// Arguments that ask for nothing there is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsageError(String);

impl fmt::Display for UsageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for UsageError {}

impl From<lexopt::Error> for UsageError {
    fn from(error: lexopt::Error) -> Self {
        UsageError(error.to_string())
    }
}

/// Understands the arguments that follow the program's name.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Command, UsageError> {
    let mut parser = lexopt::Parser::from_args(arguments);
    match parser.next()? {
        None => Err(UsageError("a command is missing: run or check".into())),
        Some(Short('h') | Long("help")) => Ok(Command::Help),
        Some(Short('V') | Long("version")) => Ok(Command::Version),
        Some(Value(command)) => match command.to_str() {
            Some("run") => parse_run(parser),
            Some("check") => parse_check(parser),
            Some("help") => Ok(Command::Help),
            _ => Err(UsageError(format!("there is no command {command:?}; there are run and check"))),
        },
        Some(other) => Err(other.unexpected().into()),
    }
}

fn parse_run(mut parser: lexopt::Parser) -> Result<Command, UsageError> {
    let (mut config, mut server, mut listen) = (None, None, Vec::new());
    while let Some(argument) = parser.next()? {
        match argument {
            Short('c') | Long("config") => set_once(&mut config, "-c", PathBuf::from(parser.value()?))?,
            Long("upstream") => set_once(&mut server, "--upstream", parser.value()?.string()?)?,
            Long("listen") => listen.push(parser.value()?.string()?),
            Short('h') | Long("help") => return Ok(Command::Help),
            other => return Err(other.unexpected().into()),
        }
    }
    match (config, server) {
        (Some(_), None) if !listen.is_empty() => {
            Err(UsageError("--listen goes with --upstream; with -c, `listen` in the file decides".into()))
        }
        (Some(config), None) => Ok(Command::Run(Source::File(config))),
        (None, Some(server)) => Ok(Command::Run(Source::Upstream { server, listen })),
        (Some(_), Some(_)) => Err(UsageError("run takes -c or --upstream, not both".into())),
        (None, None) => Err(UsageError("run needs -c FILE or --upstream HOST:PORT".into())),
    }
}

fn parse_check(mut parser: lexopt::Parser) -> Result<Command, UsageError> {
    let (mut config, mut show) = (None, false);
    while let Some(argument) = parser.next()? {
        match argument {
            Short('c') | Long("config") => set_once(&mut config, "-c", PathBuf::from(parser.value()?))?,
            Long("show") => show = true,
            Short('h') | Long("help") => return Ok(Command::Help),
            other => return Err(other.unexpected().into()),
        }
    }
    let config = config.ok_or_else(|| UsageError("check needs -c FILE".into()))?;
    Ok(Command::Check { config, show })
}

fn set_once<T>(place: &mut Option<T>, option: &str, value: T) -> Result<(), UsageError> {
    match place.replace(value) {
        None => Ok(()),
        Some(_) => Err(UsageError(format!("{option} is given twice"))),
    }
}

/// What `--help` prints.
pub const HELP: &str = "\
pgpinion, a connection pooler for PostgreSQL

  pgpinion run -c FILE                 serve clients as FILE says
  pgpinion run --upstream HOST:PORT    serve all databases of one server, with defaults
  pgpinion check -c FILE               say all that is wrong with FILE

Options of run:
  -c, --config FILE      the configuration, pgpinion.toml
  --upstream HOST:PORT   the server; also a socket's directory, /run/postgresql
  --listen ADDRESS       where clients connect, with --upstream; may be repeated
                         ADDRESS:PORT, localhost:PORT, *:PORT or unix:DIR; 127.0.0.1:6432 if not given

Options of check:
  -c, --config FILE      the configuration, pgpinion.toml
  --show                 print the settings that hold, defaults included

  -h, --help             print this
  -V, --version          print the version

Signals: SIGHUP reads the configuration again, SIGTERM lets transactions end and exits, SIGINT exits at once.
Exit status: 0 is fine, 1 is a fault of the configuration or while running, 2 is a fault of these arguments.
";

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Command, String> {
        parse(line.split_whitespace().map(OsString::from)).map_err(|error| error.to_string())
    }

    fn upstream(listen: &[&str]) -> Command {
        let listen = listen.iter().map(|listen| (*listen).to_owned()).collect();
        Command::Run(Source::Upstream { server: "db:5432".into(), listen })
    }

    #[test]
    fn what_is_asked_for_is_understood() {
        let file = || Command::Run(Source::File("p.toml".into()));
        let table = [
            ("run -c p.toml", file()),
            ("run -cp.toml", file()),
            ("run --config=p.toml", file()),
            ("run --upstream db:5432", upstream(&[])),
            ("run --listen *:1 --upstream=db:5432 --listen unix:/run", upstream(&["*:1", "unix:/run"])),
            ("check -c p.toml", Command::Check { config: "p.toml".into(), show: false }),
            ("check --show -c p.toml", Command::Check { config: "p.toml".into(), show: true }),
            ("--version", Command::Version),
            ("-V", Command::Version),
            ("--help", Command::Help),
            ("run --help", Command::Help),
            ("check -h", Command::Help),
        ];
        for (line, command) in table {
            assert_eq!(parsed(line), Ok(command), "{line}");
        }
    }

    #[test]
    fn what_is_not_there_is_told() {
        let table = [
            ("", "a command is missing: run or check"),
            ("serve", "there is no command \"serve\"; there are run and check"),
            ("-d", "invalid option '-d'"),
            ("run", "run needs -c FILE or --upstream HOST:PORT"),
            ("run -c", "missing argument for option '-c'"),
            ("run -c a -c b", "-c is given twice"),
            ("run -c a --upstream b", "run takes -c or --upstream, not both"),
            ("run -c a --listen b", "--listen goes with --upstream; with -c, `listen` in the file decides"),
            ("run p.toml", "unexpected argument \"p.toml\""),
            ("check", "check needs -c FILE"),
            ("check -c a --verbose", "invalid option '--verbose'"),
        ];
        for (line, error) in table {
            assert_eq!(parsed(line), Err(error.to_owned()), "{line}");
        }
    }
}
