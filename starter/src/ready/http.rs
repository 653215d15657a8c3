//! A request that asks a new generation whether it serves, and the head of its answer (RFC 9112).

use httparse::{EMPTY_HEADER, Error, Response, Status};

use crate::words::text::shortened;

/// How long the head of an answer may be, in bytes. What follows it is not read.
pub const LONGEST_HEAD: usize = 64 * 1024;

/// How many header fields an answer may have.
const MOST_FIELDS: usize = 256;

/// What has arrived so far.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// The head is not complete yet.
    Partial,
    /// The final status, and how it is shown, with its reason: `503 Service Unavailable`.
    Final { status: u16, shown: String },
    /// It cannot be used as an answer, for this reason.
    Broken(String),
}

/// The request. Its `Host` is the address of the probe listener, or `localhost` for a unix socket.
pub fn request(path: &str, host: &str) -> Vec<u8> {
    let text = format!(
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: start_server\r\nAccept: */*\r\nConnection: close\r\n\r\n"
    );
    text.into_bytes()
}

/// Reads the head of the final answer; interim ones (1xx) are skipped.
pub fn read_answer(mut received: &[u8]) -> Answer {
    loop {
        let mut fields = [EMPTY_HEADER; MOST_FIELDS];
        let mut response = Response::new(&mut fields);
        match response.parse(received) {
            Ok(Status::Complete(length)) => {
                let (Some(status), reason) = (response.code, response.reason) else {
                    return Answer::Broken("it has no status".to_owned());
                };
                if !(100..200).contains(&status) {
                    let shown = format!("{status} {}", shortened(reason.unwrap_or_default()));
                    let shown = shown.trim_end().to_owned();
                    return Answer::Final { status, shown };
                }
                received = received.get(length..).unwrap_or_default();
            }
            Ok(Status::Partial) if received.len() > LONGEST_HEAD => {
                return Answer::Broken(format!("its head is longer than {LONGEST_HEAD} bytes"));
            }
            Ok(Status::Partial) => return Answer::Partial,
            Err(Error::TooManyHeaders) => {
                return Answer::Broken(format!("it has more than {MOST_FIELDS} header fields"));
            }
            Err(_) => return Answer::Broken("it is not HTTP".to_owned()),
        }
    }
}

/// Whether a path can be requested: it begins with a slash and contains nothing that would break the request line.
pub fn is_path(path: &str) -> bool {
    path.starts_with('/') && path.bytes().all(|byte| byte.is_ascii_graphic())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn final_answer(status: u16, shown: &str) -> Answer {
        Answer::Final {
            status,
            shown: shown.to_owned(),
        }
    }

    #[test]
    fn the_final_status_counts_once_the_head_is_whole() {
        let whole = "HTTP/1.1 503 Service Unavailable\r\nServer: x\r\n\r\nbusy";
        assert_eq!(
            read_answer(whole.as_bytes()),
            final_answer(503, "503 Service Unavailable")
        );
        for length in 0..whole.len() - "busy".len() {
            assert_eq!(read_answer(&whole.as_bytes()[..length]), Answer::Partial);
        }
        for (text, status, shown) in [
            ("HTTP/1.0 200 OK\r\n\r\n", 200, "200 OK"),
            ("HTTP/1.1 204\r\n\r\n", 204, "204"),
            ("HTTP/1.1 200 \r\n\r\n", 200, "200"),
            (
                "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 301 Moved\r\n\r\n",
                301,
                "301 Moved",
            ),
        ] {
            assert_eq!(read_answer(text.as_bytes()), final_answer(status, shown));
        }
    }

    #[test]
    fn what_is_no_answer_is_said_in_words() {
        let broken = |why: &str| Answer::Broken(why.to_owned());
        for text in [
            "SSH-2.0-OpenSSH\r\n",
            "hello\n",
            "\x15\x03\x01\0\x02\x02\x46",
            "HTTP/2 200\r\n\r\n",
        ] {
            assert_eq!(
                read_answer(text.as_bytes()),
                broken("it is not HTTP"),
                "{text:?}"
            );
        }
        let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "A: b\r\n".repeat(300));
        assert_eq!(
            read_answer(many.as_bytes()),
            broken("it has more than 256 header fields")
        );
        let endless = format!("HTTP/1.1 200 OK\r\nA: {}", "b".repeat(LONGEST_HEAD));
        assert_eq!(
            read_answer(endless.as_bytes()),
            broken("its head is longer than 65536 bytes")
        );
        let interim = "HTTP/1.1 100 Continue\r\n\r\n".repeat(10_000);
        assert_eq!(read_answer(interim.as_bytes()), Answer::Partial);
    }

    #[test]
    fn a_request_is_one_request_whatever_the_path() {
        let text = String::from_utf8(request("/healthz?a=b", "127.0.0.1:80")).unwrap_or_default();
        assert!(text.starts_with(
            "GET /healthz?a=b HTTP/1.1\r\nHost: 127.0.0.1:80\r\nUser-Agent: start_server\r\n"
        ));
        assert!(text.ends_with("\r\n\r\n"));
        for path in ["", "healthz", "/a b", "/a\r\nX: y", "/\u{e4}", "/\x7f"] {
            assert!(!is_path(path), "{path:?}");
        }
        assert!(is_path("/") && is_path("/healthz?full=1&x=%20"));
    }
}
