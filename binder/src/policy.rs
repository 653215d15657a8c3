//! Who may have which low port, where this program has more than its launcher: its file carries capabilities.
//!
//! Then the launcher is an ordinary user whom nobody has to believe. What it may ask for stands in a file that only root
//! can write, and it is known by its real uid and groups alone.

use std::fs::File;
use std::io::Read;
use std::ops::RangeInclusive;
use std::path::Path;

use common::message::Transport;
use common::privileges::were_raised_by_exec;
use common::trusted_path::{Trust, is, open_directory};
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{Mode, SFlag, fstat};
use nix::unistd::{Gid, Group, Uid, User, getegid, geteuid, getgid, getgroups, getuid};

const DIRECTORY: &str = "/etc/start_server";
const NAME: &str = "binder.conf";

/// The whole path, for words.
pub const FILE: &str = "/etc/start_server/binder.conf";

/// The largest policy file, in bytes.
const LARGEST: u64 = 64 * 1024;

/// The first port that anybody may bind (ip(7)).
const FIRST_UNPRIVILEGED_PORT: &str = "/proc/sys/net/ipv4/ip_unprivileged_port_start";

/// Whose rights the requests are answered with.
pub enum Authority {
    /// The launcher has all of them itself.
    Launcher,
    /// The file's capabilities, as far as the policy allows.
    Policy(Box<Policy>),
}

/// The policy, as far as it concerns the asker.
pub struct Policy {
    asker: Asker,
    first_unprivileged_port: u32,
    /// Or why nothing is granted.
    rules: Result<Vec<Rule>, String>,
}

/// The process that asks is this one, before it drops anything.
struct Asker {
    uid: Uid,
    groups: Vec<Gid>,
}

/// One line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    pub who: Who,
    pub transport: Transport,
    pub ports: Vec<RangeInclusive<u16>>,
}

/// A name, or a number where nobody has that name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Who {
    User(String),
    Group(String),
}

impl Authority {
    /// Whose rights this process was executed with. It reads no environment.
    ///
    /// # Errors
    /// A setuid or setgid bit: there is no policy for these.
    pub fn of_this_process() -> Result<Authority, String> {
        if getuid() != geteuid() || getgid() != getegid() {
            return Err(
                "this program does not run with a setuid or setgid bit: remove it with chmod u-s,g-s"
                    .into(),
            );
        }
        if !were_raised_by_exec() {
            return Ok(Authority::Launcher);
        }
        let mut groups = getgroups()
            .map_err(|errno| format!("cannot read the supplementary groups: {}", errno.desc()))?;
        groups.push(getgid());
        let asker = Asker {
            uid: getuid(),
            groups,
        };
        Ok(Authority::Policy(Box::new(Policy {
            asker,
            first_unprivileged_port: first_unprivileged_port()?,
            rules: read().and_then(|text| parse(&text)),
        })))
    }

    /// Whether this port is bound with more than the launcher's own rights, or with all that these are.
    pub fn is_needed_for(&self, port: u16) -> bool {
        match self {
            Authority::Launcher => true,
            Authority::Policy(policy) => policy.is_low(port),
        }
    }

    /// The reason against this port, if there is one.
    pub fn objection(&self, transport: Transport, port: u16) -> Option<String> {
        match self {
            Authority::Launcher => None,
            Authority::Policy(policy) => policy.objection(transport, port),
        }
    }
}

impl Policy {
    /// Port 0 is one that the kernel chooses: never a low one.
    fn is_low(&self, port: u16) -> bool {
        port != 0 && u32::from(port) < self.first_unprivileged_port
    }

    fn objection(&self, transport: Transport, port: u16) -> Option<String> {
        if !self.is_low(port) {
            return None;
        }
        let rules = match &self.rules {
            Ok(rules) => rules,
            Err(cause) => return Some(cause.clone()),
        };
        let allowed = rules
            .iter()
            .any(|rule| rule.is_about(transport, port) && self.asker.is(&rule.who));
        (!allowed).then(|| {
            let transport = match transport {
                Transport::Tcp => "tcp",
                Transport::Udp => "udp",
            };
            format!(
                "{FILE} does not allow {transport} port {port} to uid {} or its groups",
                self.asker.uid
            )
        })
    }
}

impl Rule {
    fn is_about(&self, transport: Transport, port: u16) -> bool {
        self.transport == transport && self.ports.iter().any(|range| range.contains(&port))
    }
}

impl Asker {
    /// A name that nobody has is nobody's.
    fn is(&self, who: &Who) -> bool {
        match who {
            Who::User(name) => match User::from_name(name) {
                Ok(Some(user)) => user.uid == self.uid,
                Ok(None) => name.parse() == Ok(self.uid.as_raw()),
                Err(_) => false,
            },
            Who::Group(name) => match Group::from_name(name) {
                Ok(Some(group)) => self.groups.contains(&group.gid),
                Ok(None) => name
                    .parse()
                    .is_ok_and(|number| self.groups.contains(&Gid::from_raw(number))),
                Err(_) => false,
            },
        }
    }
}

fn first_unprivileged_port() -> Result<u32, String> {
    let cannot =
        |cause: &dyn std::fmt::Display| format!("cannot read {FIRST_UNPRIVILEGED_PORT}: {cause}");
    let text = std::fs::read_to_string(FIRST_UNPRIVILEGED_PORT).map_err(|error| cannot(&error))?;
    text.trim().parse().map_err(|error| cannot(&error))
}

/// The text of the policy file; the cause in words where there is none that can be trusted.
fn read() -> Result<String, String> {
    let cannot = |cause: &dyn std::fmt::Display| format!("{FILE} grants nothing: {cause}");
    let directory = open_directory(Path::new(DIRECTORY), &Trust::ROOT)
        .map_err(|untrusted| cannot(&untrusted))?;
    // Whatever is there is neither followed nor waited for.
    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let file = openat(&directory, NAME, flags, Mode::empty()).map_err(|errno| match errno {
        Errno::ELOOP => cannot(&"it is a symbolic link"),
        Errno::ENOENT => cannot(&"it does not exist"),
        _ => cannot(&format_args!("it cannot be opened: {}", errno.desc())),
    })?;
    let stat = fstat(&file).map_err(|errno| cannot(&errno.desc()))?;
    if !is(&stat, SFlag::S_IFREG) {
        return Err(cannot(&"it is not a regular file"));
    }
    if let Some(objection) = Trust::ROOT.objection(&stat) {
        return Err(cannot(&format_args!("it {objection}")));
    }
    let mut text = String::new();
    File::from(file)
        .take(LARGEST + 1)
        .read_to_string(&mut text)
        .map_err(|error| cannot(&format_args!("it cannot be read: {error}")))?;
    if text.len() as u64 > LARGEST {
        return Err(cannot(&format_args!("it is larger than {LARGEST} bytes")));
    }
    Ok(text)
}

/// The rules in a policy file. One line that cannot be understood makes the whole file worth nothing: nobody knows what
/// it was to say.
pub fn parse(text: &str) -> Result<Vec<Rule>, String> {
    let mut rules = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let malformed = |cause: &str| format!("{FILE} grants nothing: line {number} {cause}");
        let rule = line.split('#').next().unwrap_or_default();
        let words: Vec<&str> = rule.split_ascii_whitespace().collect();
        let [who, name, transport, ports] = words[..] else {
            match words.is_empty() {
                true => continue,
                false => {
                    return Err(malformed("is not like `user NAME tcp 80,443`"));
                }
            }
        };
        let who = match who {
            "user" => Who::User(name.to_owned()),
            "group" => Who::Group(name.to_owned()),
            _ => return Err(malformed("does not begin with `user` or `group`")),
        };
        let transport = match transport {
            "tcp" => Transport::Tcp,
            "udp" => Transport::Udp,
            _ => return Err(malformed("has neither `tcp` nor `udp` after the name")),
        };
        let ports = ports
            .split(',')
            .map(range)
            .collect::<Option<_>>()
            .ok_or_else(|| malformed("has a list of ports that is not like `53,8000-8010`"))?;
        rules.push(Rule {
            who,
            transport,
            ports,
        });
    }
    Ok(rules)
}

fn range(text: &str) -> Option<RangeInclusive<u16>> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let range = port(first)?..=port(last)?;
    (!range.is_empty()).then_some(range)
}

/// 1 to 65535, in digits only.
fn port(text: &str) -> Option<u16> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|port| digits && *port != 0)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;

    fn policy(text: &str) -> Policy {
        Policy {
            asker: Asker {
                uid: Uid::from_raw(4242),
                groups: vec![Gid::from_raw(4343), Gid::from_raw(4444)],
            },
            first_unprivileged_port: 1024,
            rules: parse(text),
        }
    }

    #[track_caller]
    fn assert_allows(text: &str, transport: Transport, port: u16) {
        assert_eq!(policy(text).objection(transport, port), None, "{text}");
    }

    #[track_caller]
    fn assert_refuses(text: &str, transport: Transport, port: u16) {
        let objection = policy(text).objection(transport, port);
        assert!(
            objection.is_some_and(|it| it.contains("does not allow")),
            "{text}"
        );
    }

    #[test]
    fn a_line_allows_its_ports_to_its_user_or_group() {
        let text =
            "# web\n\n  user 4242 tcp 80,443 # both\nuser 1 tcp 81\ngroup 4444\tudp 53,100-102\n";
        for port in [80, 443] {
            assert_allows(text, Transport::Tcp, port);
            assert_refuses(text, Transport::Udp, port);
        }
        for port in [53, 100, 101, 102] {
            assert_allows(text, Transport::Udp, port);
            assert_refuses(text, Transport::Tcp, port);
        }
        for port in [1, 79, 81, 99, 103, 1023] {
            assert_refuses(text, Transport::Tcp, port);
            assert_refuses(text, Transport::Udp, port);
        }
    }

    #[test]
    fn a_user_is_no_group_and_an_unknown_name_is_nobody() {
        for text in [
            "user 4343 tcp 80",
            "group 4242 tcp 80",
            "user nobody-has-this-name tcp 80",
            "group nobody-has-this-name tcp 80",
            "user root tcp 80",
            "group root tcp 80",
            "",
        ] {
            assert_refuses(text, Transport::Tcp, 80);
        }
    }

    #[test]
    fn ports_that_anybody_may_bind_need_no_line() {
        for text in ["", "malformed"] {
            for port in [0, 1024, 65535] {
                assert_eq!(policy(text).objection(Transport::Tcp, port), None);
            }
        }
    }

    #[test]
    fn a_file_with_a_line_that_cannot_be_understood_grants_nothing_and_names_the_line() {
        for line in [
            "user 4242 tcp",
            "user 4242 tcp 80 443",
            "user 4242 sctp 80",
            "User 4242 tcp 80",
            "anybody 4242 tcp 80",
            "user 4242 tcp 0",
            "user 4242 tcp 65536",
            "user 4242 tcp +80",
            "user 4242 tcp 80,",
            "user 4242 tcp ,80",
            "user 4242 tcp 80-",
            "user 4242 tcp -80",
            "user 4242 tcp 90-80",
            "user 4242 tcp 80-90-100",
            "user 4242 tcp http",
            "\u{0}",
            "user 4242 tcp 80\u{a0}",
        ] {
            let text = format!("user 4242 tcp 80\n{line}\nuser 4242 tcp 80\n");
            let objection = policy(&text).objection(Transport::Tcp, 80).unwrap();
            assert!(
                objection.starts_with(&format!("{FILE} grants nothing: line 2 ")),
                "{line:?}: {objection}"
            );
        }
    }
}
