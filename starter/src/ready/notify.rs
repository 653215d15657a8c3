//! The notification socket of one generation, for the protocol of sd_notify(3).
//!
//! It has a path in a directory that only this user can enter. An abstract name would be reachable from below a chroot,
//! but for every user of the host: whoever can send keeps this process busy, and a descriptor that is sent along and
//! dropped here can hold it up (the last reference to a TCP socket with SO_LINGER).

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::PathBuf;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, UnixAddr, bind, setsockopt, socket, sockopt,
};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::host::luggage::{Carried, Luggage};
use crate::ready::message::{LARGEST, Message, parse};
use crate::ready::private::{PackedDirectory, PrivateDirectory};

/// The name of the socket in its directory.
const NAME: &str = "notify";

/// How many descriptors the kernel passes with one datagram at most (SCM_MAX_FD of net/scm.h).
pub const MOST_DESCRIPTORS: usize = 253;

/// The room for a sender, in words: as large as CMSG_SPACE says for a `ucred`.
const ROOM_FOR_SENDER: usize = 4;

/// The same with room for as many descriptors as can come along.
const ROOM_FOR_ALL: usize = ROOM_FOR_SENDER + 2 + (MOST_DESCRIPTORS * 4).div_ceil(8);

/// A socket on which the workers of one generation report about themselves.
#[derive(Debug)]
pub struct Socket {
    socket: OwnedFd,
    directory: PrivateDirectory,
    /// Whether descriptors are let in.
    takes_descriptors: bool,
}

/// A socket on its way to the next program, with everything in it that was not read.
#[derive(Debug, Serialize, Deserialize)]
pub struct PackedSocket {
    socket: Carried,
    directory: PackedDirectory,
}

/// A datagram and who sent it, according to the kernel.
#[derive(Debug)]
pub enum Received {
    From {
        pid: Pid,
        uid: u32,
        /// The worker for whom the sender speaks.
        worker: Option<Pid>,
        message: Message,
        descriptors: Vec<OwnedFd>,
        /// Whether more came along than could be let in.
        is_cut: bool,
    },
    /// It is longer than [`LARGEST`], or its sender is unknown.
    Unusable,
}

impl Socket {
    pub fn open(takes_descriptors: bool) -> nix::Result<Socket> {
        let directory = PrivateDirectory::new(NAME)?;
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(AddressFamily::Unix, SockType::Datagram, flags, None)?;
        setsockopt(&socket, sockopt::PassCred, &true)?;
        bind(socket.as_raw_fd(), &UnixAddr::new(&directory.path())?)?;
        Ok(Socket {
            socket,
            directory,
            takes_descriptors,
        })
    }

    /// For the next program.
    pub fn pack(&self, luggage: &mut Luggage) -> PackedSocket {
        PackedSocket {
            socket: luggage.put(&self.socket),
            directory: self.directory.pack(luggage),
        }
    }

    /// The same socket again, at the same address.
    pub fn unpack(packed: PackedSocket, takes_descriptors: bool) -> Socket {
        Socket {
            socket: packed.socket.take(),
            directory: PrivateDirectory::unpack(packed.directory, NAME),
            takes_descriptors,
        }
    }

    /// The value of `NOTIFY_SOCKET`.
    pub fn address(&self) -> PathBuf {
        self.directory.path()
    }

    /// The next datagram, if one has arrived; `trace` finds the worker for whom its sender speaks. That is asked before the
    /// next datagram is read: a sender that waits for its barrier exists until then. Whoever drops the descriptors that came
    /// along closes them, and a sender that waits for its barrier (`BARRIER=1`) goes on.
    pub fn next(&self, trace: impl Fn(Pid) -> Option<Pid>) -> Option<Received> {
        loop {
            match self.read_one(&trace) {
                Ok(one) => return Some(one),
                Err(Errno::EINTR) => {}
                // Nothing is left, or nothing can be read now.
                Err(_) => return None,
            }
        }
    }

    fn read_one(&self, trace: impl Fn(Pid) -> Option<Pid>) -> nix::Result<Received> {
        let mut datagram = [0; LARGEST];
        let mut control = [0; ROOM_FOR_ALL];
        let room = match self.takes_descriptors {
            true => &mut control[..],
            false => &mut control[..ROOM_FOR_SENDER],
        };
        let Arrived {
            length,
            flags,
            sender,
            descriptors,
        } = receive(&self.socket, &mut datagram, room)?;
        Ok(match sender {
            Some(sender) if flags & libc::MSG_TRUNC == 0 => Received::From {
                pid: Pid::from_raw(sender.pid),
                uid: sender.uid,
                worker: trace(Pid::from_raw(sender.pid)),
                message: parse(datagram.get(..length).unwrap_or_default()),
                descriptors,
                is_cut: flags & libc::MSG_CTRUNC != 0,
            },
            Some(_) | None => Received::Unusable,
        })
    }
}

/// One datagram.
struct Arrived {
    /// In the buffer.
    length: usize,
    /// Those of recvmsg(2): whether there was more of it.
    flags: i32,
    sender: Option<libc::ucred>,
    descriptors: Vec<OwnedFd>,
}

/// Reads one datagram, with as much of what came along as `control` has room for. The sender is first (scm_recv of
/// net/core/scm.h); without room for more, descriptors that were sent are never installed here. In that case nix would show
/// nothing at all.
#[expect(
    unsafe_code,
    reason = "nix hides the sender where descriptors were dropped"
)]
fn receive(socket: &OwnedFd, datagram: &mut [u8], control: &mut [u64]) -> nix::Result<Arrived> {
    let mut part = libc::iovec {
        iov_base: datagram.as_mut_ptr().cast(),
        iov_len: datagram.len(),
    };
    // SAFETY: all zeroes is a value of this struct of integers and null pointers.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = &raw mut part;
    header.msg_iovlen = 1;
    // Its words are aligned as a `cmsghdr`.
    header.msg_control = control.as_mut_ptr().cast();
    header.msg_controllen = size_of_val(control);
    let flags = libc::MSG_CMSG_CLOEXEC;
    // SAFETY: the header describes the two buffers, which outlive the call and are borrowed by nothing else.
    let length = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut header, flags) };
    let mut arrived = Arrived {
        length: usize::try_from(Errno::result(length)?).unwrap_or(0),
        flags: header.msg_flags,
        sender: None,
        descriptors: Vec::new(),
    };
    // SAFETY: the kernel has filled in the header, and `control` still exists.
    let mut at = unsafe { libc::CMSG_FIRSTHDR(&raw const header) };
    while !at.is_null() {
        // SAFETY: it points to a whole `cmsghdr` within `control`.
        let kind = unsafe { *at };
        // SAFETY: the data of a `cmsghdr` follows it.
        let data = unsafe { libc::CMSG_DATA(at) };
        match (kind.cmsg_level, kind.cmsg_type) {
            (libc::SOL_SOCKET, libc::SCM_CREDENTIALS) => {
                // SAFETY: by its type it is a `ucred`, for which `control` has room; the alignment does not matter.
                arrived.sender = Some(unsafe { data.cast::<libc::ucred>().read_unaligned() });
            }
            (libc::SOL_SOCKET, libc::SCM_RIGHTS) => {
                let before = data.addr() - at.addr();
                let count = kind.cmsg_len.saturating_sub(before) / size_of::<RawFd>();
                for place in 0..count {
                    let at = data.cast::<RawFd>().wrapping_add(place);
                    // SAFETY: by its type and length it has this many numbers; the alignment does not matter.
                    let number = unsafe { at.read_unaligned() };
                    // SAFETY: the kernel has just installed this descriptor, and nothing else has seen its number.
                    arrived
                        .descriptors
                        .push(unsafe { OwnedFd::from_raw_fd(number) });
                }
            }
            _ => {}
        }
        // SAFETY: both point into what the kernel has filled in.
        at = unsafe { libc::CMSG_NXTHDR(&raw const header, at) };
    }
    Ok(arrived)
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

    fn all(socket: &Socket) -> Vec<Received> {
        std::iter::from_fn(|| socket.next(Some)).collect()
    }

    fn client(socket: &Socket) -> UnixDatagram {
        let client = UnixDatagram::unbound().unwrap();
        client.connect(socket.address()).unwrap();
        client
    }

    #[test]
    fn what_is_sent_arrives_with_its_sender() {
        let socket = Socket::open(false).unwrap();
        let client = client(&socket);
        client.send(b"READY=1\nSTATUS=up").unwrap();
        let [
            Received::From {
                pid, uid, message, ..
            },
        ] = &all(&socket)[..]
        else {
            unreachable!("one datagram was sent");
        };
        assert_eq!((*pid, *uid), (getpid(), getuid().as_raw()));
        assert!(message.is_ready && message.status.as_deref() == Some("up"));
        assert!(all(&socket).is_empty());
    }

    #[test]
    fn a_datagram_that_is_too_long_is_not_used_and_the_next_one_is() {
        let socket = Socket::open(false).unwrap();
        let client = client(&socket);
        let mut long = b"READY=1\nSTATUS=".to_vec();
        long.resize(LARGEST + 1, b'x');
        client.send(&long).unwrap();
        client.send(&long[..LARGEST]).unwrap();
        let received = all(&socket);
        assert!(matches!(received[0], Received::Unusable));
        assert!(matches!(&received[1], Received::From { message, .. } if message.is_ready));
    }

    #[test]
    fn descriptors_that_come_along_are_closed() {
        let socket = Socket::open(false).unwrap();
        let client = client(&socket);
        let (reader, writer) = std::io::pipe().unwrap();
        let many = vec![writer.as_raw_fd(); 253];
        let rights = [ControlMessage::ScmRights(&many)];
        let datagram = [IoSlice::new(b"FDSTORE=1\nBARRIER=1")];
        let flags = MsgFlags::empty();
        sendmsg::<()>(client.as_raw_fd(), &datagram, &rights, flags, None).unwrap();
        let received = all(&socket);
        assert!(matches!(&received[..], [Received::From { .. }]));
        drop(writer);
        // No process holds the other end: this is the end of the file.
        let mut byte = [0];
        assert_eq!(std::io::Read::read(&mut &reader, &mut byte).unwrap(), 0);
    }

    #[test]
    fn as_many_descriptors_as_the_kernel_passes_are_let_in() {
        let socket = Socket::open(true).unwrap();
        let client = client(&socket);
        let (reader, writer) = std::io::pipe().unwrap();
        let flags = MsgFlags::empty();
        for count in [MOST_DESCRIPTORS, 1, 0] {
            let many = vec![writer.as_raw_fd(); count];
            let rights = [ControlMessage::ScmRights(&many)];
            let rights = if count == 0 { &[] } else { &rights[..] };
            let datagram = [IoSlice::new(b"FDSTORE=1")];
            sendmsg::<()>(client.as_raw_fd(), &datagram, rights, flags, None).unwrap();
            let received = socket.next(Some);
            let Some(Received::From {
                pid,
                descriptors,
                is_cut: false,
                ..
            }) = received
            else {
                unreachable!("one datagram was sent");
            };
            assert_eq!((pid, descriptors.len()), (getpid(), count));
            for one in &descriptors {
                let flags = nix::fcntl::fcntl(one, nix::fcntl::FcntlArg::F_GETFD).unwrap();
                assert_eq!(flags, libc::FD_CLOEXEC);
            }
        }
        // What was let in is closed when it is dropped.
        drop(writer);
        let mut byte = [0];
        assert_eq!(std::io::Read::read(&mut &reader, &mut byte).unwrap(), 0);
    }
}
