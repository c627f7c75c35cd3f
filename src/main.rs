//! The command line. Only here is printed and exited.

use std::fmt::Display;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use pgpinion::arguments::{self, Command, HELP, Source};
use pgpinion::config::{self, Config, ConfigError};
use pgpinion::control::affinity::cpus_allowed;
use pgpinion::engine;

fn main() -> ExitCode {
    match arguments::parse(std::env::args_os().skip(1)) {
        Ok(Command::Run(source)) => run(&source),
        Ok(Command::Check { config, show }) => check(&config, show),
        Ok(Command::Version) => say(concat!("pgpinion ", env!("CARGO_PKG_VERSION"))),
        Ok(Command::Help) => say(HELP.trim_end()),
        Err(error) => {
            complain([format!("pgpinion: {error}\nTry `pgpinion --help`.")]);
            ExitCode::from(USAGE)
        }
    }
}

fn run(source: &Source) -> ExitCode {
    let served = configuration(source).map_err(complain).and_then(|config| {
        engine::run(config, &|| configuration(source))
            .map_err(|error| complain([format!("pgpinion: {error}")]))
    });
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(()) => ExitCode::FAILURE,
    }
}

fn check(path: &Path, show: bool) -> ExitCode {
    match configuration(&Source::File(path.to_owned())) {
        Ok(config) if show => say(config.render().trim_end()),
        Ok(config) => say(format!("{}: fine: {}", path.display(), config.summary())),
        Err(errors) => {
            complain(errors);
            ExitCode::FAILURE
        }
    }
}

fn configuration(source: &Source) -> Result<Config, Vec<ConfigError>> {
    let cpus = cpus_allowed().map_err(|error| {
        vec![ConfigError::new(format!("the kernel does not tell on which CPUs to run: {error}"))]
    })?;
    match source {
        Source::File(path) => config::load(path, &cpus),
        Source::Upstream { server, listen } => {
            let mut config = Config::upstream(server, &cpus).map_err(|error| vec![error])?;
            config.listen_on(listen).map_err(|error| vec![error])?;
            Ok(config)
        }
    }
}

/// Nothing can be done when nobody reads what is printed.
fn say(text: impl Display) -> ExitCode {
    let _ = writeln!(io::stdout(), "{text}");
    ExitCode::SUCCESS
}

fn complain<T: Display>(errors: impl IntoIterator<Item = T>) {
    for error in errors {
        let _ = writeln!(io::stderr(), "{error}");
    }
}

/// The exit status of wrong arguments, as everywhere.
const USAGE: u8 = 2;
