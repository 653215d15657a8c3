//! The memory of a process that has done most of its work, and waits from now on.

use std::fs;
use std::ops::Range;

/// Gives the kernel back what is not in use: free memory of the heap, and the code of the program and of its libraries, most
/// of which has served its purpose. What is still needed of the code is mapped again when it is executed, from the page
/// cache.
pub fn release() {
    release_heap();
    // Without it the process is only larger.
    let maps = fs::read_to_string("/proc/self/maps").unwrap_or_default();
    for addresses in maps.lines().filter_map(code) {
        release_code(&addresses);
    }
}

#[expect(unsafe_code, reason = "only the C library knows what is free")]
fn release_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it touches nothing that is in use.
    let _ = unsafe { libc::malloc_trim(0) };
}

#[expect(unsafe_code, reason = "the kernel takes addresses")]
fn release_code(addresses: &Range<usize>) {
    let start = std::ptr::with_exposed_provenance_mut(addresses.start);
    // SAFETY: it is a mapping of a file for reading and executing, to which nothing has been written: what comes back from
    // the file is the same (madvise(2), MADV_DONTNEED).
    let _ = unsafe { libc::madvise(start, addresses.len(), libc::MADV_DONTNEED) };
}

/// The addresses in a line of /proc/PID/maps (proc(5)), if they are those of code that comes from a file.
fn code(line: &str) -> Option<Range<usize>> {
    let mut words = line.split_ascii_whitespace();
    let (addresses, rights) = (words.next()?, words.next()?);
    let inode = words.nth(2)?;
    let (start, end) = addresses.split_once('-')?;
    let address = |text| usize::from_str_radix(text, 16).ok();
    let addresses = address(start)?..address(end)?;
    (rights == "r-xp" && inode != "0").then_some(addresses)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;

    #[test]
    fn only_code_of_files_is_code() {
        let line = |rights, inode| format!("1000-3000 {rights} 00010000 08:01 {inode}   /a b");
        assert_eq!(code(&line("r-xp", "77")), Some(0x1000..0x3000));
        for (rights, inode) in [
            ("r--p", "77"),
            ("rwxp", "77"),
            ("r-xs", "77"),
            ("r-xp", "0"),
        ] {
            assert_eq!(code(&line(rights, inode)), None, "{rights} {inode}");
        }
        for bad in ["", "1000", "x-y r-xp 0 08:01 7 /a", "1000-2000 r-xp"] {
            assert_eq!(code(bad), None, "{bad}");
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
