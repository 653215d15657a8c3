//! How other programs write a port or a path, and how it is written here: for hints only.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::words::remedy;

/// How a refused `--port` is written here, if another program would have accepted it.
pub fn of_port(given: &str) -> Option<String> {
    let (scheme, rest) = match given.split_once(':') {
        Some((scheme, rest)) if scheme.bytes().all(|byte| byte.is_ascii_alphanumeric()) => {
            (scheme.to_ascii_lowercase(), rest)
        }
        _ => (String::new(), given),
    };
    let authority = rest.strip_prefix("//").unwrap_or(rest);
    let endpoint = authority
        .split_once('/')
        .map_or(authority, |(first, _)| first);
    match &*scheme {
        "unix" if !authority.is_empty() => return Some(as_path(authority.as_ref())),
        "tcp" | "tcp4" | "tcp6" if !endpoint.is_empty() => return Some(as_port(endpoint)),
        "udp" | "udp4" | "udp6" if !endpoint.is_empty() => return Some(as_udp(endpoint)),
        "http" | "https" | "ssl" | "tls" if rest.starts_with("//") && has_port(endpoint) => {
            return Some(as_port(endpoint));
        }
        _ => {}
    }
    if let Some((endpoint, transport)) = given.rsplit_once('/') {
        match transport {
            "tcp" => return Some(as_port(endpoint)),
            "udp" => return Some(as_udp(endpoint)),
            _ => return Some(as_path(given.as_ref())),
        }
    }
    let port = given.rsplit_once(':').map_or(given, |(_, port)| port);
    let host = given.strip_suffix(port).unwrap_or_default();
    match port.split_once('-') {
        Some((first, last)) if is_number(first) && is_number(last) => {
            let [first, last] = [first, last].map(|port| format!("{host}{port}"));
            return Some(remedy::port_range(&first, &last));
        }
        _ => {}
    }
    let is_name = port.starts_with(|letter: char| letter.is_ascii_alphabetic())
        && port
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        && port.len() > 1
        && !port.strip_prefix(['u', 'U']).is_some_and(is_number);
    is_name.then(|| remedy::service_name(port))
}

/// How a `--path` whose directory does not exist is written here, if another program would have accepted it.
pub fn of_path(given: &Path) -> Option<String> {
    let path = given.as_os_str().as_bytes().strip_prefix(b"unix:")?;
    let path = path.strip_prefix(b"//").unwrap_or(path);
    (!path.is_empty()).then(|| as_path(OsStr::from_bytes(path)))
}

fn as_path(path: &OsStr) -> String {
    remedy::written_as_path(path)
}

fn as_port(endpoint: &str) -> String {
    remedy::written_as_port(endpoint)
}

/// Puts `u` between the host, if any, and the port.
fn as_udp(endpoint: &str) -> String {
    let (host, port) = match endpoint.rsplit_once(':') {
        Some((host, port)) => (format!("{host}:"), port),
        None => (String::new(), endpoint),
    };
    as_port(&format!("{host}u{port}"))
}

fn has_port(endpoint: &str) -> bool {
    endpoint
        .rsplit_once(':')
        .is_some_and(|(_, port)| is_number(port))
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_spellings_of_other_programs_are_told_in_ours() {
        for (given, expected) in [
            (
                "unix:/run/x.sock",
                "a unix socket is written as --path=/run/x.sock",
            ),
            (
                "unix:///run/x.sock",
                "a unix socket is written as --path=/run/x.sock",
            ),
            (
                "/run/x.sock",
                "a unix socket is written as --path=/run/x.sock",
            ),
            ("./x.sock", "a unix socket is written as --path=./x.sock"),
            ("tcp://127.0.0.1:80", "it is written as --port=127.0.0.1:80"),
            (
                "tcp://127.0.0.1:80/",
                "it is written as --port=127.0.0.1:80",
            ),
            ("tcp:80", "it is written as --port=80"),
            ("TCP://:80", "it is written as --port=:80"),
            (
                "http://[::1]:8080/app",
                "it is written as --port=[::1]:8080",
            ),
            ("udp://:53", "it is written as --port=:u53"),
            ("udp:53", "it is written as --port=u53"),
            ("80/tcp", "it is written as --port=80"),
            ("127.0.0.1:53/udp", "it is written as --port=127.0.0.1:u53"),
            ("80-90", "a range is written as a list: --port=80,...,90"),
            (
                "[::]:80-90",
                "a range is written as a list: --port=[::]:80,...,[::]:90",
            ),
            (
                "localhost:http",
                "names of services are not looked up: `getent services http` shows the number",
            ),
            (
                "https",
                "names of services are not looked up: `getent services https` shows the number",
            ),
        ] {
            assert_eq!(of_port(given).as_deref(), Some(expected), "{given}");
        }
    }

    #[test]
    fn what_is_wrong_in_another_way_has_no_hint_about_its_spelling() {
        for given in [
            "",
            "70000",
            "u70000",
            "host:70000",
            "[::1",
            "host:u",
            "a b:80",
            "unix:",
        ] {
            assert_eq!(of_port(given), None, "{given}");
        }
        for path in ["/run/x.sock", "missing/x.sock", "unix:"] {
            assert_eq!(of_path(Path::new(path)), None, "{path}");
        }
        let path = of_path(Path::new("unix:/run/my app"));
        let expected = "a unix socket is written as --path='/run/my app'";
        assert_eq!(path.as_deref(), Some(expected));
    }
}
