//! What a worker says over its notification socket (sd_notify(3)).

use std::time::Duration;

use crate::words::text::shortened;

/// The largest datagram that is read, in bytes: as in systemd, the size of an atomic write to a pipe (PIPE_BUF).
pub const LARGEST: usize = 4096;

/// The assignments of one datagram that mean something here. Others, such as `MAINPID=` and `WATCHDOG=1`, are ignored, as
/// the protocol requires.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is an assignment")]
pub struct Message {
    /// `READY=1`
    pub is_ready: bool,
    /// `STOPPING=1`
    pub is_stopping: bool,
    /// `STATUS=`, made safe to show.
    pub status: Option<String>,
    /// `EXTEND_TIMEOUT_USEC=`, counted from now.
    pub extension: Option<Duration>,
    /// `FDSTORE=1`
    pub stores: bool,
    /// `FDSTOREREMOVE=1`
    pub removes: bool,
    /// `FDNAME=`
    pub descriptor_name: Option<Vec<u8>>,
    /// `FDPOLL=0`
    pub is_unpolled: bool,
    /// `BARRIER=1`
    pub is_barrier: bool,
}

/// Each line is an assignment. If a name is repeated, the last one counts.
pub fn parse(datagram: &[u8]) -> Message {
    let mut message = Message::default();
    for line in datagram.split(|byte| *byte == b'\n') {
        let mut halves = line.splitn(2, |byte| *byte == b'=');
        let (name, Some(value)) = (halves.next().unwrap_or_default(), halves.next()) else {
            continue;
        };
        match name {
            b"READY" => message.is_ready = value == b"1",
            b"STOPPING" => message.is_stopping = value == b"1",
            b"STATUS" => message.status = Some(shown(value)),
            b"EXTEND_TIMEOUT_USEC" => message.extension = microseconds(value),
            b"FDSTORE" => message.stores = value == b"1",
            b"FDSTOREREMOVE" => message.removes = value == b"1",
            b"FDNAME" => message.descriptor_name = Some(value.to_owned()),
            b"FDPOLL" => message.is_unpolled = value == b"0",
            b"BARRIER" => message.is_barrier = value == b"1",
            _ => {}
        }
    }
    message
}

fn shown(value: &[u8]) -> String {
    use std::os::unix::ffi::OsStrExt;
    shortened(std::ffi::OsStr::from_bytes(value))
}

fn microseconds(value: &[u8]) -> Option<Duration> {
    let text = std::str::from_utf8(value).ok()?;
    text.parse().ok().map(Duration::from_micros)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn assignments_are_found_in_any_order_and_unknown_ones_are_ignored() {
        let message = parse(b"MAINPID=7\nSTATUS=warming up\nREADY=1\nX_OURS=READY=1");
        assert!(message.is_ready && !message.is_stopping);
        assert_eq!(message.status.as_deref(), Some("warming up"));
        assert_eq!(message.extension, None);
        assert!(parse(b"STOPPING=1").is_stopping);
        let extended = parse(b"EXTEND_TIMEOUT_USEC=2500000\n");
        assert_eq!(extended.extension, Some(Duration::from_millis(2500)));
    }

    #[test]
    fn descriptors_are_to_be_kept_or_removed_by_their_name() {
        let message = parse(b"FDSTORE=1\nFDNAME=tickets=1\nFDPOLL=0");
        assert!(message.stores && !message.removes && message.is_unpolled);
        assert_eq!(message.descriptor_name.as_deref(), Some(&b"tickets=1"[..]));
        let message = parse(b"FDSTOREREMOVE=1\nFDNAME=\xff\nBARRIER=1");
        assert!(message.removes && !message.stores && !message.is_unpolled && message.is_barrier);
        assert_eq!(message.descriptor_name.as_deref(), Some(&b"\xff"[..]));
    }

    #[test]
    fn what_only_looks_like_an_assignment_means_nothing() {
        for datagram in [
            &b""[..],
            b"\n\n\n",
            b"READY",
            b"READY=",
            b"READY=0",
            b"READY=11",
            b" READY=1",
            b"ready=1",
            b"=1",
            b"STOPPING=yes",
            b"EXTEND_TIMEOUT_USEC=-1",
            b"EXTEND_TIMEOUT_USEC=99999999999999999999999",
            b"\xff\xfe=\xff\nRELOADING=1\nBARRIER=yes\nFDSTORE=2\nFDPOLL=1\nFDSTOREREMOVE=0",
        ] {
            assert_eq!(parse(datagram), Message::default(), "{datagram:?}");
        }
        // The last one counts.
        assert!(!parse(b"READY=1\nREADY=0").is_ready);
    }

    #[test]
    fn a_status_is_one_short_line_that_drives_no_terminal() {
        let mut datagram = b"STATUS=\x1b[2J".to_vec();
        datagram.extend(b"x".repeat(LARGEST));
        let status = parse(&datagram).status.unwrap_or_default();
        assert!(status.starts_with(r"\x1B[2Jxxx"), "{status}");
        assert!(status.len() < LARGEST + 16, "{}", status.len());
        assert!(parse(b"STATUS=\xff").status.as_deref() == Some(r"\xFF"));
    }
}
