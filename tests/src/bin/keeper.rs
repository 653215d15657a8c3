//! A server program that leaves descriptors to its successors, by `FDSTORE=1` of sd_notify(3), and takes back what its
//! predecessors have left. It says READY=1 by itself, and ends by TERM, without a word to its clients.
//!
//! It serves its listeners and every connection that it was left. Requests, one line each, and the answer is one line:
//!
//! * `who`: its generation
//! * `pid`: its pid
//! * `kept`: `LISTEN_FDS LISTEN_FDNAMES`, if they are for this process
//! * `open`: `NUMBER=TARGET` of each descriptor that it was executed with
//! * `content NAME`: what the memfd with this name holds: the generation that made it
//! * `send KIND COUNT TEXT`: sends this many descriptors with this notification, which has a semicolon for each line feed,
//!   and answers when it was read. KIND is `conn` (this connection), `memfd` (a new one each), `pipe` (the end to read of a
//!   new one each), `copies` (of one memfd), `listener` or `none`
//! * `hang-up`: closes the other end of each of these pipes
//! * `last-words COUNT`: sends memfds `last-1`, `last-2`, .. one by one, and ends at once with status 1

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a fixture fails by panicking"
)]

use std::collections::BTreeMap;
use std::io::{IoSlice, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixDatagram;
use std::{env, fs, io, process};

use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{ControlMessage, MsgFlags, getsockopt, recv, sendmsg, sockopt};

fn main() {
    let open = open_descriptors();
    let variable = |name: &str| env::var(name).unwrap_or_default();
    let is_ours = variable("LISTEN_PID") == process::id().to_string();
    let names: Vec<String> = match variable("LISTEN_FDNAMES") {
        names if is_ours => names.split(':').map(str::to_owned).collect(),
        _ => Vec::new(),
    };
    let ports = variable("SERVER_STARTER_PORT");
    let listeners: Vec<TcpListener> = ports
        .split(';')
        .filter_map(|entry| Some(own(entry.rsplit_once('=')?.1.parse().ok()?).into()))
        .collect();
    let kept: Vec<(String, OwnedFd)> = names
        .iter()
        .zip(3..)
        .skip(listeners.len())
        .map(|(name, number)| (name.clone(), own(number)))
        .collect();
    let is_connection = |descriptor: &OwnedFd| {
        getsockopt(descriptor, sockopt::AcceptConn).is_ok_and(|listens| !listens)
    };
    let copies = kept.iter().filter(|(_, one)| is_connection(one));
    let copies = copies.map(|(_, one)| one.try_clone().expect("a copy").into());
    let connections: Vec<TcpStream> = copies.collect();
    for listener in &listeners {
        listener.set_nonblocking(true).expect("cannot set a flag");
    }
    let mut keeper = Keeper {
        announced: format!("{} {}", variable("LISTEN_FDS"), names.join(":")),
        generation: variable("SERVER_STARTER_GENERATION"),
        open,
        listeners,
        kept,
        writers: Vec::new(),
    };
    send("READY=1", &[]);
    keeper.serve(connections);
}

struct Keeper {
    announced: String,
    generation: String,
    open: BTreeMap<RawFd, String>,
    listeners: Vec<TcpListener>,
    kept: Vec<(String, OwnedFd)>,
    writers: Vec<OwnedFd>,
}

impl Keeper {
    fn serve(&mut self, mut connections: Vec<TcpStream>) {
        loop {
            let sources = self.listeners.iter().map(AsFd::as_fd);
            let sources = sources.chain(connections.iter().map(AsFd::as_fd));
            let mut sources: Vec<PollFd<'_>> = sources
                .map(|source| PollFd::new(source, PollFlags::POLLIN))
                .collect();
            // It fails only if a signal comes, and those end it.
            poll(&mut sources, PollTimeout::NONE).expect("poll");
            let ready: Vec<bool> = sources.iter().map(|it| it.any() == Some(true)).collect();
            let (listening, connected) = ready.split_at(self.listeners.len());
            let mut is_ready = connected.iter();
            connections.retain_mut(|connection| {
                !is_ready.next().expect("one each") || self.answer(connection)
            });
            for (listener, is_ready) in self.listeners.iter().zip(listening) {
                // Another generation may be faster.
                if *is_ready && let Ok((connection, _)) = listener.accept() {
                    connection.set_nonblocking(false).expect("a flag");
                    connections.push(connection);
                }
            }
        }
    }

    /// Whether the connection goes on.
    fn answer(&mut self, connection: &mut TcpStream) -> bool {
        let mut buffer = [0; 4096];
        let number = connection.as_raw_fd();
        let length = match recv(number, &mut buffer, MsgFlags::MSG_DONTWAIT) {
            Err(nix::errno::Errno::EAGAIN) => return true,
            Ok(0) | Err(_) => return false,
            Ok(length) => length,
        };
        let request = String::from_utf8_lossy(&buffer[..length]).into_owned();
        for request in request.lines() {
            let answer = self.perform(request, connection);
            if writeln!(connection, "{answer}").is_err() {
                return false;
            }
        }
        true
    }

    fn perform(&mut self, request: &str, connection: &TcpStream) -> String {
        let (word, rest) = request.split_once(' ').unwrap_or((request, ""));
        match word {
            "who" => self.generation.clone(),
            "pid" => process::id().to_string(),
            "kept" => self.announced.clone(),
            "open" => {
                let all = self.open.iter();
                let all = all.map(|(number, target)| format!("{number}={target}"));
                all.collect::<Vec<_>>().join(";")
            }
            "content" => {
                let (_, memfd) = self.kept.iter().find(|(name, _)| name == rest).expect("it");
                let file = fs::File::from(memfd.try_clone().expect("a copy"));
                let mut content = [0; 64];
                let length = file.read_at(&mut content, 0).expect("cannot read");
                String::from_utf8_lossy(&content[..length]).into_owned()
            }
            "send" => {
                self.send(rest, connection);
                barrier();
                "sent".to_owned()
            }
            "hang-up" => {
                self.writers.clear();
                "closed".to_owned()
            }
            "last-words" => {
                for number in 1..=rest.parse().expect("a count") {
                    let text = format!("FDSTORE=1\nFDNAME=last-{number}");
                    send(&text, &[self.memfd()]);
                }
                process::exit(1);
            }
            _ => format!("no such request: {request}"),
        }
    }

    fn send(&mut self, words: &str, connection: &TcpStream) {
        let mut words = words.splitn(3, ' ');
        let mut next = || words.next().expect("send KIND COUNT TEXT");
        let (kind, count, text) = (next(), next(), next());
        let count: usize = count.parse().expect("a count");
        let copy = |it: &dyn AsFd| it.as_fd().try_clone_to_owned().expect("a copy");
        let one = self.memfd();
        let descriptors: Vec<OwnedFd> = (0..count)
            .map(|_| match kind {
                "conn" => copy(connection),
                "memfd" => self.memfd(),
                "copies" => copy(&one),
                "listener" => copy(&self.listeners[0]),
                "pipe" => {
                    let (reader, writer) = io::pipe().expect("a pipe");
                    self.writers.push(writer.into());
                    reader.into()
                }
                _ => panic!("no such kind: {kind}"),
            })
            .collect();
        send(&text.replace(';', "\n"), &descriptors);
    }

    fn memfd(&self) -> OwnedFd {
        let flags = nix::sys::memfd::MFdFlags::MFD_CLOEXEC;
        let memfd = nix::sys::memfd::memfd_create(c"kept", flags).expect("a memfd");
        let mut file = fs::File::from(memfd);
        file.write_all(self.generation.as_bytes())
            .expect("cannot write");
        file.into()
    }
}

fn send(text: &str, descriptors: &[OwnedFd]) {
    let socket = UnixDatagram::unbound().expect("a socket");
    let address = env::var("NOTIFY_SOCKET").expect("there is no NOTIFY_SOCKET");
    socket.connect(address).expect("cannot reach NOTIFY_SOCKET");
    let raw: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let rights = if raw.is_empty() { &[] } else { &rights[..] };
    let parts = [IoSlice::new(text.as_bytes())];
    let number = socket.as_raw_fd();
    sendmsg::<()>(number, &parts, rights, MsgFlags::empty(), None).expect("cannot send");
}

/// Waits until everything that was sent before was read.
fn barrier() {
    let (mut reader, writer) = io::pipe().expect("a pipe");
    send("BARRIER=1", &[writer.into()]);
    assert_eq!(reader.read(&mut [0]).expect("cannot read"), 0);
}

fn open_descriptors() -> BTreeMap<RawFd, String> {
    let own = format!("/proc/{}/fd", process::id());
    let all = fs::read_dir("/proc/self/fd").expect("cannot list descriptors");
    let all = all.flatten().filter_map(|entry| {
        let number = entry.file_name().to_str()?.parse().ok()?;
        let target = fs::read_link(entry.path()).ok()?;
        Some((number, target.to_string_lossy().into_owned()))
    });
    all.filter(|(_, target)| *target != own).collect()
}

#[expect(unsafe_code, reason = "descriptors come by number")]
fn own(number: RawFd) -> OwnedFd {
    // SAFETY: it takes no pointer, and no descriptor away from anybody.
    let flags = unsafe { libc::fcntl(number, libc::F_GETFD) };
    assert!(
        flags != -1,
        "descriptor {number} was announced and is not open"
    );
    // SAFETY: it was announced to this process by its number, which nothing else here uses.
    unsafe { OwnedFd::from_raw_fd(number) }
}
