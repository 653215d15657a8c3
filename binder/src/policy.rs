//! Who may have which low port, if this program has more privileges than its launcher: its file carries capabilities.
//!
//! Then the launcher is an untrusted ordinary user. What it may request is in a file that only root can write, and it is
//! identified by its real uid and groups alone.

use std::fs::File;
use std::io::Read;
use std::ops::RangeInclusive;
use std::path::Path;

use common::message::{BadPolicy, LARGEST_POLICY, LineFault, POLICY_FILE, Refusal, Transport};
use common::privileges::were_raised_by_exec;
use common::stat::has_type;
use common::trusted_path::{Trust, open_directory};
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{Mode, SFlag, fstat};
use nix::unistd::{Gid, Group, Uid, User, getegid, geteuid, getgid, getgroups, getuid};

/// The first port that anybody may bind (ip(7)).
const FIRST_UNPRIVILEGED_PORT: &str = "/proc/sys/net/ipv4/ip_unprivileged_port_start";

/// Whose privileges the requests are answered with.
pub enum Authority {
    /// The launcher has all of them itself.
    Launcher,
    /// The file's capabilities, as far as the policy allows.
    Policy(Box<Policy>),
}

/// The policy, as far as it concerns the launcher.
pub struct Policy {
    asker: Asker,
    first_unprivileged_port: u32,
    /// Or why nothing is granted.
    rules: Result<Vec<Rule>, BadPolicy>,
}

/// The launcher's ids are those of this process, before it drops anything.
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

/// A name, or a number if nobody has that name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Who {
    User(String),
    Group(String),
}

impl Authority {
    /// Whose privileges this process was executed with. It reads no environment.
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

    /// Whether binding this port takes more than the launcher's own privileges, or those already include everything.
    pub fn is_needed_for(&self, port: u16) -> bool {
        match self {
            Authority::Launcher => true,
            Authority::Policy(policy) => policy.is_low(port),
        }
    }

    /// Whether this port may be asked for.
    pub fn check(&self, transport: Transport, port: u16) -> Result<(), Refusal> {
        match self {
            Authority::Launcher => Ok(()),
            Authority::Policy(policy) => policy.check(transport, port),
        }
    }
}

impl Policy {
    /// Port 0 lets the kernel choose: never a low port.
    fn is_low(&self, port: u16) -> bool {
        port != 0 && u32::from(port) < self.first_unprivileged_port
    }

    fn check(&self, transport: Transport, port: u16) -> Result<(), Refusal> {
        if !self.is_low(port) {
            return Ok(());
        }
        let rules = self.rules.as_ref();
        let rules = rules.map_err(|bad| Refusal::BadPolicy(bad.clone()))?;
        let mut rules = rules.iter().filter(|rule| rule.covers(transport, port));
        match rules.any(|rule| self.asker.is_meant_by(&rule.who)) {
            true => Ok(()),
            false => Err(Refusal::NotAllowed),
        }
    }
}

impl Rule {
    fn covers(&self, transport: Transport, port: u16) -> bool {
        self.transport == transport && self.ports.iter().any(|range| range.contains(&port))
    }
}

impl Asker {
    /// An unknown name matches nobody.
    fn is_meant_by(&self, who: &Who) -> bool {
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

/// The text of the policy file, if there is one that can be trusted.
fn read() -> Result<String, BadPolicy> {
    let path = Path::new(POLICY_FILE);
    let directory = open_directory(path.parent().unwrap_or(path), &Trust::ROOT)
        .map_err(BadPolicy::Untrusted)?;
    // Whatever is there is neither followed nor waited for.
    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let name = path.file_name().unwrap_or_default();
    let file = openat(&directory, name, flags, Mode::empty())
        .map_err(|errno| BadPolicy::Unopened(errno as i32))?;
    let stat = fstat(&file).map_err(|errno| BadPolicy::Unread(errno as i32))?;
    if !has_type(&stat, SFlag::S_IFREG) {
        return Err(BadPolicy::NotARegularFile);
    }
    if let Some(objection) = Trust::ROOT.objection(&stat) {
        return Err(BadPolicy::Distrusted(objection));
    }
    let mut bytes = Vec::new();
    File::from(file)
        .take(LARGEST_POLICY as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| BadPolicy::Unread(error.raw_os_error().unwrap_or(0)))?;
    match bytes.len() > LARGEST_POLICY {
        true => Err(BadPolicy::TooLarge),
        false => String::from_utf8(bytes).map_err(|_| BadPolicy::NotUtf8),
    }
}

/// The rules in a policy file. One invalid line invalidates the whole file: nobody knows what it was meant to say.
pub fn parse(text: &str) -> Result<Vec<Rule>, BadPolicy> {
    let mut rules = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.split('#').next().unwrap_or_default();
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        if !words.is_empty() {
            rules.push(rule(&words).map_err(|fault| BadPolicy::Line { number, fault })?);
        }
    }
    Ok(rules)
}

fn rule(words: &[&str]) -> Result<Rule, LineFault> {
    let [kind, name, transport, ports] = *words else {
        return Err(LineFault::Words);
    };
    let who = match kind {
        "user" => Who::User(name.to_owned()),
        "group" => Who::Group(name.to_owned()),
        _ => return Err(LineFault::Kind),
    };
    let transport = match transport {
        "tcp" => Transport::Tcp,
        "udp" => Transport::Udp,
        _ => return Err(LineFault::Transport),
    };
    let ports = ports.split(',').map(range).collect::<Option<_>>();
    Ok(Rule {
        who,
        transport,
        ports: ports.ok_or(LineFault::Ports)?,
    })
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
        assert_eq!(policy(text).check(transport, port), Ok(()), "{text}");
    }

    #[track_caller]
    fn assert_refuses(text: &str, transport: Transport, port: u16) {
        let checked = policy(text).check(transport, port);
        assert_eq!(checked, Err(Refusal::NotAllowed), "{text}");
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
                assert_eq!(policy(text).check(Transport::Tcp, port), Ok(()));
            }
        }
    }

    #[test]
    fn a_file_with_a_line_that_cannot_be_understood_grants_nothing_and_names_the_line() {
        use LineFault::{Kind, Ports, Words};
        for (line, fault) in [
            ("user 4242 tcp", Words),
            ("user 4242 tcp 80 443", Words),
            ("user 4242 sctp 80", LineFault::Transport),
            ("User 4242 tcp 80", Kind),
            ("anybody 4242 tcp 80", Kind),
            ("user 4242 tcp 0", Ports),
            ("user 4242 tcp 65536", Ports),
            ("user 4242 tcp +80", Ports),
            ("user 4242 tcp 80,", Ports),
            ("user 4242 tcp ,80", Ports),
            ("user 4242 tcp 80-", Ports),
            ("user 4242 tcp -80", Ports),
            ("user 4242 tcp 90-80", Ports),
            ("user 4242 tcp 80-90-100", Ports),
            ("user 4242 tcp http", Ports),
            ("\u{0}", Words),
            ("user 4242 tcp 80\u{a0}", Ports),
        ] {
            let text = format!("user 4242 tcp 80\n{line}\nuser 4242 tcp 80\n");
            let bad = BadPolicy::Line { number: 2, fault };
            let checked = policy(&text).check(Transport::Tcp, 80);
            assert_eq!(checked, Err(Refusal::BadPolicy(bad)), "{line:?}");
        }
    }
}
