//! One message and its descriptors at a time over a SEQPACKET socket pair.
//!
//! It checks only the form (size, truncation, number of descriptors); what a message means is up to the receiver.

use std::io::{IoSlice, IoSliceMut};
use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::cmsg_space;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, Shutdown, SockFlag, SockType,
    UnixAddr, getsockname, getsockopt, recv, recvmsg, sendmsg, shutdown, socketpair, sockopt,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::message::MOST_DESCRIPTORS;
use crate::wire;

/// One end: what it sends and what it receives are part of its type, so that the two ends are mirror images.
#[derive(Debug)]
pub struct Channel<Send, Receive> {
    socket: OwnedFd,
    kinds: PhantomData<fn(Send) -> Receive>,
}

fn failed(what: &str) -> impl Fn(Errno) -> String + '_ {
    move |errno| format!("cannot {what}: {}", errno.desc())
}

impl<Send: Serialize, Receive: DeserializeOwned> Channel<Send, Receive> {
    /// The end that has this socket, which is known to be that of a channel.
    pub fn of(socket: OwnedFd) -> Self {
        let kinds = PhantomData;
        Channel { socket, kinds }
    }

    /// One end, and the socket of the other, both close-on-exec.
    pub fn pair() -> Result<(Self, OwnedFd), String> {
        let (ours, theirs) = socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC,
        )
        .map_err(failed("make a channel"))?;
        Ok((Channel::of(ours), theirs))
    }

    /// The end that a process was started with.
    ///
    /// # Errors
    /// If the descriptor is anything but an unnamed unix SEQPACKET socket.
    pub fn from_socket(socket: OwnedFd) -> Result<Self, String> {
        let kind = getsockopt(&socket, sockopt::SockType);
        let name = getsockname::<UnixAddr>(socket.as_raw_fd());
        match (kind, name) {
            (Ok(SockType::SeqPacket), Ok(name))
                if name.path().is_none() && name.as_abstract().is_none() =>
            {
                Ok(Channel::of(socket))
            }
            _ => Err("the channel is not a SEQPACKET socket pair".into()),
        }
    }

    /// Sends one message with its descriptors, which stay open here.
    pub fn send(&self, message: &Send, descriptors: &[BorrowedFd<'_>]) -> Result<(), String> {
        let datagram = wire::encode(message)?;
        let raw: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&raw)];
        let control: &[ControlMessage<'_>] = if raw.is_empty() { &[] } else { &rights };
        // MSG_NOSIGNAL: a peer that is gone is an error here, not a signal.
        again(|| {
            sendmsg::<()>(
                self.socket.as_raw_fd(),
                &[IoSlice::new(&datagram)],
                control,
                MsgFlags::MSG_NOSIGNAL,
                None,
            )
        })
        .map_err(failed("send to the other process"))?;
        Ok(())
    }

    /// Waits until the other end is closed, or sends anything more, which is not read.
    pub fn wait_for_end(&self) {
        // An error is an end too.
        let _ = again(|| recv(self.socket.as_raw_fd(), &mut [0], MsgFlags::empty()));
    }

    /// Stops sending and receiving: for the other end this is the end of the channel.
    pub fn hang_up(&self) {
        // It fails only if the other end has done the same.
        let _ = shutdown(self.socket.as_raw_fd(), Shutdown::Both);
    }

    /// Waits for one message without descriptors; `None` if the other end is closed.
    ///
    /// Descriptors that are sent anyway are never installed here, because there is no room for them, and the message is
    /// refused.
    pub fn receive(&self) -> Result<Option<Receive>, String> {
        Ok(self.receive_datagram(None)?.map(|(message, _)| message))
    }

    /// Waits for one message and its descriptors, all close-on-exec; `None` if the other end is closed.
    pub fn receive_with_descriptors(&self) -> Result<Option<(Receive, Vec<OwnedFd>)>, String> {
        self.receive_datagram(Some(cmsg_space!([RawFd; MOST_DESCRIPTORS])))
    }

    fn receive_datagram(
        &self,
        mut control: Option<Vec<u8>>,
    ) -> Result<Option<(Receive, Vec<OwnedFd>)>, String> {
        let mut datagram = vec![0; wire::LARGEST];
        let mut buffers = [IoSliceMut::new(&mut datagram)];
        let (length, flags, descriptors) = {
            let received = again(|| {
                recvmsg::<()>(
                    self.socket.as_raw_fd(),
                    &mut buffers,
                    control.as_deref_mut(),
                    MsgFlags::MSG_CMSG_CLOEXEC,
                )
                .map(|received| {
                    // Every descriptor gets its owner before anything is checked. nix returns none if the control data
                    // was cut; since there is room for the most that the kernel sends, that happens only if none was
                    // expected (then none is installed) or this process is out of descriptors (then the error ends it).
                    let descriptors: Vec<OwnedFd> = received
                        .cmsgs()
                        .into_iter()
                        .flatten()
                        .flat_map(|message| match message {
                            ControlMessageOwned::ScmRights(raw) => raw,
                            _ => Vec::new(),
                        })
                        .map(owned)
                        .collect();
                    (received.bytes, received.flags, descriptors)
                })
            });
            match received {
                // The other end is gone and has left something unread: an end all the same.
                Err(Errno::ECONNRESET) => return Ok(None),
                result => result.map_err(failed("receive from the other process"))?,
            }
        };
        if flags.contains(MsgFlags::MSG_CTRUNC) {
            return Err("more descriptors came than expected or than this process may open".into());
        }
        if flags.contains(MsgFlags::MSG_TRUNC) {
            return Err(format!(
                "a message is over the limit of {} bytes",
                wire::LARGEST
            ));
        }
        if length == 0 {
            return Ok(None);
        }
        let message = wire::decode(&datagram[..length])?;
        Ok(Some((message, descriptors)))
    }
}

impl<Send, Receive> AsFd for Channel<Send, Receive> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[expect(unsafe_code, reason = "the kernel hands descriptors over as numbers")]
fn owned(descriptor: RawFd) -> OwnedFd {
    // SAFETY: recvmsg(2) has just installed this descriptor for us, and nothing else has seen its number.
    unsafe { OwnedFd::from_raw_fd(descriptor) }
}

/// Repeats a call that a signal interrupted.
fn again<T>(mut call: impl FnMut() -> nix::Result<T>) -> nix::Result<T> {
    loop {
        match call() {
            Err(Errno::EINTR) => {}
            result => return result,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests;
