//! A small HTTP server that start_server can replace without losing a request:
//! `start_server --port=8080 --path=/run/hello.sock -- hello`.
//!
//! It shows what a worker has to do: take the sockets, accept from them, and at SIGTERM finish what it has accepted.
//! It knows nothing more of HTTP than where a request ends.

use std::env;
use std::error::Error;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::process::{self, ExitCode};
use std::thread::{self, Scope};
use std::time::{Duration, Instant};

use common::{Listener, ServerPort};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::SignalFd;
use nix::sys::socket::{Shutdown, shutdown};

/// The longest that a client can hold a connection, and so the longest that stopping takes.
const PATIENCE: Duration = Duration::from_secs(5);
const LONGEST_REQUEST: usize = 8 * 1024;

/// A connection, by TCP or by a unix socket.
trait Connection: Read + Write + AsFd + Send {}
impl<T: Read + Write + AsFd + Send> Connection for T {}

fn main() -> ExitCode {
    match serve() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // If stderr is closed there is no other place to report to.
            writeln!(io::stderr(), "hello: {error}").ok();
            ExitCode::FAILURE
        }
    }
}

fn serve() -> Result<(), Box<dyn Error>> {
    // Before the first thread, because threads inherit the mask: in one that does not block it SIGTERM would kill.
    let sigterm = SigSet::from(Signal::SIGTERM);
    sigterm.thread_block()?;
    let sigterm = SignalFd::new(&sigterm)?;

    let ports = common::server_ports()?;
    if ports.is_empty() {
        return Err("nothing to listen on: start_server got neither --port nor --path".into());
    }
    for ServerPort { name, listener } in &ports {
        // All workers share each listener. Blocking, `accept` would hang, deaf to SIGTERM, whenever another worker
        // takes the connection that `poll` announced. This changes the listener for them too, which is right only
        // because all generations of this program do it.
        match listener {
            Listener::Tcp(listener) => listener.set_nonblocking(true),
            Listener::Unix(listener) => listener.set_nonblocking(true),
            Listener::Udp(_) => Err(io::Error::other("UDP has no connections")),
        }
        .map_err(|error| format!("cannot serve {}: {error}", name.display()))?;
    }

    let generation = env::var("SERVER_STARTER_GENERATION")
        .map_err(|error| format!("cannot read SERVER_STARTER_GENERATION: {error}"))?;
    let body = format!("generation {generation}, pid {}\n", process::id());
    let length = body.len();
    let reply = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    );
    // Leaving the scope waits for the connections that are still being answered, also after an error.
    thread::scope(|scope| accept_until(&sigterm, &ports, scope, &reply))
}

/// Accepts until SIGTERM comes. What is still waiting then in the queue of a listener is not lost: the listener stays
/// open in start_server, and the next generation accepts it.
fn accept_until<'scope>(
    sigterm: &SignalFd,
    ports: &[ServerPort],
    scope: &'scope Scope<'scope, '_>,
    reply: &'scope str,
) -> Result<(), Box<dyn Error>> {
    let watch = |fd| PollFd::new(fd, PollFlags::POLLIN);
    let mut watched = vec![watch(sigterm.as_fd())];
    watched.extend(ports.iter().map(|port| watch(port.listener.as_fd())));
    loop {
        poll(&mut watched, PollTimeout::NONE)?;
        let mut ready = watched.iter().map(|fd| fd.any() != Some(false));
        if ready.next() == Some(true) {
            return Ok(());
        }
        for (port, _) in ports.iter().zip(ready).filter(|(_, ready)| *ready) {
            let mut connection = match accept(&port.listener) {
                Ok(connection) => connection,
                Err(error) => match error.kind() {
                    // Another worker was faster, or the client has gone.
                    ErrorKind::WouldBlock | ErrorKind::ConnectionAborted => continue,
                    // Such as too many open files: this worker ends, and start_server starts another.
                    _ => {
                        return Err(
                            format!("cannot accept on {}: {error}", port.name.display()).into()
                        );
                    }
                },
            };
            // A broken connection is the trouble of its client alone.
            let thread = move || answer(&mut *connection, reply).ok();
            thread::Builder::new().spawn_scoped(scope, thread)?;
        }
    }
}

/// The connection is a blocking one: on Linux it does not inherit that from its listener.
fn accept(listener: &Listener) -> io::Result<Box<dyn Connection>> {
    match listener {
        Listener::Tcp(listener) => Ok(Box::new(listener.accept()?.0)),
        Listener::Unix(listener) => Ok(Box::new(listener.accept()?.0)),
        Listener::Udp(_) => Err(ErrorKind::Unsupported.into()),
    }
}

fn answer(connection: &mut dyn Connection, reply: &str) -> io::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    let mut buffer = [0; 1024];
    let mut request = Vec::new();
    // A request may come in pieces; its head ends with an empty line.
    while !request.windows(4).any(|bytes| bytes == b"\r\n\r\n") {
        let count = read_until(deadline, connection, &mut buffer)?;
        if count == 0 || request.len() + count > LONGEST_REQUEST {
            return Ok(());
        }
        request.extend_from_slice(&buffer[..count]);
    }
    connection.write_all(reply.as_bytes())?;
    // Closing while there is something unread, such as the body of a POST, would reset the connection, and the
    // client could lose the reply. So only the sending half is closed, until the client closes too.
    shutdown(connection.as_fd().as_raw_fd(), Shutdown::Write)?;
    while read_until(deadline, connection, &mut buffer)? > 0 {}
    Ok(())
}

/// A read timeout of the socket would start again with each byte; the deadline holds for the whole connection.
fn read_until(
    deadline: Instant,
    connection: &mut dyn Connection,
    buffer: &mut [u8],
) -> io::Result<usize> {
    let left = deadline.saturating_duration_since(Instant::now());
    let left = PollTimeout::try_from(left).map_err(io::Error::other)?;
    let mut watched = [PollFd::new(connection.as_fd(), PollFlags::POLLIN)];
    if poll(&mut watched, left)? == 0 {
        return Err(ErrorKind::TimedOut.into());
    }
    connection.read(buffer)
}
