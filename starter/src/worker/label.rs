//! What a generation is called: what `--label` or `--label-file` says, or else which program it was started from.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use time::OffsetDateTime;

use super::pin::Pin;
use crate::words::failure;
use crate::words::text::{escape, quoted};

/// How long a label is at most, in bytes, with everything in it escaped.
const LONGEST: usize = 200;

/// Where the label of each generation comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Label {
    /// `--label`: always the same.
    Text(OsString),
    /// `--label-file`: the first line, read anew for each generation.
    File(PathBuf),
}

/// The label of a generation that is started from this, as a short line that is safe to show. A label that cannot be read
/// says so: it is no reason not to start.
/// Without a program there is none: that start fails, and says why.
pub fn of_generation(label: Option<&Label>, pin: &Pin) -> Option<String> {
    match label {
        Some(Label::Text(text)) => Some(bounded(text.as_bytes())),
        Some(Label::File(path)) => Some(match first_line(path) {
            Ok(line) => bounded(&line),
            Err(error) => {
                let (path, cause) = (quoted(path), failure::cause(&error));
                bounded(format!("cannot read --label-file={path}: {cause}").as_bytes())
            }
        }),
        None => of_program(pin),
    }
}

/// `/srv/app/5/server of 2026-11-22 18:43:06 UTC, in /srv/app/5`
fn of_program(pin: &Pin) -> Option<String> {
    let (path, modified) = pin.program_and_time()?;
    let mut label = path.into_os_string();
    if let Ok(at) = OffsetDateTime::from_unix_timestamp(modified) {
        label.push(format!(
            " of {:04}-{:02}-{:02} {:02}:{:02}:{:02} UTC",
            at.year(),
            u8::from(at.month()),
            at.day(),
            at.hour(),
            at.minute(),
            at.second()
        ));
    }
    if let Some(directory) = pin.directory_path() {
        label.push(", in ");
        label.push(directory);
    }
    Some(bounded(label.as_bytes()))
}

/// Without waiting for anybody: it may turn out to be a FIFO.
fn first_line(path: &Path) -> io::Result<Vec<u8>> {
    let flags = OFlag::O_NONBLOCK | OFlag::O_CLOEXEC | OFlag::O_NOCTTY;
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(flags.bits())
        .open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    let mut text = Vec::new();
    file.take(LONGEST as u64 + 1).read_to_end(&mut text)?;
    let line = text.split(|byte| *byte == b'\n').next();
    Ok(line.unwrap_or_default().to_vec())
}

fn bounded(text: &[u8]) -> String {
    let mut label = String::new();
    let (is_whole, _) = escape(text.trim_ascii(), LONGEST, &mut label);
    if !is_whole {
        label.push_str("[...]");
    }
    label
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;
    use std::ffi::OsStr;
    use std::fs;

    use super::super::pin::Wanted;

    fn nothing() -> Pin {
        Pin::without_files(Vec::new())
    }

    #[test]
    fn a_text_is_one_short_line_that_drives_no_terminal() {
        let label =
            |text: &str| of_generation(Some(&Label::Text(text.into())), &nothing()).unwrap();
        assert_eq!(label(" release 42\n"), "release 42");
        assert_eq!(label("a\n\x1b[2J"), r"a\x0A\x1B[2J");
        let long = label(&"x".repeat(5000));
        assert_eq!(long, format!("{}[...]", "x".repeat(LONGEST)));
        assert!(label(&"\x1b".repeat(5000)).len() <= LONGEST + 5);
    }

    #[test]
    fn of_a_file_the_first_line_counts_as_it_is_now() {
        let path = std::env::temp_dir().join(format!("label-{}", std::process::id()));
        let label = || of_generation(Some(&Label::File(path.clone())), &nothing()).unwrap();
        for (text, expected) in [("v1\nmore\n", "v1"), ("v2", "v2"), ("", "")] {
            fs::write(&path, text).unwrap();
            assert_eq!(label(), expected);
        }
        fs::remove_file(&path).unwrap();
        let shown = path.to_string_lossy();
        let missing = format!("cannot read --label-file={shown}: No such file or directory");
        assert_eq!(label(), missing);
        let directory = Label::File("/".into());
        let expected = "cannot read --label-file=/: it is not a regular file";
        assert_eq!(
            of_generation(Some(&directory), &nothing()).as_deref(),
            Some(expected)
        );
    }

    #[test]
    fn without_a_label_it_is_the_program_with_its_time_and_the_directory() {
        let wanted = |directory| Wanted {
            program: OsStr::new("sh"),
            directory,
            path: OsStr::new("/bin"),
            highest: 10,
        };
        let real = fs::canonicalize("/bin/sh").unwrap();
        let alone = of_generation(None, &Pin::new(&wanted(None), Vec::new())).unwrap();
        assert!(
            alone.starts_with(&format!("{} of ", real.display())),
            "{alone}"
        );
        assert!(alone.ends_with(" UTC"), "{alone}");
        let there = of_generation(
            None,
            &Pin::new(&wanted(Some(Path::new("/usr/.."))), Vec::new()),
        );
        assert_eq!(there.unwrap(), format!("{alone}, in /"));
        assert_eq!(of_generation(None, &nothing()), None);
    }
}
