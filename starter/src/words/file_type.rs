//! What a file is, in words.

use nix::sys::stat::SFlag;

/// The name of a type of file, as stat(2) gives it.
pub fn name_of_type(file_type: u32) -> &'static str {
    match SFlag::from_bits_retain(file_type) {
        SFlag::S_IFREG => "a regular file",
        SFlag::S_IFDIR => "a directory",
        SFlag::S_IFLNK => "a symbolic link",
        SFlag::S_IFIFO => "a fifo",
        SFlag::S_IFCHR | SFlag::S_IFBLK => "a device",
        _ => "something else",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_the_way_is_named_by_its_type() {
        for (file_type, name) in [
            (libc::S_IFREG, "a regular file"),
            (libc::S_IFDIR, "a directory"),
            (libc::S_IFLNK, "a symbolic link"),
            (libc::S_IFIFO, "a fifo"),
            (libc::S_IFCHR, "a device"),
            (libc::S_IFBLK, "a device"),
            // Only a program other than the binder could say this.
            (u32::MAX, "something else"),
        ] {
            assert_eq!(name_of_type(file_type), name);
        }
    }
}
