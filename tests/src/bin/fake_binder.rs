//! A broken start_server-binder, to be installed beside a start_server under that name.
//!
//! What it does wrong stands in the file `mode` beside it, because it is started without arguments and environment.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

use std::fs::{self, File};
use std::net::TcpListener;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::{env, io};

use common::channel::Channel;
use common::message::{Ask, Confinement, Refusal, Reply, Request};
use nix::sys::socket::{MsgFlags, send};

fn main() {
    let program = env::current_exe().expect("cannot find this program");
    let folder = program.parent().expect("a folder");
    let mode = fs::read_to_string(folder.join("mode")).expect("no mode");
    if mode == "exits at once" {
        return;
    }
    let channel: Channel<Reply, Request> = Channel::from_socket(inherited()).expect("no channel");
    channel.receive().expect("no list");
    match mode.as_str() {
        "exits after the list" => return,
        "answers before it is asked" => {
            let nothing = Vec::new();
            let reply = Reply::Bound { replaced: nothing };
            return channel.send(&reply, &[]).expect("cannot send");
        }
        "has no sandbox" => confined(&channel, false, 0),
        "has half a sandbox" => confined(&channel, true, 4),
        "does whatever it is asked to try" => {
            confined(&channel, false, 0);
            return do_everything(&channel);
        }
        _ => confined(&channel, true, Confinement::LANDLOCK),
    }
    let asks = match channel.receive() {
        Ok(Some(Request::Bind(asks))) => asks,
        other => panic!("not a request to bind: {other:?}"),
    };
    let sockets: Vec<OwnedFd> = asks.iter().map(bind).collect();
    let bound = || Reply::Bound {
        replaced: Vec::new(),
    };
    match mode.as_str() {
        "exits without an answer" => {}
        "answers garbage" => send_bytes(&channel, b"garbage"),
        "answers of another version" => send_bytes(&channel, &[7, 0, 0]),
        "answers half" => send_bytes(&channel, &[6, 2]),
        "answers too much" => send_bytes(&channel, &[6, 1, 0, 0]),
        "sends no socket" => channel.send(&bound(), &[]).expect("cannot send"),
        "sends a socket too much" => {
            let twice: Vec<BorrowedFd<'_>> =
                sockets.iter().chain(&sockets).map(AsFd::as_fd).collect();
            channel.send(&bound(), &twice).expect("cannot send");
        }
        "sends no socket but a file" => {
            let null = File::open("/dev/null").expect("cannot open /dev/null");
            channel
                .send(&bound(), &[null.as_fd()])
                .expect("cannot send");
        }
        "refuses what was not asked for" => {
            let refusal = Refusal::Served;
            let reply = Reply::Refused { ask: 7, refusal };
            channel.send(&reply, &[]).expect("cannot send");
        }
        "has no sandbox" | "has half a sandbox" => {
            let bound_all: Vec<BorrowedFd<'_>> = sockets.iter().map(AsFd::as_fd).collect();
            channel.send(&bound(), &bound_all).expect("cannot send");
        }
        "says twice what confines it" => confined(&channel, true, Confinement::LANDLOCK),
        // Nothing wrong but the time that it takes.
        "stays until it is released" => {
            let bound_all: Vec<BorrowedFd<'_>> = sockets.iter().map(AsFd::as_fd).collect();
            channel.send(&bound(), &bound_all).expect("cannot send");
            fs::read(folder.join("fifo")).expect("cannot read the fifo");
        }
        other => panic!("unknown mode {other}"),
    }
}

fn confined(channel: &Channel<Reply, Request>, seccomp: bool, landlock: u8) {
    let confinement = Confinement { seccomp, landlock };
    // Whoever does not like it may have closed the channel.
    drop(channel.send(&Reply::Confined(confinement), &[]));
}

/// Binds what it is asked for, and says of every escape that it has succeeded.
fn do_everything(channel: &Channel<Reply, Request>) {
    while let Ok(Some(request)) = channel.receive() {
        let (reply, sockets) = match request {
            Request::Allow(_) => panic!("a second list"),
            Request::TryEscape(_) => (Reply::EscapeTried { errno: None }, Vec::new()),
            Request::Bind(asks) => {
                let replaced = Vec::new();
                let sockets: Vec<OwnedFd> = asks.iter().map(bind).collect();
                (Reply::Bound { replaced }, sockets)
            }
        };
        let sockets: Vec<BorrowedFd<'_>> = sockets.iter().map(AsFd::as_fd).collect();
        channel.send(&reply, &sockets).expect("cannot send");
    }
}

fn bind(ask: &Ask) -> OwnedFd {
    match ask {
        Ask::Port { address, .. } => {
            let listener = TcpListener::bind((address.ip, address.port));
            listener.expect("cannot bind").into()
        }
        Ask::Path { .. } => panic!("only ports"),
    }
}

fn send_bytes(channel: &Channel<Reply, Request>, bytes: &[u8]) {
    send(channel.as_fd().as_raw_fd(), bytes, MsgFlags::MSG_NOSIGNAL).expect("cannot send");
}

/// A copy of descriptor 0.
fn inherited() -> OwnedFd {
    let stdin = io::stdin();
    stdin
        .as_fd()
        .try_clone_to_owned()
        .expect("cannot duplicate a descriptor")
}
