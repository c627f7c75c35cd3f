//! Addresses as the kernel wants them, and the making of sockets.

use std::ffi::OsStr;
use std::fmt;
use std::fs;
use std::io;
use std::mem::{offset_of, size_of};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use libc::{c_int, sockaddr, sockaddr_in, sockaddr_in6, sockaddr_storage, sockaddr_un, socklen_t};

/// Where a stream socket is or goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SocketAddress {
    /// TCP.
    Inet(SocketAddr),
    /// A socket file.
    Unix(PathBuf),
    /// A name in Linux's abstract namespace, without the leading zero byte.
    Abstract(Vec<u8>),
    /// The unbound end of a Unix connection.
    Unnamed,
}

/// What TCP should do with a connection. A listener's connections inherit its options.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TcpOptions {
    /// Send small messages at once.
    pub nodelay: bool,
    /// Probe silent peers; `None` leaves it off.
    pub keepalive: Option<Keepalive>,
    /// Give up on sent bytes that are not acknowledged for so long (`TCP_USER_TIMEOUT`).
    pub user_timeout: Option<Duration>,
    /// Bytes the kernel keeps for each direction; `None` lets it choose.
    pub socket_buffer: Option<usize>,
}

/// How silent peers are probed; `None` leaves the system's value.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Keepalive {
    /// Silence before the first probe.
    pub idle: Option<Duration>,
    /// Time between probes.
    pub interval: Option<Duration>,
    /// Probes without an answer until the connection is given up.
    pub count: Option<u32>,
}

/// An address in the kernel's form.
pub(super) struct RawAddress {
    storage: sockaddr_storage,
    length: socklen_t,
}

/// A listening TCP socket. Several may listen on the same port, and the kernel spreads connections over them.
///
/// # Errors
///
/// Those of `socket(2)`, `bind(2)` and `listen(2)`.
pub fn tcp_listener(address: SocketAddr, backlog: u32) -> io::Result<OwnedFd> {
    let address = SocketAddress::Inet(address);
    let fd = stream_socket(&address)?;
    set_option(fd.as_fd(), libc::SOL_SOCKET, libc::SO_REUSEADDR, 1)?;
    set_option(fd.as_fd(), libc::SOL_SOCKET, libc::SO_REUSEPORT, 1)?;
    if matches!(address, SocketAddress::Inet(SocketAddr::V6(_))) {
        set_option(fd.as_fd(), libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, 1)?;
    }
    bind(&fd, &address)?;
    listen(&fd, backlog)?;
    Ok(fd)
}

/// A listening Unix socket with the given file mode. A socket file on which nobody listens is replaced.
///
/// # Errors
///
/// [`io::ErrorKind::AddrInUse`] if somebody listens, or if the path is something else than a socket; those of
/// `socket(2)`, `bind(2)`, `chmod(2)` and `listen(2)`.
pub fn unix_listener(path: &Path, mode: u32, backlog: u32) -> io::Result<OwnedFd> {
    remove_stale(path)?;
    let address = SocketAddress::Unix(path.to_owned());
    let fd = stream_socket(&address)?;
    bind(&fd, &address)?;
    // Until it listens nobody can connect, so that the mode holds from the first connection on.
    fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    listen(&fd, backlog)?;
    Ok(fd)
}

/// A socket to connect to the address with.
///
/// # Errors
///
/// Those of `socket(2)`.
pub fn stream_socket(address: &SocketAddress) -> io::Result<OwnedFd> {
    let family = match address {
        SocketAddress::Inet(SocketAddr::V4(_)) => libc::AF_INET,
        SocketAddress::Inet(SocketAddr::V6(_)) => libc::AF_INET6,
        SocketAddress::Unix(_) | SocketAddress::Abstract(_) | SocketAddress::Unnamed => libc::AF_UNIX,
    };
    // SAFETY: a plain system call without pointers.
    let fd = check(unsafe { libc::socket(family, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) })?;
    // SAFETY: the descriptor was just made and has no other owner.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sets the options on a TCP socket.
///
/// # Errors
///
/// Those of `setsockopt(2)`; some of the options may then be set.
pub fn set_tcp_options(fd: BorrowedFd<'_>, options: &TcpOptions) -> io::Result<()> {
    set_option(fd, libc::IPPROTO_TCP, libc::TCP_NODELAY, c_int::from(options.nodelay))?;
    if let Some(timeout) = options.user_timeout {
        set_option(fd, libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT, saturate(timeout.as_millis()))?;
    }
    if let Some(bytes) = options.socket_buffer {
        set_option(fd, libc::SOL_SOCKET, libc::SO_RCVBUF, saturate(bytes as u128))?;
        set_option(fd, libc::SOL_SOCKET, libc::SO_SNDBUF, saturate(bytes as u128))?;
    }
    let Some(keepalive) = &options.keepalive else { return Ok(()) };
    set_option(fd, libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1)?;
    let seconds = |duration: Duration| saturate(u128::from(duration.as_secs()).max(1));
    let values = [
        (libc::TCP_KEEPIDLE, keepalive.idle.map(seconds)),
        (libc::TCP_KEEPINTVL, keepalive.interval.map(seconds)),
        (libc::TCP_KEEPCNT, keepalive.count.map(|count| saturate(u128::from(count)))),
    ];
    for (name, value) in values {
        if let Some(value) = value {
            set_option(fd, libc::IPPROTO_TCP, name, value)?;
        }
    }
    Ok(())
}

/// Takes the plainest congestion control for a TCP socket whose peer is on this host: there is nothing between the two that
/// could be congested, and what paces, as BBR does, spends timers on it. Does nothing to other peers.
///
/// # Errors
///
/// Those of `setsockopt(2)`.
pub fn set_loopback_congestion(fd: BorrowedFd<'_>, peer: IpAddr) -> io::Result<()> {
    if !peer.to_canonical().is_loopback() {
        return Ok(());
    }
    let length = LOOPBACK_CONGESTION.len() as socklen_t;
    let value = LOOPBACK_CONGESTION.as_ptr().cast();
    // SAFETY: the kernel reads so many bytes, and the text has them.
    check(unsafe { libc::setsockopt(fd.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_CONGESTION, value, length) })
        .map(drop)
}

pub(super) fn set_low_water(fd: BorrowedFd<'_>, bytes: u32) -> io::Result<()> {
    set_option(fd, libc::SOL_SOCKET, libc::SO_RCVLOWAT, saturate(u128::from(bytes)))
}

/// Whom a socket is connected to.
///
/// # Errors
///
/// Those of `getpeername(2)`.
pub fn peer_address(fd: BorrowedFd<'_>) -> io::Result<SocketAddress> {
    // SAFETY: the call writes an address into a storage of the length it is given.
    RawAddress::read(|storage, length| unsafe { libc::getpeername(fd.as_raw_fd(), storage, length) })
}

/// Where a socket is bound.
///
/// # Errors
///
/// Those of `getsockname(2)`.
pub fn local_address(fd: BorrowedFd<'_>) -> io::Result<SocketAddress> {
    // SAFETY: the call writes an address into a storage of the length it is given.
    RawAddress::read(|storage, length| unsafe { libc::getsockname(fd.as_raw_fd(), storage, length) })
}

impl SocketAddress {
    pub(super) fn to_raw(&self) -> io::Result<RawAddress> {
        match self {
            Self::Inet(SocketAddr::V4(address)) => Ok(RawAddress::new(sockaddr_in {
                sin_family: libc::AF_INET as _,
                sin_port: address.port().to_be(),
                sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(address.ip().octets()) },
                sin_zero: [0; 8],
            })),
            Self::Inet(SocketAddr::V6(address)) => Ok(RawAddress::new(sockaddr_in6 {
                sin6_family: libc::AF_INET6 as _,
                sin6_port: address.port().to_be(),
                sin6_flowinfo: address.flowinfo(),
                sin6_addr: libc::in6_addr { s6_addr: address.ip().octets() },
                sin6_scope_id: address.scope_id(),
            })),
            Self::Unix(path) => RawAddress::of_unix(path.as_os_str().as_bytes(), false),
            Self::Abstract(name) => RawAddress::of_unix(name, true),
            Self::Unnamed => Err(invalid("a socket without a name cannot be connected to")),
        }
    }
}

impl RawAddress {
    /// `address` is one of the kernel's `sockaddr_` structures.
    fn new<T>(address: T) -> Self {
        const { assert!(size_of::<T>() <= size_of::<sockaddr_storage>()) };
        let mut raw = Self::zeroed();
        // SAFETY: the storage is larger, and aligned for every kind of address.
        unsafe { (&raw mut raw.storage).cast::<T>().write(address) };
        raw.length = size_of::<T>() as socklen_t;
        raw
    }

    /// A path is followed by a zero byte, an abstract name is preceded by one.
    fn of_unix(name: &[u8], is_abstract: bool) -> io::Result<Self> {
        if name.len() >= UNIX_NAME_BYTES {
            return Err(invalid("the name of a Unix socket has at most 107 bytes"));
        }
        if !is_abstract && (name.is_empty() || name.contains(&0)) {
            return Err(invalid("the path of a Unix socket must not be empty or contain a zero byte"));
        }
        let mut address = sockaddr_un { sun_family: libc::AF_UNIX as _, sun_path: [0; UNIX_NAME_BYTES] };
        let places = address.sun_path.iter_mut().skip(usize::from(is_abstract));
        places.zip(name).for_each(|(place, byte)| *place = byte.cast_signed() as _);
        let mut raw = Self::new(address);
        raw.length = (offset_of!(sockaddr_un, sun_path) + name.len() + 1) as socklen_t;
        Ok(raw)
    }

    fn zeroed() -> Self {
        // SAFETY: all zeroes is a valid storage, of no family.
        Self { storage: unsafe { std::mem::zeroed() }, length: size_of::<sockaddr_storage>() as socklen_t }
    }

    fn read(get: impl FnOnce(*mut sockaddr, *mut socklen_t) -> c_int) -> io::Result<SocketAddress> {
        let mut raw = Self::zeroed();
        check(get((&raw mut raw.storage).cast(), &raw mut raw.length))?;
        raw.decode()
    }

    fn decode(&self) -> io::Result<SocketAddress> {
        let storage = &raw const self.storage;
        match c_int::from(self.storage.ss_family) {
            libc::AF_INET => {
                // SAFETY: the family says that this is what the kernel wrote.
                let address = unsafe { storage.cast::<sockaddr_in>().read() };
                let ip = Ipv4Addr::from(address.sin_addr.s_addr.to_ne_bytes());
                Ok(SocketAddress::Inet((IpAddr::V4(ip), u16::from_be(address.sin_port)).into()))
            }
            libc::AF_INET6 => {
                // SAFETY: the family says that this is what the kernel wrote.
                let address = unsafe { storage.cast::<sockaddr_in6>().read() };
                let ip = Ipv6Addr::from(address.sin6_addr.s6_addr);
                let port = u16::from_be(address.sin6_port);
                let address = SocketAddrV6::new(ip, port, address.sin6_flowinfo, address.sin6_scope_id);
                Ok(SocketAddress::Inet(address.into()))
            }
            libc::AF_UNIX => {
                // SAFETY: the family says that this is what the kernel wrote.
                let address = unsafe { storage.cast::<sockaddr_un>().read() };
                let name = address.sun_path.map(|byte| byte.to_ne_bytes()[0]);
                let length = (self.length as usize).saturating_sub(offset_of!(sockaddr_un, sun_path));
                Ok(decode_unix(&name[..length.min(UNIX_NAME_BYTES)]))
            }
            _ => Err(invalid("an address of an unknown family")),
        }
    }

    pub fn as_parts(&self) -> (*const sockaddr, socklen_t) {
        ((&raw const self.storage).cast(), self.length)
    }
}

fn decode_unix(name: &[u8]) -> SocketAddress {
    match name {
        [] => SocketAddress::Unnamed,
        [0, name @ ..] => SocketAddress::Abstract(name.strip_suffix(&[0]).unwrap_or(name).to_vec()),
        path => {
            let end = path.iter().position(|byte| *byte == 0).unwrap_or(path.len());
            SocketAddress::Unix(PathBuf::from(OsStr::from_bytes(&path[..end])))
        }
    }
}

impl fmt::Display for SocketAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Inet(address) => write!(f, "{address}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Abstract(name) => write!(f, "unix:@{}", String::from_utf8_lossy(name)),
            Self::Unnamed => write!(f, "unix:"),
        }
    }
}

fn remove_stale(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
        Ok(meta) if !meta.file_type().is_socket() => {
            return Err(io::Error::new(io::ErrorKind::AddrInUse, "the path exists and is no socket"));
        }
        Ok(_) => {}
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        _ => Err(io::Error::new(io::ErrorKind::AddrInUse, "somebody listens on this socket")),
    }
}

fn bind(fd: &OwnedFd, address: &SocketAddress) -> io::Result<()> {
    let raw = address.to_raw()?;
    let (pointer, length) = raw.as_parts();
    // SAFETY: the address lives across the call.
    check(unsafe { libc::bind(fd.as_raw_fd(), pointer, length) }).map(drop)
}

fn listen(fd: &OwnedFd, backlog: u32) -> io::Result<()> {
    // SAFETY: a plain system call without pointers.
    check(unsafe { libc::listen(fd.as_raw_fd(), saturate(u128::from(backlog))) }).map(drop)
}

fn set_option(fd: BorrowedFd<'_>, level: c_int, name: c_int, value: c_int) -> io::Result<()> {
    let length = size_of::<c_int>() as socklen_t;
    // SAFETY: the kernel reads one int, and `value` is one.
    check(unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, (&raw const value).cast(), length) })
        .map(drop)
}

fn check(result: c_int) -> io::Result<c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn saturate(value: u128) -> c_int {
    c_int::try_from(value).unwrap_or(c_int::MAX)
}

fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, what)
}

/// Every kernel has it, and allows it to everybody.
const LOOPBACK_CONGESTION: &str = "reno";

/// Of `sun_path`, its closing zero byte included.
const UNIX_NAME_BYTES: usize = 108;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_survive_the_kernels_form() {
        let addresses = [
            SocketAddress::Inet("127.0.0.1:5432".parse().unwrap()),
            SocketAddress::Inet("[fe80::1%7]:6432".parse().unwrap_or("[fe80::1]:6432".parse().unwrap())),
            SocketAddress::Unix("/var/run/postgresql/.s.PGSQL.5432".into()),
            SocketAddress::Unix("x".repeat(107).into()),
            SocketAddress::Abstract(b"name".to_vec()),
        ];
        for address in addresses {
            assert_eq!(address.to_raw().unwrap().decode().unwrap(), address);
        }
        assert!(SocketAddress::Unix("x".repeat(108).into()).to_raw().is_err());
        assert!(SocketAddress::Unix(PathBuf::new()).to_raw().is_err());
    }

    #[test]
    fn only_a_dead_socket_file_is_replaced() {
        let directory = std::env::temp_dir().join(format!("pgpinion-address-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let path = directory.join(".s.PGSQL.1");
        let first = unix_listener(&path, 0o770, 8).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o770);
        assert_eq!(unix_listener(&path, 0o777, 8).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop(first);
        drop(unix_listener(&path, 0o777, 8).unwrap());
        fs::remove_file(&path).unwrap();
        fs::write(&path, "precious").unwrap();
        assert_eq!(unix_listener(&path, 0o777, 8).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        assert_eq!(fs::read(&path).unwrap(), b"precious");
        fs::remove_dir_all(&directory).unwrap();
    }

    #[test]
    fn tcp_options_reach_the_kernel() {
        let listener = tcp_listener("127.0.0.1:0".parse().unwrap(), 8).unwrap();
        let keepalive = Keepalive { idle: Some(Duration::from_secs(7)), interval: None, count: Some(3) };
        let options = TcpOptions {
            nodelay: true,
            keepalive: Some(keepalive),
            user_timeout: Some(Duration::from_millis(1500)),
            socket_buffer: Some(16 * 1024),
        };
        set_tcp_options(listener.as_fd(), &options).unwrap();
        let get = |level, name| {
            let mut value: c_int = -1;
            let mut length = size_of::<c_int>() as socklen_t;
            // SAFETY: the kernel writes one int, and `value` is one.
            let result = unsafe {
                libc::getsockopt(listener.as_raw_fd(), level, name, (&raw mut value).cast(), &raw mut length)
            };
            assert_eq!(result, 0);
            value
        };
        assert_eq!(get(libc::IPPROTO_TCP, libc::TCP_NODELAY), 1);
        assert_eq!(get(libc::IPPROTO_TCP, libc::TCP_KEEPIDLE), 7);
        assert_eq!(get(libc::IPPROTO_TCP, libc::TCP_KEEPCNT), 3);
        assert_eq!(get(libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT), 1500);
        assert_eq!(get(libc::SOL_SOCKET, libc::SO_REUSEPORT), 1);
        // The kernel doubles what it is asked for, for its own needs.
        assert_eq!(get(libc::SOL_SOCKET, libc::SO_SNDBUF), 32 * 1024);
        assert_eq!(get(libc::SOL_SOCKET, libc::SO_RCVBUF), 32 * 1024);
    }
}
