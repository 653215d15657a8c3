//! A service manager: what it is told over its `NOTIFY_SOCKET`, by whom, and how it waits.

use std::cell::RefCell;
use std::ffi::OsString;
use std::fs::{self, Permissions};
use std::io::{self, IoSliceMut};
use std::os::fd::{AsRawFd, RawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;

use nix::sys::socket::{
    ControlMessageOwned, MsgFlags, UnixCredentials, recvmsg, setsockopt, sockopt,
};
use nix::unistd::{Pid, close};

use crate::wait;

/// As much as systemd reads of a datagram.
const LARGEST: usize = 4096;

/// One datagram.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Who has sent it, according to the kernel.
    pub from: Pid,
    /// Its assignments, in their order.
    pub assignments: Vec<(String, String)>,
}

impl Message {
    /// The value of an assignment.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        let mut assignments = self.assignments.iter();
        let found = assignments.find(|(one, _)| one == name);
        found.map(|(_, value)| value.as_str())
    }

    /// Whether it assigns 1 to this name.
    #[must_use]
    pub fn says(&self, name: &str) -> bool {
        self.get(name) == Some("1")
    }
}

/// The manager. It reads only when it is asked what it has received.
#[derive(Debug)]
pub struct Manager {
    socket: UnixDatagram,
    place: OsString,
    received: RefCell<Vec<Message>>,
}

impl Manager {
    /// At this path, for everybody.
    #[must_use]
    pub fn at(path: &Path) -> Manager {
        let socket = UnixDatagram::bind(path).expect("cannot bind the socket of the manager");
        let open = Permissions::from_mode(0o777);
        fs::set_permissions(path, open).expect("cannot open the socket to everybody");
        Manager::new(socket, path.into())
    }

    /// At this abstract name.
    #[must_use]
    pub fn at_name(name: &str) -> Manager {
        let address = SocketAddr::from_abstract_name(name).expect("a short name");
        let socket = UnixDatagram::bind_addr(&address).expect("cannot bind an abstract socket");
        Manager::new(socket, format!("@{name}").into())
    }

    fn new(socket: UnixDatagram, place: OsString) -> Manager {
        setsockopt(&socket, sockopt::PassCred, &true).expect("cannot ask for senders");
        socket
            .set_nonblocking(true)
            .expect("cannot set a socket to non-blocking");
        Manager {
            socket,
            place,
            received: RefCell::default(),
        }
    }

    /// The value of `NOTIFY_SOCKET`.
    #[must_use]
    pub fn place(&self) -> &OsString {
        &self.place
    }

    /// Everything that it was told so far.
    #[must_use]
    pub fn messages(&self) -> Vec<Message> {
        let mut received = self.received.borrow_mut();
        while let Some(message) = self.read() {
            // Descriptors are for a manager that keeps some.
            if message.get("FDSTORE").is_none() {
                received.push(message);
            }
        }
        received.clone()
    }

    /// Forgets what it was told so far, and returns it.
    pub fn forget(&self) -> Vec<Message> {
        let messages = self.messages();
        self.received.borrow_mut().clear();
        messages
    }

    /// Waits until what it was told answers this.
    #[track_caller]
    pub fn wait_for<T>(&self, condition: &str, answer: impl Fn(&[Message]) -> Option<T>) -> T {
        wait::until(
            &format!("the manager knows that {condition}"),
            || format!("{:#?}", self.messages()),
            || answer(&self.messages()),
        )
    }

    /// Waits until one of its messages assigns this.
    #[track_caller]
    pub fn wait_for_assignment(&self, name: &str, value: &str) -> Message {
        self.wait_for(&format!("{name}={value}"), |messages| {
            let mut messages = messages.iter();
            messages.find(|one| one.get(name) == Some(value)).cloned()
        })
    }

    /// Fills its queue. Returns how many messages that took: they say `X_JUNK=1`.
    #[must_use]
    pub fn fill(&self) -> usize {
        let client = UnixDatagram::unbound().expect("cannot make a socket");
        client
            .set_nonblocking(true)
            .expect("cannot set a socket to non-blocking");
        let address = self.socket.local_addr().expect("it has an address");
        client.connect_addr(&address).expect("cannot connect");
        let mut count = 0;
        loop {
            match client.send(b"X_JUNK=1") {
                Ok(_) => count += 1,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return count,
                Err(error) => panic!("cannot fill the queue: {error}"),
            }
        }
    }

    fn read(&self) -> Option<Message> {
        let mut buffer = [0; LARGEST];
        let mut control = nix::cmsg_space!(UnixCredentials, [RawFd; 64]);
        let (length, from) = {
            let mut parts = [IoSliceMut::new(&mut buffer)];
            let flags = MsgFlags::MSG_DONTWAIT;
            let descriptor = self.socket.as_raw_fd();
            let message = recvmsg::<()>(descriptor, &mut parts, Some(&mut control), flags).ok()?;
            assert!(
                !message.flags.contains(MsgFlags::MSG_TRUNC),
                "a message is longer than {LARGEST} bytes"
            );
            let control = message.cmsgs().expect("there is room for the sender");
            let mut from = None;
            for one in control {
                match one {
                    ControlMessageOwned::ScmCredentials(sender) => {
                        from = Some(Pid::from_raw(sender.pid()));
                    }
                    ControlMessageOwned::ScmRights(descriptors) => {
                        for descriptor in descriptors {
                            close(descriptor).expect("it is open");
                        }
                    }
                    _ => {}
                }
            }
            (message.bytes, from.expect("the kernel tells the sender"))
        };
        let text = str::from_utf8(&buffer[..length]).expect("a message is text");
        let assignments = text.lines().map(|line| {
            let (name, value) = line.split_once('=').expect("a line is an assignment");
            (name.to_owned(), value.to_owned())
        });
        Some(Message {
            from,
            assignments: assignments.collect(),
        })
    }
}
