//! Encoding and decoding of messages; the only file that knows bincode.
//!
//! A datagram is one version byte and one value. Anything else is refused: another version, a length over the limit, bytes
//! left over.

use bincode::config::{Configuration, Limit, LittleEndian, Varint};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Both programs are installed together; this catches an upgrade that replaced only one of them.
const VERSION: u8 = 6;

/// The largest datagram, in bytes.
pub const LARGEST: usize = 64 * 1024;

// Without a limit one claimed length makes the decoder allocate that much memory, and a failed allocation aborts.
const CONFIGURATION: Configuration<LittleEndian, Varint, Limit<LARGEST>> =
    bincode::config::standard().with_limit::<LARGEST>();

/// The datagram for `message`; an error if it is larger than [`LARGEST`], because encoding ignores the limit.
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, String> {
    let mut datagram = vec![VERSION];
    bincode::serde::encode_into_std_write(message, &mut datagram, CONFIGURATION)
        .map_err(|error| format!("cannot encode a message: {error}"))?;
    if datagram.len() > LARGEST {
        return Err(format!(
            "a message of {} bytes is over the limit of {LARGEST}",
            datagram.len()
        ));
    }
    Ok(datagram)
}

/// The message in `datagram`, which must contain nothing else.
pub fn decode<T: DeserializeOwned>(datagram: &[u8]) -> Result<T, String> {
    match datagram {
        [] => Err("an empty message".into()),
        _ if datagram.len() > LARGEST => Err(format!(
            "a message of {} bytes is over the limit of {LARGEST}",
            datagram.len()
        )),
        [VERSION, value @ ..] => {
            let (message, used) = bincode::serde::decode_from_slice(value, CONFIGURATION)
                .map_err(|error| format!("not a message: {error}"))?;
            match value.len() - used {
                0 => Ok(message),
                left => Err(format!("a message with {left} bytes left over")),
            }
        }
        [version, ..] => Err(format!(
            "a message of version {version}, not {VERSION}: start_server and start_server-binder differ"
        )),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use std::ffi::OsString;
    use std::os::unix::ffi::OsStringExt;

    use super::*;
    use crate::message::{
        Address, Allow, Ask, BadPolicy, Escape, Grant, Identity, LineFault, Refusal, Reply,
        Request, SocketFile, Transport,
    };
    use crate::trusted_path::{Distrust, Untrusted};

    fn requests() -> Vec<Request> {
        let identity = Identity {
            uid: 33,
            gid: 33,
            groups: vec![33, 4242],
        };
        let path = SocketFile {
            path: OsString::from_vec(b"/run/app\xff.sock".into()),
            mode: 0o660,
            uid: None,
            gid: Some(33),
        };
        let port = Grant::Port {
            transport: Transport::Udp,
            port: 65535,
            ip: Some("fe80::1".parse().unwrap()),
            freebind: true,
            lanes: 2,
        };
        let address = Address {
            ip: "fe80::1".parse().unwrap(),
            port: 53,
            scope: 7,
        };
        vec![
            Request::Allow(Allow {
                identity: None,
                grants: vec![],
                escapes: vec![],
                more: false,
            }),
            Request::Allow(Allow {
                identity: Some(identity),
                grants: vec![port, Grant::Path(path)],
                escapes: vec![Escape::Fork],
                more: true,
            }),
            Request::Bind(vec![]),
            Request::Bind(vec![
                Ask::Port { grant: 0, address },
                Ask::Path { grant: u32::MAX },
            ]),
            Request::TryEscape(Escape::SignalParent),
        ]
    }

    #[test]
    fn what_was_encoded_decodes_to_itself() {
        for request in requests() {
            assert_eq!(
                decode::<Request>(&encode(&request).unwrap()).unwrap(),
                request
            );
        }
        for reply in [
            Reply::Bound {
                replaced: vec![1, 2],
            },
            Reply::Refused {
                ask: 3,
                refusal: Refusal::Errno(98),
            },
            Reply::Refused {
                ask: 0,
                refusal: Refusal::BadPolicy(BadPolicy::Line {
                    number: 7,
                    fault: LineFault::Ports,
                }),
            },
            Reply::Refused {
                ask: 0,
                refusal: Refusal::Untrusted(Untrusted {
                    at: OsString::from_vec(b"/\xff".into()),
                    why: Distrust::OwnedByUser,
                }),
            },
            Reply::EscapeTried { errno: Some(1) },
        ] {
            assert_eq!(decode::<Reply>(&encode(&reply).unwrap()).unwrap(), reply);
        }
    }

    #[test]
    fn a_truncated_message_is_refused_at_every_length() {
        for request in requests() {
            let datagram = encode(&request).unwrap();
            for length in 0..datagram.len() {
                assert!(
                    decode::<Request>(&datagram[..length]).is_err(),
                    "{request:?} cut to {length}"
                );
            }
        }
    }

    #[test]
    fn trailing_bytes_are_refused() {
        for request in requests() {
            let mut datagram = encode(&request).unwrap();
            datagram.push(0);
            let error = decode::<Request>(&datagram).unwrap_err().to_string();
            assert_eq!(error, "a message with 1 bytes left over");
        }
    }

    #[test]
    fn another_version_is_refused() {
        let mut datagram = encode(&requests()[0]).unwrap();
        datagram[0] = VERSION + 1;
        assert_eq!(
            decode::<Request>(&datagram).unwrap_err().to_string(),
            format!(
                "a message of version {}, not {VERSION}: start_server and start_server-binder differ",
                VERSION + 1
            )
        );
    }

    #[test]
    fn an_unknown_variant_is_refused() {
        assert!(decode::<Request>(&[VERSION, 3]).is_err());
        assert!(decode::<Request>(&[VERSION, 250]).is_err());
    }

    #[test]
    fn a_huge_claimed_length_is_refused_without_its_memory() {
        // Variant Bind, then a length of 2^63 as a varint of eight bytes.
        let datagram = [VERSION, 1, 253, 0, 0, 0, 0, 0, 0, 0, 0x80];
        assert!(decode::<Request>(&datagram).is_err());
    }

    #[test]
    fn an_oversized_message_is_refused_by_both_sides() {
        let grant = Grant::Port {
            transport: Transport::Tcp,
            port: 1,
            ip: None,
            freebind: false,
            lanes: 1,
        };
        let request = Request::Allow(Allow {
            identity: None,
            grants: vec![grant; LARGEST],
            escapes: vec![],
            more: false,
        });
        assert!(encode(&request).is_err());
        let mut datagram = vec![0; LARGEST + 1];
        datagram[0] = VERSION;
        assert!(
            decode::<Request>(&datagram)
                .unwrap_err()
                .to_string()
                .contains("over the limit")
        );
    }
}
