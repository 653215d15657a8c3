//! Socket calls that nix does not have.

use std::net::{SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{SockaddrStorage, getsockname};

/// `TCP_LISTEN` of the kernel's list of states (include/net/tcp_states.h).
const LISTENING: u8 = 10;

/// The address of a socket of a port.
pub fn bound_address(socket: &OwnedFd) -> Option<SocketAddr> {
    let name: SockaddrStorage = getsockname(socket.as_raw_fd()).ok()?;
    let v4 = name.as_sockaddr_in().copied();
    let v6 = name.as_sockaddr_in6().copied();
    v4.map(|name| SocketAddrV4::from(name).into())
        .or_else(|| v6.map(|name| SocketAddrV6::from(name).into()))
}

/// listen(2) with any backlog: the kernel silently caps it at `net.core.somaxconn`.
#[expect(
    unsafe_code,
    reason = "nix refuses a backlog above a limit that is the kernel's to set"
)]
pub fn listen(socket: &OwnedFd, backlog: i32) -> nix::Result<()> {
    // SAFETY: it takes numbers only.
    Errno::result(unsafe { libc::listen(socket.as_raw_fd(), backlog) }).map(drop)
}

/// The backlog of a listening TCP socket, as the kernel capped it; `None` if it does not listen.
#[expect(unsafe_code, reason = "nix does not know TCP_INFO")]
pub fn backlog_of(socket: &OwnedFd) -> nix::Result<Option<u32>> {
    // SAFETY: all zeroes is a valid value of this struct of integers.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut length = libc::socklen_t::try_from(size_of_val(&info)).unwrap_or(0);
    // SAFETY: `info` is `length` bytes that the kernel may write, and both outlive the call.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut info).cast(),
            &raw mut length,
        )
    };
    Errno::result(result)?;
    // For a listening socket, the kernel puts the backlog into this field.
    Ok((info.tcpi_state == LISTENING).then_some(info.tcpi_sacked))
}

/// An option of the level `SOL_SOCKET` whose value is a number.
#[expect(
    unsafe_code,
    reason = "nix knows some values of these options only, and fails for the others"
)]
pub fn option(socket: &OwnedFd, name: i32) -> nix::Result<i32> {
    let mut value: libc::c_int = 0;
    let mut length = libc::socklen_t::try_from(size_of_val(&value)).unwrap_or(0);
    // SAFETY: `value` is `length` bytes that the kernel may write, and both outlive the call.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            name,
            (&raw mut value).cast(),
            &raw mut length,
        )
    };
    Errno::result(result).map(|_| value)
}

/// Whether somebody has called listen(2) on it.
pub fn listens(socket: &OwnedFd) -> nix::Result<bool> {
    option(socket, libc::SO_ACCEPTCONN).map(|value| value != 0)
}

/// Undoes O_NONBLOCK, which whoever shares the socket shares too.
pub fn make_blocking(socket: &OwnedFd) -> nix::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(socket, FcntlArg::F_GETFL)?);
    fcntl(socket, FcntlArg::F_SETFL(flags - OFlag::O_NONBLOCK)).map(drop)
}

/// Disconnects a socket: connect(2) with AF_UNSPEC.
#[expect(unsafe_code, reason = "nix has no address of no family")]
pub fn disconnect(socket: &OwnedFd) -> nix::Result<()> {
    let nobody = libc::sockaddr {
        sa_family: 0,
        sa_data: [0; 14],
    };
    let length = libc::socklen_t::try_from(size_of_val(&nobody)).unwrap_or(0);
    // SAFETY: `nobody` is `length` bytes that outlive the call.
    let result = unsafe { libc::connect(socket.as_raw_fd(), &raw const nobody, length) };
    Errno::result(result).map(drop)
}

/// Which part of a socket is shut down. A shutdown for writing alone is invisible.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shut {
    Nothing,
    /// Reading, which includes accept(2) on a unix socket.
    Reading,
    Everything,
}

/// Which part of a socket is shut down; not for TCP.
#[expect(unsafe_code, reason = "nix does not know POLLRDHUP")]
pub fn shut(socket: &OwnedFd) -> Shut {
    let mut source = libc::pollfd {
        fd: socket.as_raw_fd(),
        events: libc::POLLRDHUP,
        revents: 0,
    };
    // SAFETY: one struct, which the kernel may write and which outlives the call.
    let ready = unsafe { libc::poll(&raw mut source, 1, 0) };
    let has = |event: i16| ready > 0 && source.revents & event != 0;
    match (has(libc::POLLHUP), has(libc::POLLRDHUP)) {
        (true, _) => Shut::Everything,
        (false, true) => Shut::Reading,
        (false, false) => Shut::Nothing,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use std::net::UdpSocket;

    use nix::sys::socket::{Shutdown, shutdown};

    use super::*;

    #[test]
    fn what_is_shut_down_is_seen() {
        for (how, expected) in [
            (Shutdown::Read, Shut::Reading),
            (Shutdown::Both, Shut::Everything),
        ] {
            let socket = OwnedFd::from(UdpSocket::bind("127.0.0.1:0").unwrap());
            assert_eq!(shut(&socket), Shut::Nothing);
            // It fails with ENOTCONN, and takes effect nevertheless.
            let done = shutdown(socket.as_raw_fd(), how);
            assert_eq!(done, Err(Errno::ENOTCONN));
            assert_eq!(shut(&socket), expected);
        }
    }
}
