//! A service manager that keeps descriptors for a service, as sd_notify(3) and the documentation of systemd describe it: the
//! part of it that outlives the service. What it does not know is ignored.
//!
//! A thread reads its socket. It forgets a descriptor that is identical to one that it has under whatever name, one that
//! hangs up unless the service said `FDPOLL=0`, and those of a name that the service removes.

use std::ffi::OsString;
use std::io::IoSliceMut;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use nix::sys::stat::fstat;

use crate::server::Setup;
use crate::start::between_starts;
use crate::wait;

/// What it keeps, and what it was told.
#[derive(Debug, Default)]
struct State {
    kept: Vec<Kept>,
    messages: Vec<String>,
}

#[derive(Debug)]
struct Kept {
    name: String,
    descriptor: OwnedFd,
    /// Whether it goes when it hangs up.
    is_polled: bool,
}

/// A running manager; its socket is removed with the folder that it is in.
#[derive(Debug)]
pub struct Manager {
    path: PathBuf,
    most: usize,
    state: Arc<Mutex<State>>,
}

impl Manager {
    /// Listens on this path, and keeps this many descriptors.
    #[must_use]
    pub fn new(path: &Path, most: usize) -> Manager {
        let socket = UnixDatagram::bind(path).expect("cannot bind the manager's socket");
        let everybody = std::os::unix::fs::PermissionsExt::from_mode(0o777);
        std::fs::set_permissions(path, everybody).expect("cannot set the mode");
        let state = Arc::new(Mutex::new(State::default()));
        let theirs = Arc::clone(&state);
        // It ends with the process of the tests.
        thread::spawn(move || {
            loop {
                let (message, descriptors) = receive(&socket);
                let mut state = theirs.lock().unwrap_or_else(PoisonError::into_inner);
                between_starts(|| state.take(&message, descriptors, most));
                state.messages.push(message);
            }
        });
        Manager {
            path: path.to_owned(),
            most,
            state,
        }
    }

    /// Launches a service: with what is kept for it, the last first, after what the setup passes on already.
    pub fn launch(&self, setup: Setup) -> Setup {
        self.launch_after(setup, &[])
    }

    /// The same after sockets with these names, which the setup passes on already.
    pub fn launch_after(&self, setup: Setup, names: &[&str]) -> Setup {
        let mut state = self.state();
        state.forget_hung_up();
        let mut setup = setup
            .env("NOTIFY_SOCKET", &self.path)
            .env("FDSTORE", self.most.to_string());
        let mut names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        for kept in state.kept.iter().rev() {
            let copy = kept.descriptor.try_clone().expect("cannot duplicate");
            setup = setup.pass_on(copy);
            names.push(kept.name.clone());
        }
        match names.is_empty() {
            true => setup,
            false => setup.env("LISTEN_FDNAMES", OsString::from(names.join(":"))),
        }
    }

    /// The names of what is kept, in order.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        let mut state = self.state();
        state.forget_hung_up();
        state.kept.iter().map(|kept| kept.name.clone()).collect()
    }

    /// Waits until exactly these are kept.
    #[track_caller]
    pub fn wait_for_names(&self, names: &[String]) {
        wait::until(
            &format!("the manager keeps {names:?}"),
            || format!("{:?}", self.state().messages),
            || (self.names() == names).then_some(()),
        );
    }

    /// Everything that it was told.
    #[must_use]
    pub fn messages(&self) -> Vec<String> {
        self.state().messages.clone()
    }

    /// Keeps something that no service has sent.
    pub fn plant(&self, name: &str, descriptor: impl Into<OwnedFd>) {
        self.state().kept.push(Kept {
            name: name.to_owned(),
            descriptor: descriptor.into(),
            is_polled: false,
        });
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn take(&mut self, message: &str, descriptors: Vec<OwnedFd>, most: usize) {
        let has = |line: &str| message.lines().any(|it| it == line);
        let name = message.lines().find_map(|it| it.strip_prefix("FDNAME="));
        let name = name.unwrap_or("stored").to_owned();
        // As fdname_is_valid() of systemd.
        assert!(
            name.len() <= 255
                && name
                    .bytes()
                    .all(|it| (b' '..0x7f).contains(&it) && it != b':'),
            "no name of a descriptor: {name:?}"
        );
        if has("FDSTOREREMOVE=1") {
            self.kept.retain(|kept| kept.name != name);
        } else if has("FDSTORE=1") {
            self.forget_hung_up();
            for descriptor in descriptors {
                let is_kept = self
                    .kept
                    .iter()
                    .any(|it| is_same(&it.descriptor, &descriptor));
                if !is_kept && self.kept.len() < most {
                    self.kept.push(Kept {
                        name: name.clone(),
                        descriptor,
                        is_polled: !has("FDPOLL=0"),
                    });
                }
            }
        }
        // What came with anything else, such as BARRIER=1, is closed here.
    }

    fn forget_hung_up(&mut self) {
        self.kept.retain(|kept| {
            let mut watched = [PollFd::new(kept.descriptor.as_fd(), PollFlags::empty())];
            poll(&mut watched, PollTimeout::ZERO).expect("poll");
            let found = watched[0].revents().unwrap_or(PollFlags::empty());
            !kept.is_polled || !found.intersects(PollFlags::POLLHUP | PollFlags::POLLERR)
        });
    }
}

/// Whether both lead to one socket.
fn is_same(one: &OwnedFd, other: &OwnedFd) -> bool {
    let identity = |it: &OwnedFd| fstat(it).map(|it| (it.st_dev, it.st_ino)).expect("fstat");
    identity(one) == identity(other)
}

fn receive(socket: &UnixDatagram) -> (String, Vec<OwnedFd>) {
    let mut buffer = [0; 4096];
    let mut control = nix::cmsg_space!([i32; 16]);
    let mut parts = [IoSliceMut::new(&mut buffer)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let received = recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut control), flags);
    let received = received.expect("the manager cannot receive");
    let mut descriptors = Vec::new();
    for message in received.cmsgs().expect("nothing was cut") {
        if let ControlMessageOwned::ScmRights(numbers) = message {
            descriptors.extend(numbers.into_iter().map(own));
        }
    }
    let length = received.bytes;
    let message = String::from_utf8_lossy(&buffer[..length]).into_owned();
    (message, descriptors)
}

#[expect(unsafe_code, reason = "recvmsg(2) gives new descriptors as numbers")]
fn own(number: i32) -> OwnedFd {
    // SAFETY: the kernel has just made it for this process, and nothing else has seen its number.
    unsafe { OwnedFd::from_raw_fd(number) }
}
