//! The texts of places: where clients connect, and where servers are.
//!
//! An error says what follows a setting's name: `must ...`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

use super::{Host, Listen};

impl Listen {
    /// Reads `ADDRESS:PORT`, `localhost:PORT`, `*:PORT`, `unix:DIR` or `unix:DIR:PORT`. `*` is two places: all of
    /// IPv4 and all of IPv6. The error says what follows a setting's name, `must ...`.
    pub fn parse(text: &str) -> Result<Vec<Listen>, String> {
        match text.strip_prefix("unix:") {
            Some(directory) => Ok(vec![parse_unix(directory)?]),
            None => parse_tcp(text),
        }
    }

    /// The text that [`Listen::parse`] reads as this.
    pub fn text(&self) -> String {
        match self {
            Listen::Tcp(address) => address.to_string(),
            Listen::Unix(directory, port) if *port == PORT_DEFAULT => format!("unix:{}", directory.display()),
            Listen::Unix(directory, port) => format!("unix:{}:{port}", directory.display()),
        }
    }
}

fn parse_unix(text: &str) -> Result<Listen, String> {
    let (directory, port) = match text.rsplit_once(':') {
        Some((directory, port)) => (directory, parse_port(port)?),
        None => (text, PORT_DEFAULT),
    };
    if !directory.starts_with('/') {
        return Err(format!("must name the socket's directory by a path from /, not \"unix:{text}\""));
    }
    check_socket_directory(directory)?;
    Ok(Listen::Unix(PathBuf::from(directory), port))
}

fn parse_tcp(text: &str) -> Result<Vec<Listen>, String> {
    let Some((host, port)) = text.rsplit_once(':') else {
        return Err(format!("must have a port, like \"127.0.0.1:6432\", not \"{text}\""));
    };
    let port = parse_port(port)?;
    let hosts: Vec<IpAddr> = match host {
        "*" => vec![Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()],
        "localhost" => vec![Ipv4Addr::LOCALHOST.into()],
        _ => vec![numeric(host).ok_or_else(|| {
            format!("must be a numeric address, `localhost`, `*` or `unix:DIR`, not \"{text}\"; IPv6 like \"[::1]:6432\"")
        })?],
    };
    Ok(hosts.into_iter().map(|host| Listen::Tcp(SocketAddr::new(host, port))).collect())
}

/// An address as it stands before a port: IPv6 needs its brackets there.
fn numeric(host: &str) -> Option<IpAddr> {
    match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(inner) => inner.parse::<Ipv6Addr>().ok().map(IpAddr::V6),
        None => host.parse::<Ipv4Addr>().ok().map(IpAddr::V4),
    }
}

pub(super) fn parse_port(text: &str) -> Result<u16, String> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    match text.parse::<u16>() {
        Ok(port) if digits && port > 0 => Ok(port),
        _ => Err(format!("must have a port from 1 to 65535, not \"{text}\"")),
    }
}

impl Host {
    /// Reads a name, an address, a socket directory, or `@` and an abstract socket's name. The error says what
    /// follows a setting's name, `must ...`.
    pub fn parse(text: &str) -> Result<Host, String> {
        if text.starts_with(['/', '@']) {
            check_socket_directory(text)?;
            return Ok(Host::Socket(PathBuf::from(text)));
        }
        if let Ok(address) = text.trim_matches(['[', ']']).parse() {
            return Ok(Host::Address(address));
        }
        let letter = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
        if text.contains(':') {
            return Err(format!(
                "must be without the port, which has a key of its own: `port`; not \"{text}\""
            ));
        }
        if text.is_empty() || text.len() > HOST_BYTES_MAX || !text.bytes().all(letter) {
            return Err(format!("must be a name, an address or a socket's directory, not \"{text}\""));
        }
        Ok(Host::Name(text.to_owned()))
    }

    /// The text that [`Host::parse`] reads as this.
    pub fn text(&self) -> String {
        match self {
            Host::Name(name) => name.clone(),
            Host::Address(address) => address.to_string(),
            Host::Socket(directory) => directory.to_string_lossy().into_owned(),
        }
    }
}

/// Refuses a directory in which the socket's path would not fit into `sockaddr_un`.
fn check_socket_directory(directory: &str) -> Result<(), String> {
    if directory.contains('\0') {
        return Err("must not contain a zero byte".into());
    }
    if directory.len() > SOCKET_DIRECTORY_BYTES_MAX {
        let most = SOCKET_DIRECTORY_BYTES_MAX;
        return Err(format!(
            "must have a socket's directory of at most {most} bytes; this has {}",
            directory.len()
        ));
    }
    Ok(())
}

/// PgBouncer's port.
const PORT_DEFAULT: u16 = 6432;

/// RFC 1035, 2.3.4.
const HOST_BYTES_MAX: usize = 253;

/// `sun_path` has 108 bytes; `/.s.PGSQL.65535` and the final zero need their room.
const SOCKET_DIRECTORY_BYTES_MAX: usize = 108 - "/.s.PGSQL.65535".len() - 1;
