//! The memory of a process that has done most of its work, and waits from now on.

use std::fs;
use std::ops::Range;

use nix::unistd::{SysconfVar, sysconf};

/// The pages below the caller's frame that are left alone, in bytes: for the calls that it makes meanwhile.
const IN_USE: usize = 16 << 10;

/// Gives the kernel back what is not in use: free memory of the heap, the part of the stack that deeper calls have used, and
/// the code of the program and of its libraries, most of which has served its purpose. What is still needed of the code is
/// mapped again when it is executed, from the page cache.
pub fn release() {
    release_heap();
    // Without it the process is only larger.
    let maps = fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let mappings = maps.lines().filter_map(Mapping::read);
    for mapping in mappings {
        match mapping.kind {
            Kind::Code => release_pages(&mapping.addresses),
            Kind::Stack => release_stack(mapping.addresses),
            Kind::Other => {}
        }
    }
}

#[expect(unsafe_code, reason = "only the C library knows what is free")]
fn release_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it touches nothing that is in use.
    let _ = unsafe { libc::malloc_trim(0) };
}

/// It grows downwards: what is below the frames of all callers means nothing any more.
fn release_stack(addresses: Range<usize>) {
    let here = (&raw const addresses).addr();
    let Ok(Some(page)) = sysconf(SysconfVar::PAGE_SIZE) else {
        return;
    };
    let page = usize::try_from(page).unwrap_or(usize::MAX);
    let end = here.saturating_sub(IN_USE) / page * page;
    if addresses.contains(&here) && addresses.contains(&end) {
        release_pages(&(addresses.start..end));
    }
}

/// What comes back is as at first: a file's content, or zeros (madvise(2), MADV_DONTNEED).
#[expect(unsafe_code, reason = "the kernel takes addresses")]
fn release_pages(pages: &Range<usize>) {
    let start = std::ptr::with_exposed_provenance_mut(pages.start);
    // SAFETY: they are code, to which nothing has been written, or a part of the stack that is not in use.
    let _ = unsafe { libc::madvise(start, pages.len(), libc::MADV_DONTNEED) };
}

/// A line of /proc/PID/maps (proc(5)).
#[derive(Debug, PartialEq, Eq)]
struct Mapping {
    addresses: Range<usize>,
    kind: Kind,
}

#[derive(Debug, PartialEq, Eq)]
enum Kind {
    /// Of a file, and never written to.
    Code,
    /// That of the first thread, and there is no other.
    Stack,
    Other,
}

impl Mapping {
    fn read(line: &str) -> Option<Mapping> {
        let mut words = line.split_ascii_whitespace();
        let (addresses, rights) = (words.next()?, words.next()?);
        let (inode, name) = (words.nth(2)?, words.next());
        let (start, end) = addresses.split_once('-')?;
        let address = |text| usize::from_str_radix(text, 16).ok();
        Some(Mapping {
            addresses: address(start)?..address(end)?,
            kind: match (rights, inode, name) {
                ("rw-p", "0", Some("[stack]")) => Kind::Stack,
                ("r-xp", inode, Some(_)) if inode != "0" => Kind::Code,
                _ => Kind::Other,
            },
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;

    #[test]
    fn only_code_of_files_is_code_and_only_the_stack_is_the_stack() {
        let read = |rights, inode, name| {
            let line = format!("1000-3000 {rights} 00010000 08:01 {inode}   {name}");
            let mapping = Mapping::read(&line).unwrap();
            assert_eq!(mapping.addresses, 0x1000..0x3000);
            mapping.kind
        };
        assert_eq!(read("r-xp", "77", "/usr/bin/a b"), Kind::Code);
        assert_eq!(read("rw-p", "0", "[stack]"), Kind::Stack);
        for (rights, inode, name) in [
            ("r--p", "77", "/a"),
            ("rwxp", "77", "/a"),
            ("r-xs", "77", "/a"),
            ("r-xp", "0", "[vdso]"),
            ("rw-p", "77", "[stack]"),
            ("rw-p", "0", "[heap]"),
            ("rw-p", "0", ""),
        ] {
            assert_eq!(read(rights, inode, name), Kind::Other, "{rights} {name}");
        }
        for bad in ["", "1000", "x-y r-xp 0 08:01 7 /a", "1000-2000 r-xp"] {
            assert_eq!(Mapping::read(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_program_goes_on_with_all_that_it_knows() {
        let before: Vec<String> = (0..100).map(|number| number.to_string()).collect();
        for _ in 0..2 {
            release();
        }
        let after = (0..100).map(|number| number.to_string());
        assert!(before.into_iter().eq(after));
    }
}
