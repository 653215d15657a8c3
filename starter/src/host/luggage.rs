//! Descriptors on their way through execve(2): from this program to the one that takes its place in this process.
//!
//! An exec keeps the number of a descriptor and loses its owner. So one program writes the number down, and the next one
//! reads it, finds it open and owns it from then on.

use std::os::fd::{AsFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::pipe2;
use serde::{Deserialize, Serialize, Serializer};

use crate::host::open_files::{borrowed, owned};

/// The numbers of all descriptors that the next program is to find open.
#[derive(Debug, Default)]
pub struct Luggage(Vec<RawFd>);

/// The number of a descriptor that is open and that nobody owns yet: reading one that is not open fails.
#[derive(Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "RawFd")]
pub struct Carried(RawFd);

impl Luggage {
    /// Puts a descriptor in, only once: whoever takes it out is its one owner. It must stay open until the exec.
    pub fn put(&mut self, descriptor: impl AsFd) -> Carried {
        let number = for_the_next(descriptor);
        self.0.push(number);
        Carried(number)
    }

    /// Everything that was put in.
    pub fn numbers(&self) -> &[RawFd] {
        &self.0
    }
}

#[cfg(not(test))]
fn for_the_next(descriptor: impl AsFd) -> RawFd {
    std::os::fd::AsRawFd::as_raw_fd(&descriptor.as_fd())
}

/// In a test, which packs and unpacks in one program, it is a copy: the original has its owner.
#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
fn for_the_next(descriptor: impl AsFd) -> RawFd {
    use std::os::fd::IntoRawFd;
    let copy: OwnedFd = descriptor.as_fd().try_clone_to_owned().unwrap();
    copy.into_raw_fd()
}

impl Carried {
    /// Takes it over. It is not close-on-exec: as long as not everything is taken over, there is a way back.
    pub fn take(self) -> OwnedFd {
        owned(self.0)
    }
}

/// What stands for a descriptor that has been lost on the way: a pipe that has ended. What was a pipe or a connection is over,
/// a file cannot be written to, and no path leads anywhere from it.
///
/// # Errors
/// Of pipe2(2).
pub fn stand_in() -> nix::Result<OwnedFd> {
    pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).map(|(ended, _)| ended)
}

/// Whether this is one, or is as useless where something is to be written.
pub fn is_for_reading(descriptor: impl AsFd) -> bool {
    let flags = fcntl(descriptor, FcntlArg::F_GETFL).map(OFlag::from_bits_retain);
    flags.is_ok_and(|flags| flags & OFlag::O_ACCMODE == OFlag::O_RDONLY)
}

impl TryFrom<RawFd> for Carried {
    type Error = String;

    fn try_from(number: RawFd) -> Result<Carried, String> {
        // Those below belong to the streams, whoever else has a use for them.
        if number <= 2 {
            return Err(format!("descriptor {number} cannot be carried"));
        }
        match fcntl(borrowed(number), FcntlArg::F_GETFD) {
            Ok(_) => Ok(Carried(number)),
            Err(errno) => Err(format!(
                "descriptor {number} is not there: {}",
                Errno::desc(errno)
            )),
        }
    }
}

impl Serialize for Carried {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_i32(self.0)
    }
}

/// Bytes that are mostly text, as text: each byte is the character with its number. For `#[serde(with = "bytes")]`.
pub mod bytes {
    use serde::{Deserialize, Deserializer, Serializer};

    /// Writes them.
    ///
    /// # Errors
    /// Those of the format.
    pub fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        let text: String = bytes.iter().map(|byte| char::from(*byte)).collect();
        serializer.serialize_str(&text)
    }

    /// Reads them.
    ///
    /// # Errors
    /// Those of the format, and characters that stand for no byte.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(deserializer)?;
        let bytes = text.chars().map(u8::try_from);
        let bytes: Result<Vec<u8>, _> = bytes.collect();
        bytes.map_err(|_| serde::de::Error::custom("a character stands for no byte"))
    }
}

/// Paths, which serde itself takes only as text. For `#[serde(with = "path")]`.
pub mod path {
    use std::ffi::OsString;
    use std::path::{Path, PathBuf};

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    /// Writes one.
    ///
    /// # Errors
    /// Those of the format.
    pub fn serialize<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
        path.as_os_str().serialize(serializer)
    }

    /// Reads one.
    ///
    /// # Errors
    /// Those of the format.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PathBuf, D::Error> {
        OsString::deserialize(deserializer).map(PathBuf::from)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    #[test]
    fn what_was_put_in_is_taken_out_and_is_the_same_file() {
        let (mut reader, writer) = std::io::pipe().unwrap();
        let mut luggage = Luggage::default();
        let text = serde_json::to_string(&luggage.put(&writer)).unwrap();
        assert_eq!(text, luggage.numbers()[0].to_string());
        drop(writer);
        let carried: Carried = serde_json::from_str(&text).unwrap();
        let taken = carried.take();
        std::fs::File::from(taken).write_all(b"same").unwrap();
        let mut read = String::new();
        reader.read_to_string(&mut read).unwrap();
        assert_eq!(read, "same");
    }

    #[test]
    fn what_is_not_open_cannot_be_taken() {
        for number in ["-1", "0", "2", "2147483647", "99999999999"] {
            assert!(serde_json::from_str::<Carried>(number).is_err(), "{number}");
        }
    }

    #[test]
    fn bytes_are_text_and_back() {
        #[derive(Serialize, Deserialize)]
        struct All(#[serde(with = "bytes")] Vec<u8>);
        let all: Vec<u8> = (0..=255).collect();
        let text = serde_json::to_string(&All(all.clone())).unwrap();
        assert_eq!(serde_json::from_str::<All>(&text).unwrap().0, all);
        assert!(serde_json::from_str::<All>("\"\u{100}\"").is_err());
    }
}
