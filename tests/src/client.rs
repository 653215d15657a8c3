//! Clients of the fixture worker: one question, or a load of them.
//!
//! The protocol is one line to ask and one line as the answer, or a datagram each; the requests are listed in
//! `src/bin/worker.rs`.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, bind, socket};

use crate::report::Report;
use crate::wait;

/// Where a worker is asked.
#[derive(Debug, Clone)]
pub enum At {
    Tcp(SocketAddr),
    Udp(SocketAddr),
    Unix(PathBuf),
}

impl From<u16> for At {
    /// TCP at 127.0.0.1.
    fn from(port: u16) -> At {
        At::Tcp((Ipv4Addr::LOCALHOST, port).into())
    }
}

impl From<SocketAddr> for At {
    fn from(address: SocketAddr) -> At {
        At::Tcp(address)
    }
}

impl From<&Path> for At {
    fn from(path: &Path) -> At {
        At::Unix(path.to_owned())
    }
}

impl From<&PathBuf> for At {
    fn from(path: &PathBuf) -> At {
        At::Unix(path.clone())
    }
}

/// UDP at 127.0.0.1.
#[must_use]
pub fn udp(port: u16) -> At {
    At::Udp((Ipv4Addr::LOCALHOST, port).into())
}

/// TCP at `::1`.
#[must_use]
pub fn tcp6(port: u16) -> At {
    At::Tcp((Ipv6Addr::LOCALHOST, port).into())
}

/// UDP at `::1`.
#[must_use]
pub fn udp6(port: u16) -> At {
    At::Udp((Ipv6Addr::LOCALHOST, port).into())
}

/// The report of whichever worker answers. The socket must be bound already, the worker may still be on its way.
#[track_caller]
pub fn ask(at: impl Into<At>) -> Report {
    let at = at.into();
    try_ask(at.clone()).unwrap_or_else(|e| panic!("cannot get a report at {at:?}: {e}"))
}

/// The same, where failure is an answer too.
pub fn try_ask(at: impl Into<At>) -> io::Result<Report> {
    let answer = request(at, "report")?;
    serde_json::from_str(&answer)
        .map_err(|e| io::Error::other(format!("not a report: {e}: {answer:?}")))
}

/// The report of whoever answers a client of this address.
#[track_caller]
#[must_use]
pub fn ask_from(source: Ipv4Addr, port: u16) -> Report {
    let answer = connect_from(source, port).and_then(|stream| {
        let mut connection = Connection(BufReader::new(Box::new(stream)));
        connection.send("report")?;
        connection.receive()
    });
    let answer = answer.unwrap_or_else(|e| panic!("cannot ask port {port} from {source}: {e}"));
    serde_json::from_str(&answer).unwrap_or_else(|e| panic!("not a report: {e}: {answer:?}"))
}

fn connect_from(source: Ipv4Addr, port: u16) -> io::Result<TcpStream> {
    let (family, kind) = (AddressFamily::Inet, SockType::Stream);
    let socket = socket(family, kind, SockFlag::SOCK_CLOEXEC, None)?;
    let address = |host, port| SockaddrIn::from(SocketAddrV4::new(host, port));
    bind(socket.as_raw_fd(), &address(source, 0))?;
    nix::sys::socket::connect(socket.as_raw_fd(), &address(Ipv4Addr::LOCALHOST, port))?;
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(wait::DEADLINE))?;
    Ok(stream)
}

/// Sends one request and returns what is answered. An end without an answer is an error.
pub fn request(at: impl Into<At>, line: &str) -> io::Result<String> {
    let at = at.into();
    let answer = match &at {
        At::Udp(address) => exchange_datagrams(*address, line)?,
        At::Tcp(_) | At::Unix(_) => {
            let mut connection = connect(at)?;
            connection.send(line)?;
            connection.receive()?
        }
    };
    if answer.is_empty() {
        Err(io::ErrorKind::UnexpectedEof.into())
    } else {
        Ok(answer)
    }
}

/// Opens a connection; nothing is sent yet.
pub fn connect(at: impl Into<At>) -> io::Result<Connection> {
    let stream: Box<dyn Stream> = match at.into() {
        At::Tcp(address) => {
            let stream = TcpStream::connect_timeout(&address, wait::DEADLINE)?;
            stream.set_read_timeout(Some(wait::DEADLINE))?;
            Box::new(stream)
        }
        At::Unix(path) => {
            let stream = UnixStream::connect(path)?;
            stream.set_read_timeout(Some(wait::DEADLINE))?;
            Box::new(stream)
        }
        At::Udp(_) => {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "UDP has no connections",
            ));
        }
    };
    Ok(Connection(BufReader::new(stream)))
}

/// A connection on which a worker waits for `go`: it was accepted, and a worker that ends gracefully must not end yet.
#[track_caller]
pub fn hold(at: impl Into<At>) -> Held {
    let mut connection = connect(at).expect("cannot connect");
    connection.send("hold").expect("cannot send");
    assert_eq!(connection.receive().expect("no answer to hold"), "holding");
    Held(connection)
}

/// See [`hold`].
pub struct Held(Connection);

impl Held {
    /// Lets the worker finish, and returns its report.
    #[track_caller]
    pub fn finish(mut self) -> Report {
        self.0.send("go").expect("cannot send");
        let answer = self
            .0
            .receive()
            .expect("the connection that the worker held was lost");
        serde_json::from_str(&answer).unwrap_or_else(|e| panic!("not a report: {e}: {answer:?}"))
    }
}

/// A stream connection to a worker.
pub struct Connection(BufReader<Box<dyn Stream>>);

trait Stream: Read + Write + Send {}
impl<T: Read + Write + Send> Stream for T {}

impl Connection {
    pub fn send(&mut self, line: &str) -> io::Result<()> {
        self.0.get_mut().write_all(format!("{line}\n").as_bytes())
    }

    /// One line, without its end; empty where the worker closed the connection.
    pub fn receive(&mut self) -> io::Result<String> {
        let mut line = String::new();
        self.0.read_line(&mut line)?;
        Ok(line.trim_end().to_owned())
    }
}

/// How long a datagram is waited for before the question is sent again.
const RESEND: Duration = Duration::from_millis(200);

/// A worker that is killed can take a datagram with it: a thread of it reads what has come, and the process is gone
/// before it answers. It may do so even when its main thread is a zombie already, which is all that `/proc` shows of the
/// process. So the question is sent again until the deadline, which is why it must be one that can be asked twice.
///
/// The socket is new for each question: an answer that comes late is an answer to this question too.
fn exchange_datagrams(address: SocketAddr, line: &str) -> io::Result<String> {
    if !matches!(line, "" | "report" | "ping") {
        return Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "a datagram can be sent twice, and this request must not be",
        ));
    }
    let local: SocketAddr = if address.is_ipv4() {
        (Ipv4Addr::LOCALHOST, 0).into()
    } else {
        (Ipv6Addr::LOCALHOST, 0).into()
    };
    let socket = UdpSocket::bind(local)?;
    socket.connect(address)?;
    socket.set_read_timeout(Some(RESEND))?;
    let mut buffer = vec![0; 65536];
    let deadline = Instant::now() + wait::DEADLINE;
    loop {
        socket.send(line.as_bytes())?;
        match socket.recv(&mut buffer) {
            Ok(length) => {
                return Ok(String::from_utf8_lossy(&buffer[..length])
                    .trim_end()
                    .to_owned());
            }
            Err(error)
                if error.kind() == io::ErrorKind::WouldBlock && Instant::now() < deadline => {}
            Err(error) => return Err(error),
        }
    }
}

/// How long a client of a paced load waits until it asks again.
const PACE: Duration = Duration::from_millis(3);

/// Clients in a closed loop: each connects, asks, and begins again, until the load is stopped.
#[must_use]
pub struct Load {
    stopped: Arc<AtomicBool>,
    successes: Arc<AtomicU64>,
    failures: Arc<AtomicU64>,
    clients: Vec<JoinHandle<Outcome>>,
}

/// What a load saw.
#[derive(Debug, Default)]
pub struct Outcome {
    pub successes: u64,
    /// The error messages, one for each question without an answer.
    pub failures: Vec<String>,
    pub worst_latency: Duration,
}

impl Load {
    /// As fast as they are answered.
    pub fn start(at: impl Into<At>, clients: usize) -> Load {
        Load::begin(at.into(), clients, Duration::ZERO)
    }

    /// The same with a pause after each answer: what takes long leaves the CPUs to other tests.
    pub fn start_paced(at: impl Into<At>, clients: usize) -> Load {
        Load::begin(at.into(), clients, PACE)
    }

    fn begin(at: At, clients: usize, pause: Duration) -> Load {
        let stopped = Arc::new(AtomicBool::new(false));
        let successes = Arc::new(AtomicU64::new(0));
        let failures = Arc::new(AtomicU64::new(0));
        let clients = (0..clients)
            .map(|_| {
                let (at, stopped) = (at.clone(), Arc::clone(&stopped));
                let (successes, failures) = (Arc::clone(&successes), Arc::clone(&failures));
                thread::spawn(move || {
                    let counts = (&*successes, &*failures);
                    run_client(&at, pause, &stopped, counts)
                })
            })
            .collect();
        Load {
            stopped,
            successes,
            failures,
            clients,
        }
    }

    /// How many questions were answered so far.
    #[must_use]
    pub fn successes(&self) -> u64 {
        self.successes.load(Ordering::Relaxed)
    }

    /// How many questions had no answer so far.
    #[must_use]
    pub fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }

    /// Waits until more questions were answered than now, so that what follows happens under load.
    #[track_caller]
    pub fn wait_for_more(&self, more: u64) {
        let wanted = self.successes() + more;
        wait::until(
            &format!("the load had {wanted} answers"),
            || format!("it had {}", self.successes()),
            || (self.successes() >= wanted).then_some(()),
        );
    }

    /// Ends the clients after their current question.
    pub fn stop(mut self) -> Outcome {
        self.stopped.store(true, Ordering::Relaxed);
        std::mem::take(&mut self.clients)
            .into_iter()
            .map(|client| client.join().expect("a client panicked"))
            .fold(Outcome::default(), |mut total, client| {
                total.successes += client.successes;
                total.failures.extend(client.failures);
                total.worst_latency = total.worst_latency.max(client.worst_latency);
                total
            })
    }
}

impl Drop for Load {
    /// The clients of a test that has failed leave the CPUs to the others.
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Relaxed);
    }
}

fn run_client(
    at: &At,
    pause: Duration,
    stopped: &AtomicBool,
    (successes, failures): (&AtomicU64, &AtomicU64),
) -> Outcome {
    let mut outcome = Outcome::default();
    while !stopped.load(Ordering::Relaxed) {
        let began = Instant::now();
        match request(at.clone(), "ping") {
            Ok(_) => {
                outcome.successes += 1;
                successes.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) => {
                failures.fetch_add(1, Ordering::Relaxed);
                outcome.failures.push(error.to_string());
            }
        }
        outcome.worst_latency = outcome.worst_latency.max(began.elapsed());
        if !pause.is_zero() {
            wait::let_pass(pause);
        }
    }
    outcome
}

/// Leaves a socket file that nobody serves, as a killed server does.
#[track_caller]
pub fn leave_stale_socket(path: &Path) {
    drop(UnixListener::bind(path).expect("cannot bind"));
    let is_refused = |error: &io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
    wait::until("nobody serves it", String::new, || {
        UnixStream::connect(path).err().filter(is_refused)
    });
}

/// A worker that writes numbered lines until it is told to end.
pub struct Flow(Connection);

/// What a [`Flow`] has written.
pub struct Flowed {
    /// Lines.
    pub count: usize,
    /// The time of the slowest write.
    pub slowest: Duration,
}

impl Flow {
    /// Lines of this length in bytes, with a pause after each in microseconds. When it returns, a worker has accepted.
    #[track_caller]
    pub fn start(port: u16, length: usize, stream: &str, pause: u32) -> Flow {
        let mut connection = connect(port).expect("cannot connect");
        let request = format!("flow {length} {stream} {pause}");
        connection.send(&request).expect("cannot send");
        assert_eq!(connection.receive().expect("no answer"), "flowing");
        Flow(connection)
    }

    /// Ends it. None of its writes may have failed.
    #[track_caller]
    pub fn end(mut self) -> Flowed {
        self.0.send("").expect("cannot send");
        let answer = self.0.receive().expect("the worker has ended");
        let numbers: Vec<u64> = answer
            .split(' ')
            .map(|word| word.parse().expect("a number"))
            .collect();
        let [count, slowest, failed] = numbers[..] else {
            panic!("no end of a flow: {answer}");
        };
        assert_eq!(failed, 0, "writes have failed: {answer}");
        Flowed {
            count: usize::try_from(count).expect("a number"),
            slowest: Duration::from_micros(slowest),
        }
    }
}

/// Lets the fixture worker write a line to `stdout` or `stderr`.
#[track_caller]
pub fn write(port: u16, stream: &str, line: &str) {
    request(port, &format!("{stream} {line}")).expect("the worker does not answer");
}

/// Lets the fixture worker write so many numbered lines of this length; returns how long the slowest write took. Very many
/// take a while on a loaded machine, and it answers when all are written.
#[track_caller]
pub fn burst(port: u16, count: usize, length: usize, stream: &str) -> Duration {
    let connection = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).expect("cannot connect");
    let patience = Some(wait::DEADLINE * 10);
    connection
        .set_read_timeout(patience)
        .expect("cannot set a timeout");
    let mut connection = Connection(BufReader::new(Box::new(connection)));
    let request = format!("burst {count} {length} {stream}");
    connection.send(&request).expect("cannot send");
    let answer = connection.receive().expect("the worker does not answer");
    Duration::from_micros(answer.parse().expect("microseconds"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn socket() -> (UdpSocket, At) {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("cannot bind");
        socket
            .set_read_timeout(Some(wait::DEADLINE))
            .expect("cannot set a timeout");
        let at = At::Udp(socket.local_addr().expect("no address"));
        (socket, at)
    }

    #[test]
    fn a_datagram_that_a_dying_worker_took_is_sent_again() {
        let (socket, at) = socket();
        let client = thread::spawn(move || (Instant::now(), request(at, "ping"), Instant::now()));
        let mut buffer = [0; 16];
        // The first is read and never answered.
        socket.recv_from(&mut buffer).expect("no question");
        let (length, address) = socket.recv_from(&mut buffer).expect("no second question");
        assert_eq!(&buffer[..length], b"ping");
        socket.send_to(b"42", address).expect("cannot answer");
        let (asked, answer, answered) = client.join().expect("the client panicked");
        assert_eq!(answer.expect("no answer"), "42");
        assert!(answered - asked < wait::DEADLINE / 2, "it waited too long");
    }

    #[test]
    fn what_must_not_be_done_twice_is_not_asked_by_datagram() {
        let (_socket, at) = socket();
        let refused = request(at, "exit 0").expect_err("it was sent");
        assert_eq!(refused.kind(), io::ErrorKind::Unsupported);
    }
}
