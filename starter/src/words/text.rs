//! The one place that makes text from outside safe to show: names, paths, and what other programs wrote.
//!
//! Control characters could forge a line or drive a terminal, and bidi controls could make text look like other text. They
//! are escaped byte by byte as `\xNN`, and so is everything that is not UTF-8.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

/// The text as one line that is safe to show. Text that is safe already stays as it is.
pub fn printable(text: impl AsRef<OsStr>) -> String {
    let mut line = String::new();
    escape(text.as_ref().as_bytes(), usize::MAX, &mut line);
    line
}

/// The same of text that somebody may have made long, so that a reader is not flooded: its first 4 KiB.
pub fn shortened(text: impl AsRef<OsStr>) -> String {
    const MOST: usize = 4096;
    let mut line = String::new();
    let (whole, _) = escape(text.as_ref().as_bytes(), MOST, &mut line);
    if !whole {
        line.push_str("[...]");
    }
    line
}

/// The same for a word that a shell would have to quote: with blanks in it, in single quotes.
pub fn quoted(word: impl AsRef<OsStr>) -> String {
    let word = printable(word);
    match word.contains(char::is_whitespace) {
        true => format!("'{}'", word.replace('\'', r"'\''")),
        false => word,
    }
}

/// JSON that is safe to show, whatever its strings contain: its own escapes stand for what could do harm.
pub fn printable_json(json: &str) -> String {
    let mut safe = String::with_capacity(json.len());
    for character in json.chars() {
        if character == '\n' || !is_harmful(character) {
            safe.push(character);
            continue;
        }
        for unit in character.encode_utf16(&mut [0; 2]) {
            safe.push_str(&format!("\\u{unit:04x}"));
        }
    }
    safe
}

/// Appends escaped text while `line` stays within `most` bytes. Returns whether that was all of it, and how many bytes of it
/// were taken.
pub fn escape(bytes: &[u8], most: usize, line: &mut String) -> (bool, usize) {
    let mut taken = 0;
    for chunk in bytes.utf8_chunks() {
        for character in chunk.valid().chars() {
            let length = character.len_utf8();
            if !is_harmful(character) {
                if line.len() + length > most {
                    return (false, taken);
                }
                line.push(character);
            } else {
                if line.len() + 4 * length > most {
                    return (false, taken);
                }
                escape_bytes(character.encode_utf8(&mut [0; 4]).as_bytes(), line);
            }
            taken += length;
        }
        for byte in chunk.invalid() {
            if line.len() + 4 > most {
                return (false, taken);
            }
            escape_bytes(&[*byte], line);
            taken += 1;
        }
    }
    (true, taken)
}

/// Appends text as it is while `line`, as a string of JSON, stays within `most` bytes; what is not UTF-8 becomes U+FFFD.
/// Returns the same as [`escape`].
pub fn decode(bytes: &[u8], most: usize, line: &mut String) -> (bool, usize) {
    let (mut taken, mut length) = (0, 0);
    for chunk in bytes.utf8_chunks() {
        let valid = chunk.valid().chars();
        let valid = valid.map(|character| (character, character.len_utf8()));
        let invalid = chunk.invalid();
        let replaced = (char::REPLACEMENT_CHARACTER, invalid.len());
        for (character, count) in valid.chain((!invalid.is_empty()).then_some(replaced)) {
            length += in_json(character);
            if length > most {
                return (false, taken);
            }
            line.push(character);
            taken += count;
        }
    }
    (true, taken)
}

/// How many bytes it takes at most: see [`printable_json`].
fn in_json(character: char) -> usize {
    match character {
        '"' | '\\' => 2,
        character if is_harmful(character) => 6,
        character => character.len_utf8(),
    }
}

fn escape_bytes(bytes: &[u8], line: &mut String) {
    const DIGITS: [char; 16] = [
        '0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'A', 'B', 'C', 'D', 'E', 'F',
    ];
    for byte in bytes {
        let digit = |value: u8| DIGITS[usize::from(value & 15)];
        line.extend(['\\', 'x', digit(byte >> 4), digit(*byte)]);
    }
}

/// Whether a line is printable ASCII, as by far the most lines are.
pub fn is_plain(line: &[u8]) -> bool {
    line.iter().all(|byte| (0x20..0x7F).contains(byte))
}

fn is_harmful(character: char) -> bool {
    character.is_control()
        || matches!(
            character,
            // Bidi controls (Unicode, UAX 9), and what some programs take for the end of a line.
            '\u{61C}' | '\u{200E}' | '\u{200F}' | '\u{2028}'..='\u{202E}' | '\u{2066}'..='\u{2069}'
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_forge_a_line_or_drive_a_terminal_is_escaped() {
        assert_eq!(printable("a\nb\tc\x1b[2J"), r"a\x0Ab\x09c\x1B[2J");
        assert_eq!(printable("\u{9b}2J\u{202e}"), r"\xC2\x9B2J\xE2\x80\xAE");
        assert_eq!(printable(OsStr::from_bytes(b"/\xff")), r"/\xFF");
    }

    #[test]
    fn a_word_is_quoted_only_if_it_has_blanks() {
        assert_eq!(quoted("/srv/my app/server"), "'/srv/my app/server'");
        assert_eq!(quoted("it's here"), r"'it'\''s here'");
        assert_eq!(quoted("a\u{a0}b"), "'a\u{a0}b'");
        for word in ["", "it's", "/srv/app", "a\nb"] {
            assert_eq!(quoted(word), printable(word));
        }
    }

    #[test]
    fn long_text_is_cut_where_that_is_asked_for() {
        assert_eq!(shortened("a\n"), r"a\x0A");
        let long = shortened("\u{20ac}".repeat(10_000));
        assert_eq!(long.len(), 4095 + "[...]".len());
        assert!(long.ends_with("[...]"));
    }

    #[test]
    fn json_is_escaped_by_its_own_means() {
        let json = "{\n  \"a\": \"\u{9b}2J\u{202e}\u{7f}\u{fc}\"\n}";
        let safe = "{\n  \"a\": \"\\u009b2J\\u202e\\u007f\u{fc}\"\n}";
        assert_eq!(printable_json(json), safe);
    }

    #[test]
    fn what_is_decoded_fits_into_json() {
        let decoded = |bytes: &[u8], most| {
            let mut line = String::new();
            let (whole, taken) = decode(bytes, most, &mut line);
            (line, whole, taken)
        };
        assert_eq!(decoded(b"", 0), (String::new(), true, 0));
        let text = b"a\xff\"\x1b\xe2\x82";
        let expected = "a\u{fffd}\"\u{1b}\u{fffd}".to_owned();
        assert_eq!(decoded(text, 15), (expected, true, text.len()));
        assert_eq!(decoded(text, 14).2, 4);
        for text in [
            "x",
            "\"",
            "\u{1b}",
            "\u{9b}",
            "\u{202e}",
            "\u{20ac}",
            "\u{1f600}",
        ] {
            let (line, _, taken) = decoded(text.repeat(100).as_bytes(), 60);
            assert_eq!(line.len(), taken);
            let json = printable_json(&serde_json::to_string(&line).unwrap_or_default());
            assert!((56..=62).contains(&json.len()), "{json}");
        }
    }

    #[test]
    fn safe_text_stays_as_it_is() {
        for text in ["", r"C:\x0A", "gr\u{fc}\u{df}e \u{1f600}"] {
            assert_eq!(printable(text), text);
            assert_eq!(printable(printable(text)), text);
        }
    }
}
