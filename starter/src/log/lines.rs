//! Turns what a worker writes into lines. Bytes in, lines out; nothing else.
//!
//! A line that is too long is split into pieces. For plain text, unsafe text is escaped (see [`crate::words::text`]) and the
//! pieces are marked, so that the lines are harmless wherever they are read; JSON has its own means for both.

use memchr::memchr;
use serde::{Deserialize, Serialize};

use crate::host::luggage::bytes;
use crate::words::text::{decode, escape, is_plain};

/// The longest line, in bytes, with its marks. With its prefix, a syslog record stays within the 8 KiB that syslog daemons
/// accept.
pub const LONGEST: usize = 8 * 1024 - 256;

/// The same as a string of JSON, which leaves room for the rest of its object.
const LONGEST_IN_JSON: usize = LONGEST - 256;

/// Marks the end of a piece that continues, and the start of the next one.
const CUT: &str = "[...]";

/// How the lines of the log are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum LineFormat {
    #[default]
    Text,
    /// Each line is an object.
    Json,
}

/// A line, or a piece of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Line<'a> {
    pub text: &'a str,
    /// It goes on in the next piece.
    pub continued: bool,
}

/// One stream, between its lines.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Lines {
    #[serde(default)]
    format: LineFormat,
    /// As written, minus what has been passed on.
    #[serde(with = "bytes")]
    partial: Vec<u8>,
    /// Part of this line has been passed on.
    continued: bool,
}

impl LineFormat {
    /// A plain line of this length is never too long.
    fn longest_plain(self) -> usize {
        match self {
            LineFormat::Text => LONGEST,
            // Each of its characters may have to be escaped.
            LineFormat::Json => LONGEST_IN_JSON / 2,
        }
    }
}

impl Lines {
    pub fn new(format: LineFormat) -> Lines {
        Lines {
            format,
            ..Lines::default()
        }
    }

    /// Takes what was written, and passes on every complete line, in order and without its newline.
    pub fn push(&mut self, mut written: &[u8], mut each: impl FnMut(Line<'_>)) {
        let longest = self.format.longest_plain();
        while let Some(end) = memchr(b'\n', written) {
            let line = &written[..end];
            written = &written[end + 1..];
            match std::str::from_utf8(line) {
                Ok(text) if self.is_between_lines() && line.len() <= longest && is_plain(line) => {
                    let continued = false;
                    each(Line { text, continued });
                }
                _ => {
                    self.extend(line, &mut each);
                    self.finish(&mut each);
                }
            }
        }
        self.extend(written, &mut each);
    }

    /// Passes on a last line without newline.
    pub fn end(&mut self, mut each: impl FnMut(Line<'_>)) {
        if !self.is_between_lines() {
            self.finish(&mut each);
        }
    }

    fn is_between_lines(&self) -> bool {
        self.partial.is_empty() && !self.continued
    }

    /// In portions, to bound the memory for a line that does not end.
    fn extend(&mut self, line: &[u8], each: &mut impl FnMut(Line<'_>)) {
        for portion in line.chunks(LONGEST) {
            self.partial.extend(portion);
            while self.partial.len() > LONGEST {
                self.hand_out_piece(each);
            }
        }
    }

    fn finish(&mut self, each: &mut impl FnMut(Line<'_>)) {
        let mut first = true;
        while first || !self.partial.is_empty() {
            self.hand_out_piece(each);
            first = false;
        }
        self.continued = false;
    }

    /// As much as fits.
    fn hand_out_piece(&mut self, each: &mut impl FnMut(Line<'_>)) {
        let mut piece = String::new();
        let (whole, taken) = match self.format {
            LineFormat::Text => {
                if self.continued {
                    piece.push_str(CUT);
                }
                let (whole, taken) = escape(&self.partial, LONGEST - CUT.len(), &mut piece);
                if !whole {
                    piece.push_str(CUT);
                }
                (whole, taken)
            }
            LineFormat::Json => decode(&self.partial, LONGEST_IN_JSON, &mut piece),
        };
        self.continued = !whole;
        each(Line {
            text: &piece,
            continued: self.continued,
        });
        self.partial.drain(..taken);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;
    use crate::words::text::printable;

    /// Written in portions of this size, then ended.
    fn lines_of(written: &[u8], portion: usize) -> Vec<String> {
        let (mut lines, mut out) = (Lines::default(), Vec::new());
        let mut keep = |line: Line<'_>| out.push(line.text.to_owned());
        for portion in written.chunks(portion) {
            lines.push(portion, &mut keep);
        }
        lines.end(&mut keep);
        out
    }

    #[track_caller]
    fn assert_lines(written: &[u8], expected: &[&str]) {
        for portion in [1, 2, 3, 7, 1 << 20] {
            assert_eq!(lines_of(written, portion), expected, "{portion}");
        }
    }

    #[test]
    fn lines_are_whole_however_they_were_written() {
        assert_lines(b"one\ntwo\n\nfour\n", &["one", "two", "", "four"]);
        assert_lines(b"", &[]);
        assert_lines(b"no end", &["no end"]);
        assert_lines(
            "gr\u{fc}\u{df}e \u{1f600}\n".as_bytes(),
            &["gr\u{fc}\u{df}e \u{1f600}"],
        );
    }

    #[test]
    fn what_could_do_harm_is_escaped() {
        assert_lines(
            b"a\0b\tc\rd\x1b[2Je\x7f\n",
            &[r"a\x00b\x09c\x0Dd\x1B[2Je\x7F"],
        );
        assert_lines("\u{85}\u{9b}2J\n".as_bytes(), &[r"\xC2\x85\xC2\x9B2J"]);
        assert_lines(
            "\u{202e}\u{2066}\u{200f}\n".as_bytes(),
            &[r"\xE2\x80\xAE\xE2\x81\xA6\xE2\x80\x8F"],
        );
        assert_lines(b"\xff\xc3\n", &[r"\xFF\xC3"]);
        // Half a character at the end.
        assert_lines(b"x\xe2\x82", &[r"x\xE2\x82"]);
        assert_lines(b"\n<0>Jan 1 forged:\n", &["", "<0>Jan 1 forged:"]);
    }

    #[test]
    fn a_long_line_comes_in_pieces_that_are_marked_and_lack_nothing() {
        for text in ["x", "\u{20ac}", "\u{1}", "\u{1f600}"] {
            for count in [LONGEST - 1, LONGEST, LONGEST + 1, 5 * LONGEST + 3] {
                let written = format!("before\n{}\nafter\n", text.repeat(count));
                for portion in [1000, 1 << 20] {
                    let lines = lines_of(written.as_bytes(), portion);
                    assert_eq!(lines.first().unwrap(), "before");
                    assert_eq!(lines.last().unwrap(), "after");
                    let pieces = &lines[1..lines.len() - 1];
                    assert!(pieces.iter().all(|piece| piece.len() <= LONGEST));
                    let (last, others) = pieces.split_last().unwrap();
                    assert!(others.iter().all(|piece| piece.ends_with(CUT)));
                    assert!(!last.ends_with(CUT));
                    assert!(pieces[1..].iter().all(|piece| piece.starts_with(CUT)));
                    let whole: String = pieces.iter().map(|it| it.replace(CUT, "")).collect();
                    assert_eq!(whole, printable(text.repeat(count)));
                }
            }
        }
    }

    #[test]
    fn for_json_text_is_as_it_was_and_a_piece_says_that_it_goes_on() {
        for text in ["x", "\"", "\u{20ac}", "\u{1}", "\u{1f600}"] {
            for count in [LONGEST_IN_JSON / 2, LONGEST - 1, 5 * LONGEST + 3] {
                let whole = text.repeat(count);
                let written = format!("b\te\n{whole}\nafter");
                for portion in [1000, 1 << 20] {
                    let (mut lines, mut out) = (Lines::new(LineFormat::Json), Vec::new());
                    let mut keep =
                        |line: Line<'_>| out.push((line.text.to_owned(), line.continued));
                    for portion in written.as_bytes().chunks(portion) {
                        lines.push(portion, &mut keep);
                    }
                    lines.end(&mut keep);
                    assert_eq!(out.first().unwrap(), &("b\te".to_owned(), false));
                    assert_eq!(out.pop().unwrap(), ("after".to_owned(), false));
                    let continued = out[1..].iter().map(|(_, continued)| *continued);
                    let last = out.len() - 2;
                    assert!(continued.enumerate().all(|(at, one)| one == (at < last)));
                    let pieces = out[1..].iter().map(|(text, _)| text.as_str());
                    assert_eq!(pieces.collect::<String>(), whole);
                    for (text, _) in &out {
                        let json = serde_json::to_string(text).unwrap();
                        assert!(json.len() <= LONGEST_IN_JSON + 2, "{}", json.len());
                    }
                }
            }
        }
    }

    #[test]
    fn for_json_what_is_not_utf8_is_replaced_wherever_it_is_cut() {
        let written = [&b"\xe2\x82".repeat(LONGEST)[..], b"\xffx\n"].concat();
        for portion in [1, 1000, 1 << 20] {
            let (mut lines, mut out) = (Lines::new(LineFormat::Json), String::new());
            for portion in written.chunks(portion) {
                lines.push(portion, |line| out.push_str(line.text));
            }
            assert_eq!(out, "\u{fffd}".repeat(LONGEST + 1) + "x");
        }
    }

    #[test]
    fn a_line_without_end_takes_bounded_memory() {
        let mut lines = Lines::default();
        let mut handed_out = 0;
        for _ in 0..1000 {
            lines.push(&[b'x'; 100_000], |piece| handed_out += piece.text.len());
            assert!(lines.partial.len() <= LONGEST);
            assert!(lines.partial.capacity() <= 4 * LONGEST);
        }
        assert!(handed_out >= 99_990_000);
    }
}
