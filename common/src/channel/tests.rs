//! What a receiver does with messages that are wrong: above all, no descriptor of theirs stays open.
//!
//! Descriptors are not counted, since other tests of this process open and close some at the same time. Instead each
//! one that is sent is the writing end of a pipe: its reader sees the end when the last copy is closed.

use std::fs::File;
use std::os::fd::AsRawFd;

use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::pipe2;

use super::*;

type Numbers = Channel<u32, u32>;

fn pair() -> (Numbers, OwnedFd) {
    Numbers::pair().unwrap()
}

/// Sends these bytes with the writing ends of so many pipes, and returns the reading ends.
fn send_raw(socket: &OwnedFd, bytes: &[u8], descriptors: usize) -> Vec<OwnedFd> {
    let (readers, writers): (Vec<OwnedFd>, Vec<OwnedFd>) = (0..descriptors)
        .map(|_| pipe2(OFlag::O_CLOEXEC).unwrap())
        .unzip();
    let raw: Vec<RawFd> = writers.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control: &[ControlMessage<'_>] = if raw.is_empty() { &[] } else { &rights };
    let slices = [IoSlice::new(bytes)];
    sendmsg::<()>(
        socket.as_raw_fd(),
        &slices,
        control,
        MsgFlags::MSG_NOSIGNAL,
        None,
    )
    .unwrap();
    readers
}

#[track_caller]
fn assert_closed(readers: &[OwnedFd]) {
    for reader in readers {
        let mut sources = [PollFd::new(reader.as_fd(), PollFlags::empty())];
        let hung_up = poll(&mut sources, PollTimeout::from(10_000u16)).unwrap();
        assert_eq!(
            hung_up, 1,
            "a descriptor of a refused message is still open"
        );
    }
}

fn encoded(number: u32) -> Vec<u8> {
    wire::encode(&number).unwrap()
}

/// Bytes that are no message, and a part of what is said about them.
fn malformed() -> Vec<(Vec<u8>, &'static str)> {
    let oversized = |length| {
        let mut bytes = vec![0; length];
        bytes[0] = encoded(0)[0];
        bytes
    };
    vec![
        (encoded(7)[..1].to_vec(), "not a message"),
        ([encoded(7), vec![0]].concat(), "left over"),
        (vec![0, 7], "version 0"),
        (oversized(wire::LARGEST), "left over"),
        (oversized(wire::LARGEST + 1), "over the limit"),
        (oversized(wire::LARGEST * 2), "over the limit"),
    ]
}

#[test]
fn a_message_comes_with_its_descriptors_and_they_are_close_on_exec() {
    let (channel, theirs) = pair();
    let theirs = Numbers::from_socket(theirs).unwrap();
    for count in [0, 1, 2, MOST_DESCRIPTORS] {
        let null = File::open("/dev/null").unwrap();
        channel.send(&7, &vec![null.as_fd(); count]).unwrap();
        let (number, descriptors) = theirs.receive_with_descriptors().unwrap().unwrap();
        assert_eq!((number, descriptors.len()), (7, count));
        for descriptor in descriptors {
            let flags = fcntl(&descriptor, FcntlArg::F_GETFD).unwrap();
            assert!(FdFlag::from_bits_retain(flags).contains(FdFlag::FD_CLOEXEC));
        }
    }
}

#[test]
fn more_descriptors_than_the_kernel_passes_are_an_error_of_the_sender() {
    let (channel, _theirs) = pair();
    let null = File::open("/dev/null").unwrap();
    let error = channel.send(&7, &vec![null.as_fd(); MOST_DESCRIPTORS + 1]);
    assert!(error.unwrap_err().to_string().starts_with("cannot send"));
}

#[test]
fn descriptors_that_were_not_expected_are_closed() {
    for count in [1, 2, MOST_DESCRIPTORS] {
        let (channel, theirs) = pair();
        let readers = send_raw(&theirs, &encoded(7), count);
        let error = channel.receive().unwrap_err().to_string();
        assert!(error.contains("more descriptors"), "{error}");
        assert_closed(&readers);
    }
}

#[test]
fn the_descriptors_of_what_is_no_message_are_closed() {
    for (bytes, cause) in malformed() {
        for count in [0, 1, 2, MOST_DESCRIPTORS] {
            let (channel, theirs) = pair();
            let readers = send_raw(&theirs, &bytes, count);
            let error = channel.receive_with_descriptors().unwrap_err().to_string();
            assert!(error.contains(cause), "{error} instead of {cause}");
            assert_closed(&readers);
            let (channel, theirs) = pair();
            let readers = send_raw(&theirs, &bytes, count);
            channel.receive().unwrap_err();
            assert_closed(&readers);
        }
    }
}

#[test]
fn descriptors_without_a_message_are_closed() {
    let (channel, theirs) = pair();
    let readers = send_raw(&theirs, &[], 1);
    // As if the other end were closed, which it may as well be.
    assert!(!matches!(channel.receive_with_descriptors(), Ok(Some(_))));
    assert_closed(&readers);
    let readers = send_raw(&theirs, &[], 1);
    channel.receive().unwrap_err();
    assert_closed(&readers);
}

#[test]
fn descriptors_of_a_good_message_are_closed_with_their_owner() {
    let (channel, theirs) = pair();
    let readers = send_raw(&theirs, &encoded(7), 2);
    let (_, descriptors) = channel.receive_with_descriptors().unwrap().unwrap();
    let mut sources = [PollFd::new(readers[0].as_fd(), PollFlags::empty())];
    assert_eq!(
        poll(&mut sources, PollTimeout::ZERO).unwrap(),
        0,
        "closed too early"
    );
    drop(descriptors);
    assert_closed(&readers);
}

#[test]
fn a_closed_end_is_none_and_cannot_be_sent_to() {
    let (channel, theirs) = pair();
    drop(theirs);
    assert_eq!(channel.receive().unwrap(), None);
    assert!(channel.receive_with_descriptors().unwrap().is_none());
    channel.send(&7, &[]).unwrap_err();
}

#[test]
fn only_a_nameless_seqpacket_socket_is_a_channel() {
    for kind in [SockType::Stream, SockType::Datagram] {
        let flags = SockFlag::SOCK_CLOEXEC;
        let (one, _other) = socketpair(AddressFamily::Unix, kind, None, flags).unwrap();
        Numbers::from_socket(one).unwrap_err();
    }
    Numbers::from_socket(File::open("/dev/null").unwrap().into()).unwrap_err();
    Numbers::from_socket(pair().1).unwrap();
}
