//! Records for a syslog daemon: formatted by the crate `syslog`, sent by us, because nothing here may ever block.
//!
//! A daemon that is slow, stopped, gone or not up yet costs a bounded queue, then lines, which are counted. The count is a
//! record of its own as soon as there is room again. If the daemon is lost, the same record is sent again, at most once a
//! second.

use std::collections::{BTreeMap, VecDeque};
use std::ffi::OsString;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, SockaddrStorage, UnixAddr, connect, getsockopt,
    send, socket, sockopt,
};
use serde::{Deserialize, Serialize};
use syslog::{Facility, Formatter3164, Formatter5424, LogFormat};

use crate::host::luggage::{Carried, Luggage, bytes};
use crate::host::moment::Moment;
use crate::log::capture::Origin;
use crate::log::known::About;
use crate::log::lines::LineFormat;
use crate::log::local_time::LocalTime;
use crate::log::record::ours;
use crate::log::settings::{Address, Format, SyslogSettings};
use crate::words::failure::{self, Failure};
use crate::words::notice::Severity;
use crate::words::text::quoted;

/// Where a syslog daemon listens (syslog(3)).
pub const DEFAULT_ADDRESS: &str = "/dev/log";

/// The shortest time between two attempts to reach the daemon.
const RECONNECT: Duration = Duration::from_secs(1);

/// The size limit of the queue, in bytes: over 100,000 usual lines.
const MOST_WAITING: usize = 16 << 20;

/// What a record costs in memory beside its bytes.
const OVERHEAD: usize = 48;

/// How many records are sent at a time, lest signals or workers have to wait.
const MOST_AT_ONCE: usize = 1000;

/// The private enterprise number for examples (RFC 5612), after the name of our structured data (RFC 5424, 6.3.2).
const STRUCTURED_DATA: &str = "start_server@32473";

/// The facility of this name, if there is one.
pub fn facility(name: &str) -> Option<Facility> {
    name.parse().ok()
}

/// The connection to the daemon.
pub struct Syslog {
    settings: SyslogSettings,
    /// Of the lines that are passed to it: an object says itself of which generation it is.
    line_format: LineFormat,
    facility: Facility,
    /// Only for records that leave this machine, or whose format has a field for its name.
    host: Option<String>,
    peer: Peer,
    socket: Option<OwnedFd>,
    /// The next attempt to reach the daemon is not before this.
    retry_at: Option<Moment>,
    /// There is more to send, once that does not block.
    wants_to_write: bool,
    queue: VecDeque<Vec<u8>>,
    /// The memory that the queue takes, in bytes.
    waiting: usize,
    /// Lines dropped from a full queue since the last record that fit.
    dropped: u64,
    /// The same since the start.
    dropped_in_all: u64,
    /// Why the daemon cannot be reached, until that is reported.
    trouble: Option<Errno>,
    is_reachable: bool,
    lost_at: Option<Moment>,
}

enum Peer {
    Socket(PathBuf),
    Udp(SocketAddr),
}

/// A [`Syslog`] on its way to the next program, with all records that have not been sent.
#[derive(Debug, Serialize, Deserialize)]
pub struct PackedSyslog {
    host: Option<String>,
    peer: PackedPeer,
    socket: Option<Carried>,
    retry_at: Option<Moment>,
    wants_to_write: bool,
    queue: Vec<Record>,
    dropped: u64,
    dropped_in_all: u64,
    trouble: Option<i32>,
    is_reachable: bool,
    lost_at: Option<Moment>,
}

/// As it was found at the start: neither looked at nor resolved again.
#[derive(Debug, Serialize, Deserialize)]
enum PackedPeer {
    Socket(OsString),
    Udp(SocketAddr),
}

#[derive(Debug, Serialize, Deserialize)]
struct Record(#[serde(with = "bytes")] Vec<u8>);

impl Syslog {
    /// Finds the daemon's address; connects to the daemon itself only when there is something to send.
    ///
    /// # Errors
    /// An invalid address: a host without address, a file that is not a socket.
    pub fn open(settings: &SyslogSettings, line_format: LineFormat) -> Result<Syslog, Failure> {
        let peer = match &settings.address {
            Address::Socket(path) => Peer::Socket(checked(path)?),
            Address::Udp(address) => Peer::Udp(resolve(address)?),
        };
        let host = match (&peer, settings.format) {
            (Peer::Socket(_), Format::Rfc3164) => None,
            (Peer::Udp(_), Format::Rfc3164) => host_name(),
            // An unknown name is a dash (RFC 5424, 6.2.4); the crate would write another machine's.
            (_, Format::Rfc5424) => Some(host_name().unwrap_or_else(|| "-".into())),
        };
        Ok(Syslog {
            facility: facility_of(settings),
            settings: settings.clone(),
            line_format,
            host,
            peer,
            socket: None,
            retry_at: None,
            wants_to_write: false,
            queue: VecDeque::new(),
            waiting: 0,
            dropped: 0,
            dropped_in_all: 0,
            trouble: None,
            is_reachable: true,
            lost_at: None,
        })
    }

    /// For the next program.
    pub fn pack(&self, luggage: &mut Luggage) -> PackedSyslog {
        PackedSyslog {
            host: self.host.clone(),
            peer: match &self.peer {
                Peer::Socket(path) => PackedPeer::Socket(path.into()),
                Peer::Udp(address) => PackedPeer::Udp(*address),
            },
            socket: self.socket.as_ref().map(|socket| luggage.put(socket)),
            retry_at: self.retry_at,
            wants_to_write: self.wants_to_write,
            queue: self.queue.iter().cloned().map(Record).collect(),
            dropped: self.dropped,
            dropped_in_all: self.dropped_in_all,
            trouble: self.trouble.map(|errno| errno as i32),
            is_reachable: self.is_reachable,
            lost_at: self.lost_at,
        }
    }

    /// What the last program has packed.
    pub fn unpack(
        packed: PackedSyslog,
        settings: &SyslogSettings,
        line_format: LineFormat,
    ) -> Syslog {
        let queue: VecDeque<Vec<u8>> = packed.queue.into_iter().map(|record| record.0).collect();
        Syslog {
            facility: facility_of(settings),
            settings: settings.clone(),
            line_format,
            host: packed.host,
            peer: match packed.peer {
                PackedPeer::Socket(path) => Peer::Socket(path.into()),
                PackedPeer::Udp(address) => Peer::Udp(address),
            },
            socket: packed.socket.map(Carried::take),
            retry_at: packed.retry_at,
            wants_to_write: packed.wants_to_write,
            waiting: queue.iter().map(|record| record.len() + OVERHEAD).sum(),
            queue,
            dropped: packed.dropped,
            dropped_in_all: packed.dropped_in_all,
            trouble: packed.trouble.map(Errno::from_raw),
            is_reachable: packed.is_reachable,
            lost_at: packed.lost_at,
        }
    }

    /// Lines of ours, already harmless.
    pub fn push_own(&mut self, severity: Severity, lines: &[String]) {
        for line in lines {
            self.push(None, severity, line);
        }
    }

    /// A line of a worker, already harmless.
    pub fn push_line(&mut self, origin: &Origin, line: &str) {
        self.push(Some(origin), origin.stream.severity(), line);
    }

    fn push(&mut self, origin: Option<&Origin>, severity: Severity, line: &str) {
        // Once lines are dropped, room for more than one is required: else each of them would have a count before it.
        let most = match self.dropped {
            0 => MOST_WAITING,
            _ => MOST_WAITING / 2,
        };
        // About the length of the record.
        if self.waiting + line.len() > most {
            self.count_dropped();
            return;
        }
        self.tell_dropped();
        self.enqueue(origin, severity, line);
    }

    fn count_dropped(&mut self) {
        self.dropped = self.dropped.saturating_add(1);
        self.dropped_in_all = self.dropped_in_all.saturating_add(1);
    }

    /// How many lines have been dropped since the start.
    pub fn dropped_in_all(&self) -> u64 {
        self.dropped_in_all
    }

    /// Reports dropped lines in their place, by number.
    fn tell_dropped(&mut self) {
        if self.dropped > 0 {
            let dropped = std::mem::take(&mut self.dropped);
            let text = format!(
                "start_server: {dropped} lines before this one were lost: syslog was too slow or gone"
            );
            for line in ours(self.line_format, Severity::Warning, About::default(), &text) {
                self.enqueue(None, Severity::Warning, &line);
            }
        }
    }

    fn enqueue(&mut self, origin: Option<&Origin>, severity: Severity, line: &str) {
        let mut record = self.record(origin, severity, line);
        record.shrink_to_fit();
        self.waiting += record.len() + OVERHEAD;
        self.queue.push_back(record);
    }

    fn record(&self, origin: Option<&Origin>, severity: Severity, line: &str) -> Vec<u8> {
        let pid = origin.map_or_else(std::process::id, |one| {
            one.worker.pid.as_raw().unsigned_abs()
        });
        let mut record = Vec::new();
        // Writing into memory does not fail.
        drop(match self.settings.format {
            Format::Rfc3164 => {
                let formatter = Formatter3164 {
                    facility: self.facility,
                    hostname: self.host.clone(),
                    process: self.settings.tag.clone(),
                    pid,
                };
                let written = match (origin, self.line_format) {
                    (None, _) | (_, LineFormat::Json) => {
                        formatter.format(&mut record, severity.into(), line)
                    }
                    (Some(one), LineFormat::Text) => {
                        let line = format_args!("gen {}: {line}", one.worker.generation);
                        formatter.format(&mut record, severity.into(), line)
                    }
                };
                put_local_time(&mut record);
                written
            }
            Format::Rfc5424 => {
                let formatter = Formatter5424 {
                    facility: self.facility,
                    hostname: self.host.clone(),
                    process: self.settings.tag.clone(),
                    pid,
                };
                let message = (0, structured_data(origin), line);
                formatter.format(&mut record, severity.into(), message)
            }
        });
        record
    }

    /// Sends what is queued, as far as that does not block.
    pub fn flush(&mut self, now: Moment) {
        if self.retry_at.is_some_and(|retry_at| now < retry_at) {
            return;
        }
        self.wants_to_write = false;
        let mut left = MOST_AT_ONCE;
        while !self.queue.is_empty() {
            if left == 0 {
                self.wants_to_write = true;
                break;
            }
            left -= 1;
            match self.send_first() {
                Ok(()) => self.sent(now),
                Err(Errno::EAGAIN) => {
                    self.wants_to_write = true;
                    break;
                }
                Err(Errno::EINTR) => {}
                // This one will never fit.
                Err(Errno::EMSGSIZE) => {
                    self.forget_first();
                    self.count_dropped();
                }
                Err(errno) => {
                    self.disconnect(errno, now);
                    break;
                }
            }
        }
        if self.queue.is_empty() && self.dropped > 0 {
            self.tell_dropped();
            self.flush(now);
        }
    }

    fn send_first(&mut self) -> nix::Result<()> {
        let Some(record) = self.queue.front() else {
            return Ok(());
        };
        let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
        if let Some(socket) = &self.socket {
            match (send(socket.as_raw_fd(), record, flags), &self.peer) {
                (Ok(_), Peer::Udp(_)) => return refusal(socket),
                // From another machine, and thus about an earlier record.
                (Err(Errno::ECONNREFUSED), Peer::Udp(_)) => {
                    self.count_dropped();
                    return Err(Errno::ECONNREFUSED);
                }
                // The daemon that was there is gone; a new one may be there already.
                (
                    Err(Errno::ECONNREFUSED | Errno::ECONNRESET | Errno::ENOTCONN | Errno::EPIPE),
                    Peer::Socket(_),
                ) => {}
                (result, _) => return result.map(drop),
            }
            self.socket = None;
        }
        let socket = self.peer.connect()?;
        let result = send(socket.as_raw_fd(), record, flags).map(drop);
        let result = match self.peer {
            Peer::Udp(_) => result.and_then(|()| refusal(&socket)),
            Peer::Socket(_) => result,
        };
        self.socket = Some(socket);
        result
    }

    fn sent(&mut self, now: Moment) {
        self.forget_first();
        self.retry_at = None;
        // It takes another machine a while to report that nothing listens on its port.
        let is_certain = match self.peer {
            Peer::Socket(_) => true,
            Peer::Udp(_) => self.lost_at.is_none_or(|at| now >= at + 2 * RECONNECT),
        };
        self.is_reachable |= is_certain;
    }

    fn forget_first(&mut self) {
        if let Some(record) = self.queue.pop_front() {
            self.waiting -= record.len() + OVERHEAD;
        }
        if self.queue.is_empty() {
            // A burst is over.
            self.queue.shrink_to(64);
        }
    }

    fn disconnect(&mut self, errno: Errno, now: Moment) {
        self.socket = None;
        self.retry_at = Some(now + RECONNECT);
        self.lost_at = Some(now);
        if std::mem::replace(&mut self.is_reachable, false) {
            self.trouble = Some(errno);
        }
    }

    /// Once for each time that the daemon is lost: where it is, and why it cannot be reached.
    pub fn take_trouble(&mut self) -> Option<(String, Errno)> {
        let errno = self.trouble.take()?;
        let place = match &self.peer {
            Peer::Socket(path) => quoted(path.as_os_str()),
            Peer::Udp(address) => format!("udp:{address}"),
        };
        Some((place, errno))
    }

    /// How many records are queued.
    pub fn waiting(&self) -> usize {
        self.queue.len()
    }

    /// How many lines have not reached the daemon.
    pub fn unsent(&self) -> u64 {
        self.queue.len() as u64 + self.dropped
    }

    /// The socket to wait for until it is writable.
    pub fn wants_to_write(&self) -> Option<BorrowedFd<'_>> {
        let socket = self.socket.as_ref().filter(|_| self.wants_to_write)?;
        Some(socket.as_fd())
    }

    /// When [`Syslog::flush`] is due even if it is not.
    pub fn deadline(&self) -> Option<Moment> {
        self.retry_at.filter(|_| self.waiting() > 0)
    }
}

fn facility_of(settings: &SyslogSettings) -> Facility {
    facility(&settings.facility).unwrap_or(Facility::LOG_DAEMON)
}

/// Whether nothing listens on the port to which a datagram was just sent: this machine reports that at once, and the record
/// must be sent again.
fn refusal(socket: &OwnedFd) -> nix::Result<()> {
    match getsockopt(socket, sockopt::SocketError)? {
        0 => Ok(()),
        errno => Err(Errno::from_raw(errno)),
    }
}

/// The crate writes the time in UTC, where daemons take it for local time.
fn put_local_time(record: &mut [u8]) {
    let now = LocalTime::now().rfc3164();
    let start = record
        .iter()
        .position(|byte| *byte == b'>')
        .map(|at| at + 1);
    if let Some(place) = start.and_then(|start| record.get_mut(start..start + now.len())) {
        place.copy_from_slice(now.as_bytes());
    }
}

fn structured_data(origin: Option<&Origin>) -> BTreeMap<String, BTreeMap<String, String>> {
    let Some(origin) = origin else {
        return BTreeMap::new();
    };
    let values = [
        ("generation", origin.worker.generation.to_string()),
        ("pid", origin.worker.pid.to_string()),
        ("stream", origin.stream.name().to_owned()),
    ];
    let values = values.map(|(name, value)| (name.to_owned(), value));
    BTreeMap::from([(STRUCTURED_DATA.to_owned(), values.into())])
}

impl From<Severity> for syslog::Severity {
    fn from(severity: Severity) -> syslog::Severity {
        match severity {
            Severity::Error => syslog::Severity::LOG_ERR,
            Severity::Warning => syslog::Severity::LOG_WARNING,
            Severity::Notice => syslog::Severity::LOG_NOTICE,
            Severity::Info => syslog::Severity::LOG_INFO,
        }
    }
}

impl Peer {
    fn connect(&self) -> nix::Result<OwnedFd> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let open = |family| socket(family, SockType::Datagram, flags, None);
        match self {
            Peer::Socket(path) => {
                let socket = open(AddressFamily::Unix)?;
                connect(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
                Ok(socket)
            }
            Peer::Udp(address) => {
                let family = match address {
                    SocketAddr::V4(_) => AddressFamily::Inet,
                    SocketAddr::V6(_) => AddressFamily::Inet6,
                };
                let socket = open(family)?;
                connect(socket.as_raw_fd(), &SockaddrStorage::from(*address))?;
                Ok(socket)
            }
        }
    }
}

fn cannot(address: &str, cause: &str) -> Failure {
    Failure::usage(format!("cannot use --syslog-address={address}: {cause}"))
}

/// It may be missing: a daemon that is started later creates it.
fn checked(path: &Path) -> Result<PathBuf, Failure> {
    let refused = |cause: &str| cannot(&quoted(path.as_os_str()), cause);
    UnixAddr::new(path).map_err(|_| refused("it is too long for a socket"))?;
    match path.metadata() {
        Ok(there) if !there.file_type().is_socket() => Err(refused("it is not a socket")),
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(refused(&failure::cause(&error)))
        }
        Ok(_) | Err(_) => Ok(path.to_owned()),
    }
}

fn resolve(address: &str) -> Result<SocketAddr, Failure> {
    let shown = format!("udp:{address}");
    let found = address
        .to_socket_addrs()
        .map_err(|error| cannot(&shown, &failure::cause(&error)))?
        .next();
    found.ok_or_else(|| cannot(&shown, "the host has no address"))
}

fn host_name() -> Option<String> {
    let name = nix::unistd::gethostname().ok()?.into_string().ok()?;
    let is_name = |byte: u8| byte.is_ascii_graphic();
    (!name.is_empty() && name.bytes().all(is_name)).then_some(name)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use std::os::unix::net::UnixDatagram;

    use nix::unistd::Pid;

    use super::*;
    use crate::log::capture::Stream;
    use crate::log::known::Known;
    use crate::log::tests::on_its_way;

    fn syslog(format: Format) -> Syslog {
        let settings = SyslogSettings {
            facility: "local3".into(),
            tag: "app".into(),
            address: Address::Udp("127.0.0.1:9".into()),
            format,
        };
        Syslog::open(&settings, LineFormat::Text).unwrap()
    }

    fn origin(stream: Stream) -> Origin {
        Origin {
            worker: Known {
                generation: 7,
                slot: 0,
                pid: Pid::from_raw(4321),
            },
            stream,
        }
    }

    /// A place for a daemon's socket, of one test alone.
    fn place(test: &str) -> PathBuf {
        let name = format!("start-server-syslog-{}-{test}", std::process::id());
        std::env::temp_dir().join(name)
    }

    fn to_socket(path: &Path) -> Syslog {
        let settings = SyslogSettings {
            facility: "local3".into(),
            tag: "app".into(),
            address: Address::Socket(path.to_owned()),
            format: Format::Rfc3164,
        };
        Syslog::open(&settings, LineFormat::Text).unwrap()
    }

    fn exec(syslog: Syslog) -> Syslog {
        let packed = on_its_way(&syslog.pack(&mut Luggage::default()));
        let next = Syslog::unpack(packed, &syslog.settings, syslog.line_format);
        assert_eq!(next.queue, syslog.queue);
        assert_eq!(next.waiting, syslog.waiting);
        next
    }

    /// The ends of the records that the daemon can receive now.
    fn receive(daemon: &UnixDatagram, all: &mut Vec<String>) {
        let mut record = [0; 8192];
        while let Ok(length) = daemon.recv(&mut record) {
            let record = text(&record[..length]);
            all.push(record.rsplit(": ").next().unwrap().to_owned());
        }
    }

    fn text(record: &[u8]) -> &str {
        std::str::from_utf8(record).unwrap()
    }

    #[test]
    fn a_record_of_rfc_3164_has_priority_time_tag_pid_and_generation() {
        let mut syslog = syslog(Format::Rfc3164);
        syslog.host = None;
        syslog.push_line(&origin(Stream::Stderr), "hello");
        syslog.push_line(&origin(Stream::Stdout), "hello");
        syslog.push_own(
            Severity::Error,
            &["broken", "hint: mend it"].map(Into::into),
        );
        let own = std::process::id();
        for (record, priority, rest) in [
            (0, 19 * 8 + 4, "app[4321]: gen 7: hello".to_owned()),
            (1, 19 * 8 + 6, "app[4321]: gen 7: hello".to_owned()),
            (2, 19 * 8 + 3, format!("app[{own}]: broken")),
            (3, 19 * 8 + 3, format!("app[{own}]: hint: mend it")),
        ] {
            let record = text(&syslog.queue[record]);
            let (start, after) = record.split_at(record.find('>').unwrap() + 1);
            assert_eq!(start, format!("<{priority}>"));
            let (time, after) = after.split_at(16);
            assert_eq!(time, format!("{} ", LocalTime::now().rfc3164()));
            assert_eq!(after, rest);
        }
    }

    #[test]
    fn a_record_of_rfc_5424_has_generation_pid_and_stream_as_structured_data() {
        let mut syslog = syslog(Format::Rfc5424);
        syslog.host = Some("host".into());
        syslog.push_line(&origin(Stream::Stderr), "hello");
        syslog.push_own(Severity::Notice, &["on".to_owned()]);
        let words: Vec<&str> = text(&syslog.queue[0]).splitn(7, ' ').collect();
        assert_eq!(words[0], "<156>1");
        assert!(words[1].ends_with('Z'), "{words:?}");
        assert_eq!(&words[2..6], ["host", "app", "4321", "0"]);
        assert_eq!(
            words[6],
            "[start_server@32473 generation=\"7\" pid=\"4321\" stream=\"stderr\"] hello"
        );
        assert!(text(&syslog.queue[1]).ends_with(" 0 - on"));
    }

    #[test]
    fn an_object_is_all_of_a_message() {
        for format in [Format::Rfc3164, Format::Rfc5424] {
            let mut syslog = syslog(format);
            syslog.line_format = LineFormat::Json;
            syslog.count_dropped();
            syslog.push_line(&origin(Stream::Stderr), r#"{"message":"hello"}"#);
            let objects = syslog.queue.iter().map(|record| {
                let record = text(record);
                let object = &record[record.find('{').unwrap()..];
                serde_json::from_str::<serde_json::Value>(object).unwrap()
            });
            let objects: Vec<_> = objects.collect();
            let told =
                "start_server: 1 lines before this one were lost: syslog was too slow or gone";
            assert_eq!(objects[0]["message"], told);
            assert_eq!(objects[1]["message"], "hello");
            assert!(!text(&syslog.queue[1]).contains("gen 7"));
        }
    }

    #[test]
    fn a_slow_daemon_gets_every_record_once_from_one_program_or_the_next() {
        let path = place("slow");
        let daemon = UnixDatagram::bind(&path).unwrap();
        daemon.set_nonblocking(true).unwrap();
        let mut syslog = to_socket(&path);
        let pushed: Vec<String> = (0..2000)
            .map(|number| format!("gr\u{fc}n {number}"))
            .collect();
        for line in &pushed {
            syslog.push_line(&origin(Stream::Stdout), line);
        }
        let now = Moment::now();
        syslog.flush(now);
        // The next program needs no name: it has the connection.
        std::fs::remove_file(&path).unwrap();
        assert!(syslog.wants_to_write().is_some() && syslog.waiting() > 0);
        let mut syslog = exec(syslog);
        let mut received = Vec::new();
        while syslog.wants_to_write().is_some() {
            receive(&daemon, &mut received);
            syslog.flush(now);
        }
        receive(&daemon, &mut received);
        assert_eq!(received, pushed);
    }

    #[test]
    fn a_daemon_that_is_gone_is_gone_for_the_next_program_too() {
        let path = place("gone");
        let mut syslog = to_socket(&path);
        syslog.push_line(&origin(Stream::Stdout), "kept");
        syslog.count_dropped();
        let now = Moment::now();
        syslog.flush(now);
        let mut syslog = exec(syslog);
        assert_eq!(syslog.deadline(), Some(now + RECONNECT));
        assert_eq!(syslog.unsent(), 2);
        let trouble = (quoted(path.as_os_str()), Errno::ENOENT);
        assert_eq!(syslog.take_trouble(), Some(trouble));
        // It is told only once.
        let mut syslog = exec(syslog);
        let daemon = UnixDatagram::bind(&path).unwrap();
        daemon.set_nonblocking(true).unwrap();
        let mut received = Vec::new();
        syslog.flush(now);
        receive(&daemon, &mut received);
        assert_eq!(received, [""; 0]);
        syslog.flush(now + RECONNECT);
        receive(&daemon, &mut received);
        std::fs::remove_file(&path).unwrap();
        assert_eq!(received, ["kept", "syslog was too slow or gone"]);
        assert_eq!((syslog.unsent(), syslog.dropped_in_all()), (0, 1));
        assert_eq!(syslog.take_trouble(), None);
    }

    #[test]
    fn the_next_program_resolves_no_name_again() {
        let mut first = syslog(Format::Rfc3164);
        first.host = Some("first".into());
        first.peer = Peer::Udp("[fe80::1%2]:514".parse().unwrap());
        first.disconnect(Errno::ENETUNREACH, Moment::now());
        let packed = on_its_way(&first.pack(&mut Luggage::default()));
        let mut settings = first.settings;
        settings.address = Address::Udp("nowhere.invalid:514".into());
        let mut next = Syslog::unpack(packed, &settings, LineFormat::Text);
        let trouble = ("udp:[fe80::1%2]:514".to_owned(), Errno::ENETUNREACH);
        assert_eq!(next.take_trouble(), Some(trouble));
        assert_eq!((next.lost_at, next.is_reachable), (first.lost_at, false));
        next.push_own(Severity::Notice, &["on".to_owned()]);
        assert!(text(&next.queue[0]).contains(" first app["));
    }

    #[test]
    fn a_queue_that_is_full_counts_what_it_loses_and_tells_it_in_its_place() {
        let mut syslog = syslog(Format::Rfc3164);
        let line = "x".repeat(8000);
        let pushed = 3000;
        for _ in 0..pushed {
            syslog.push_line(&origin(Stream::Stdout), &line);
        }
        assert!(syslog.waiting <= MOST_WAITING + 9000);
        let kept = syslog.queue.len();
        assert_eq!(syslog.dropped, pushed - kept as u64);
        while syslog.waiting > MOST_WAITING / 2 {
            syslog.forget_first();
        }
        syslog.push_line(&origin(Stream::Stdout), "again");
        let told = format!("{} lines before this one were lost", pushed - kept as u64);
        let place = syslog.queue.len() - 2;
        assert!(text(&syslog.queue[place]).contains(&told));
        assert!(text(&syslog.queue[place + 1]).ends_with("again"));
        assert_eq!(syslog.dropped, 0);
        // What is told stays counted.
        assert_eq!(syslog.dropped_in_all(), pushed - kept as u64);
    }
}
