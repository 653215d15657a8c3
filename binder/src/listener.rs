//! Turns an inet endpoint into bound sockets. They do not listen: that is up to the supervisor.

use std::net::{IpAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsRawFd, OwnedFd};

use common::message::{Address, Transport};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, SockaddrIn6, bind as bind_to, setsockopt,
    socket, sockopt,
};

/// The sockets of one address. The first one proves that nobody else has it, since it does not share; the supervisor lets
/// that one listen first, which proves it again, before any of them may share a TCP port. For UDP there is no such moment:
/// there the others may only be bound to what is shared.
pub fn bind_all(
    transport: Transport,
    address: Address,
    freebind: bool,
    lanes: u8,
) -> nix::Result<Vec<OwnedFd>> {
    let mut sockets = vec![bind(transport, address, freebind, false)?];
    let shares = transport == Transport::Udp;
    for _ in 1..lanes {
        if shares {
            setsockopt(&sockets[0], sockopt::ReusePort, &true)?;
        }
        sockets.push(bind(transport, address, freebind, shares)?);
    }
    Ok(sockets)
}

/// Binds a blocking socket: O_NONBLOCK would apply to all workers that share it.
///
/// With `freebind` the address may be one that no interface has yet.
fn bind(
    transport: Transport,
    address: Address,
    freebind: bool,
    shares: bool,
) -> nix::Result<OwnedFd> {
    let family = match address.ip {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    };
    let kind = match transport {
        Transport::Tcp => SockType::Stream,
        Transport::Udp => SockType::Datagram,
    };
    let socket = socket(family, kind, SockFlag::SOCK_CLOEXEC, None)?;
    // Connections of the last run in TIME_WAIT must not block this one. Unlike Server::Starter not for UDP, where
    // it would let a second server share the port and take datagrams away from the first.
    if transport == Transport::Tcp {
        setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    }
    if shares {
        setsockopt(&socket, sockopt::ReusePort, &true)?;
    }
    if freebind {
        // It holds for IPv6 as well: the kernel has one flag for both.
        setsockopt(&socket, sockopt::IpFreebind, &true)?;
    }
    match address.ip {
        IpAddr::V4(ip) => {
            bind_to(
                socket.as_raw_fd(),
                &SockaddrIn::from(SocketAddrV4::new(ip, address.port)),
            )?;
        }
        IpAddr::V6(ip) => {
            // `[::]:80` and `80` are two endpoints, as in Server::Starter.
            setsockopt(&socket, sockopt::Ipv6V6Only, &true)?;
            let address = SocketAddrV6::new(ip, address.port, 0, address.scope);
            bind_to(socket.as_raw_fd(), &SockaddrIn6::from(address))?;
        }
    }
    Ok(socket)
}
