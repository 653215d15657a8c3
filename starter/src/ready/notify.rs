//! The notification socket of one generation, for the protocol of sd_notify(3).
//!
//! It has a path in a directory that only this user can enter. An abstract name would be reachable from below a chroot,
//! but for every user of the host: whoever can send keeps this process busy, and a descriptor that is sent along and
//! dropped here can hold it up (the last reference to a TCP socket with SO_LINGER).

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, UnixAddr, bind, setsockopt, socket, sockopt,
};
use nix::unistd::Pid;

use crate::ready::message::{LARGEST, Message, parse};
use crate::ready::private::PrivateDirectory;

/// How many datagrams one look reads at most, so that signals do not have to wait.
const MOST_AT_ONCE: usize = 64;

/// A socket on which the workers of one generation report about themselves.
#[derive(Debug)]
pub struct Socket {
    socket: OwnedFd,
    directory: PrivateDirectory,
}

/// A datagram and who sent it, according to the kernel.
#[derive(Debug, PartialEq, Eq)]
pub enum Received {
    From {
        pid: Pid,
        uid: u32,
        /// The worker for whom the sender speaks.
        worker: Option<Pid>,
        message: Message,
    },
    /// It is longer than [`LARGEST`], or its sender is unknown.
    Unusable,
}

impl Socket {
    pub fn open() -> nix::Result<Socket> {
        let directory = PrivateDirectory::new("notify")?;
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(AddressFamily::Unix, SockType::Datagram, flags, None)?;
        setsockopt(&socket, sockopt::PassCred, &true)?;
        bind(socket.as_raw_fd(), &UnixAddr::new(&directory.path())?)?;
        Ok(Socket { socket, directory })
    }

    /// The value of `NOTIFY_SOCKET`.
    pub fn address(&self) -> PathBuf {
        self.directory.path()
    }

    /// What has arrived; `trace` finds the worker for whom a sender speaks. It is asked before the next datagram is read: a
    /// sender that waits for its barrier exists until then. Descriptors that came along are closed: those of `FDSTORE=1` are not kept, and a sender that
    /// waits for its barrier (`BARRIER=1`) goes on.
    pub fn read(&self, trace: impl Fn(Pid) -> Option<Pid>) -> Vec<Received> {
        let mut received = Vec::new();
        while received.len() < MOST_AT_ONCE {
            match self.read_one(&trace) {
                Ok(one) => received.push(one),
                Err(Errno::EINTR) => {}
                // Nothing is left, or nothing can be read now.
                Err(_) => break,
            }
        }
        received
    }

    fn read_one(&self, trace: impl Fn(Pid) -> Option<Pid>) -> nix::Result<Received> {
        let mut datagram = [0; LARGEST];
        let (length, is_cut, sender) = receive(&self.socket, &mut datagram)?;
        Ok(match sender {
            Some(sender) if !is_cut => Received::From {
                pid: Pid::from_raw(sender.pid),
                uid: sender.uid,
                worker: trace(Pid::from_raw(sender.pid)),
                message: parse(&datagram[..length]),
            },
            Some(_) | None => Received::Unusable,
        })
    }
}

/// One datagram: its length in the buffer, whether that is not all of it, and its sender.
///
/// There is room only for the sender, which the kernel puts first (scm_recv of net/core/scm.h): descriptors that were
/// sent are never installed here. In that case nix would show nothing at all.
#[expect(
    unsafe_code,
    reason = "nix hides the sender where descriptors were dropped"
)]
fn receive(
    socket: &OwnedFd,
    datagram: &mut [u8],
) -> nix::Result<(usize, bool, Option<libc::ucred>)> {
    let mut part = libc::iovec {
        iov_base: datagram.as_mut_ptr().cast(),
        iov_len: datagram.len(),
    };
    // As large as CMSG_SPACE says for a `ucred`, and aligned as a `cmsghdr`.
    let mut control = [0_u64; 4];
    // SAFETY: all zeroes is a value of this struct of integers and null pointers.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = &raw mut part;
    header.msg_iovlen = 1;
    header.msg_control = control.as_mut_ptr().cast();
    header.msg_controllen = size_of_val(&control);
    let flags = libc::MSG_CMSG_CLOEXEC;
    // SAFETY: the header describes the two buffers, which outlive the call and are borrowed by nothing else.
    let length = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut header, flags) };
    let length = usize::try_from(Errno::result(length)?).unwrap_or(0);
    let is_cut = header.msg_flags & libc::MSG_TRUNC != 0;
    // SAFETY: the kernel has filled in the header, and `control` still exists.
    let first = unsafe { libc::CMSG_FIRSTHDR(&raw const header) };
    if first.is_null() {
        return Ok((length, is_cut, None));
    }
    // SAFETY: it points to a whole `cmsghdr` within `control`.
    let kind = unsafe { *first };
    if (kind.cmsg_level, kind.cmsg_type) != (libc::SOL_SOCKET, libc::SCM_CREDENTIALS) {
        return Ok((length, is_cut, None));
    }
    // SAFETY: the data of a `cmsghdr` follows it.
    let data = unsafe { libc::CMSG_DATA(first) };
    // SAFETY: by its type it is a `ucred`, for which `control` has room; the alignment does not matter.
    let sender = unsafe { data.cast::<libc::ucred>().read_unaligned() };
    Ok((length, is_cut, Some(sender)))
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use std::io::IoSlice;
    use std::os::unix::net::UnixDatagram;

    use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
    use nix::unistd::{getpid, getuid};

    use super::*;

    fn client(socket: &Socket) -> UnixDatagram {
        let client = UnixDatagram::unbound().unwrap();
        client.connect(socket.address()).unwrap();
        client
    }

    #[test]
    fn what_is_sent_arrives_with_its_sender() {
        let socket = Socket::open().unwrap();
        let client = client(&socket);
        client.send(b"READY=1\nSTATUS=up").unwrap();
        let [
            Received::From {
                pid, uid, message, ..
            },
        ] = &socket.read(Some)[..]
        else {
            unreachable!("one datagram was sent");
        };
        assert_eq!((*pid, *uid), (getpid(), getuid().as_raw()));
        assert!(message.is_ready && message.status.as_deref() == Some("up"));
        assert_eq!(socket.read(Some), []);
    }

    #[test]
    fn a_datagram_that_is_too_long_is_not_used_and_the_next_one_is() {
        let socket = Socket::open().unwrap();
        let client = client(&socket);
        let mut long = b"READY=1\nSTATUS=".to_vec();
        long.resize(LARGEST + 1, b'x');
        client.send(&long).unwrap();
        client.send(&long[..LARGEST]).unwrap();
        let received = socket.read(Some);
        assert_eq!(received[0], Received::Unusable);
        assert!(matches!(&received[1], Received::From { message, .. } if message.is_ready));
    }

    #[test]
    fn descriptors_that_come_along_are_closed() {
        let socket = Socket::open().unwrap();
        let client = client(&socket);
        let (reader, writer) = std::io::pipe().unwrap();
        let many = vec![writer.as_raw_fd(); 253];
        let rights = [ControlMessage::ScmRights(&many)];
        let datagram = [IoSlice::new(b"FDSTORE=1\nBARRIER=1")];
        let flags = MsgFlags::empty();
        sendmsg::<()>(client.as_raw_fd(), &datagram, &rights, flags, None).unwrap();
        let received = socket.read(Some);
        assert!(matches!(&received[..], [Received::From { .. }]));
        drop(writer);
        // No process holds the other end: this is the end of the file.
        let mut byte = [0];
        assert_eq!(std::io::Read::read(&mut &reader, &mut byte).unwrap(), 0);
    }
}
