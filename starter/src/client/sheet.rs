//! Lines for a terminal of 80 columns: wrapped, cut, aligned in tables, and with colours where they are wanted.

/// How wide a line may be, in columns.
pub const WIDTH: usize = 80;

/// What stands for the part that was cut off.
const CUT: &str = "...";

/// The colour of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Colour {
    Bold,
    Green,
    Yellow,
    Red,
}

impl Colour {
    /// The sequence that begins it (console_codes(4)).
    fn sequence(self) -> &'static str {
        match self {
            Colour::Bold => "\x1b[1m",
            Colour::Green => "\x1b[32m",
            Colour::Yellow => "\x1b[33m",
            Colour::Red => "\x1b[31m",
        }
    }
}

/// Lines that are all safe to show; nothing else may be added.
#[derive(Debug, Default)]
pub struct Sheet(Vec<(Option<Colour>, String)>);

impl Sheet {
    /// Adds one line, cut where it is too long.
    pub fn line(&mut self, colour: Option<Colour>, text: &str) {
        self.0.push((colour, cut(text, WIDTH)));
    }

    /// Adds a sentence that may take several lines, but not many: the last one is cut.
    pub fn sentence(&mut self, colour: Option<Colour>, text: &str) {
        const MOST_LINES: usize = 4;
        const INDENT: &str = "  ";
        let (mut rest, mut indent) = (text, "");
        for number in 1..=MOST_LINES {
            let room = WIDTH - indent.len();
            let (line, after) = match number < MOST_LINES {
                true => wrapped(rest, room),
                false => (rest, ""),
            };
            self.line(colour, &format!("{indent}{line}"));
            (rest, indent) = (after, INDENT);
            if rest.is_empty() {
                return;
            }
        }
    }

    /// Adds a table with its headings. Columns are as wide as they need to be; the last one is not padded.
    pub fn table<const COLUMNS: usize>(
        &mut self,
        headings: [(&str, Side); COLUMNS],
        rows: &[[String; COLUMNS]],
    ) {
        const GAP: &str = "  ";
        let titles = headings.map(|(title, _)| title.to_owned());
        let all = std::iter::once(&titles).chain(rows);
        let mut widths = [0; COLUMNS];
        for row in all.clone() {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = columns(cell).max(*width);
            }
        }
        for (number, row) in all.enumerate() {
            let mut line = String::new();
            for (place, cell) in row.iter().enumerate() {
                // There is no need for it.
                if widths[place] == 0 {
                    continue;
                }
                let padding = " ".repeat(widths[place].saturating_sub(columns(cell)));
                match (headings[place].1, place + 1 == COLUMNS) {
                    (_, true) => line.push_str(cell),
                    (Side::Left, false) => line.extend([cell.as_str(), &padding, GAP]),
                    (Side::Right, false) => line.extend([padding.as_str(), cell, GAP]),
                }
            }
            let colour = (number == 0).then_some(Colour::Bold);
            self.line(colour, line.trim_end());
        }
    }

    /// Cuts it to this many lines of this many columns, for a terminal that has no more.
    pub fn fit(&mut self, lines: usize, width: usize) {
        self.0.truncate(lines);
        for (_, text) in &mut self.0 {
            *text = cut(text, width);
        }
    }

    /// How many lines there are.
    pub fn lines(&self) -> usize {
        self.0.len()
    }

    /// All lines; each ends with a newline, before which its colour is reset.
    pub fn text(&self, is_coloured: bool) -> String {
        let mut all = String::new();
        for (colour, text) in &self.0 {
            match colour.filter(|_| is_coloured && !text.is_empty()) {
                Some(colour) => all.extend([colour.sequence(), text, "\x1b[0m\n"]),
                None => all.extend([text.as_str(), "\n"]),
            }
        }
        all
    }
}

/// The side on which the content of a column is aligned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    Left,
    Right,
}

/// How many columns a text may take: what is not ASCII may be as wide as two letters.
fn columns(text: &str) -> usize {
    text.chars().map(width).sum()
}

fn width(character: char) -> usize {
    match character.is_ascii() {
        true => 1,
        false => 2,
    }
}

/// The text, or only its beginning if it is too long.
pub fn cut(text: &str, most: usize) -> String {
    if columns(text) <= most {
        return text.to_owned();
    }
    let room = most.saturating_sub(CUT.len());
    let end = beginning(text, room);
    format!("{}{}", &text[..end], &CUT[..CUT.len().min(most)])
}

/// The text, or only its end if it is too long.
pub fn cut_front(text: &str, most: usize) -> String {
    if columns(text) <= most {
        return text.to_owned();
    }
    let (mut room, mut start) = (most.saturating_sub(CUT.len()), text.len());
    for (at, character) in text.char_indices().rev() {
        let Some(left) = room.checked_sub(width(character)) else {
            break;
        };
        (room, start) = (left, at);
    }
    format!("{CUT}{}", &text[start..])
}

/// How many bytes of the text fit into this many columns.
fn beginning(text: &str, most: usize) -> usize {
    let mut left = most;
    for (at, character) in text.char_indices() {
        match left.checked_sub(width(character)) {
            Some(less) => left = less,
            None => return at,
        }
    }
    text.len()
}

/// The first line of a text, broken at a space if there is one, and the rest.
fn wrapped(text: &str, most: usize) -> (&str, &str) {
    if columns(text) <= most {
        return (text, "");
    }
    let end = beginning(text, most);
    let (line, rest) = match text[..end].rfind(' ').filter(|at| *at > 0) {
        Some(blank) => text.split_at(blank),
        None => text.split_at(end),
    };
    (line, rest.trim_start_matches(' '))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_line_is_wider_than_the_terminal() {
        let mut sheet = Sheet::default();
        sheet.line(None, &"x".repeat(200));
        sheet.sentence(None, &"word ".repeat(40));
        sheet.sentence(None, &"\u{4e00}".repeat(1000));
        sheet.table(
            [("A", Side::Right), ("B", Side::Left)],
            &[["1".repeat(30), "y".repeat(100)]],
        );
        for line in sheet.text(false).lines() {
            assert!(columns(line) <= WIDTH, "{line}");
        }
        sheet.fit(3, 20);
        assert_eq!(sheet.lines(), 3);
        assert!(sheet.text(false).lines().all(|line| line.len() <= 20));
    }

    #[test]
    fn a_sentence_breaks_at_blanks_and_ends_after_four_lines() {
        let mut sheet = Sheet::default();
        sheet.sentence(None, &format!("{} {}", "a".repeat(79), "b".repeat(5)));
        assert_eq!(sheet.text(false), format!("{}\n  bbbbb\n", "a".repeat(79)));
        let mut sheet = Sheet::default();
        sheet.sentence(None, &"word ".repeat(500));
        assert_eq!(sheet.lines(), 4);
        assert!(sheet.text(false).ends_with("...\n"));
    }

    #[test]
    fn a_table_aligns_numbers_on_the_right() {
        let mut sheet = Sheet::default();
        let row = |number: &str, name: &str| [number.to_owned(), name.to_owned(), "x".to_owned()];
        sheet.table(
            [("N", Side::Right), ("NAME", Side::Left), ("", Side::Left)],
            &[row("7", "a"), row("12", "longer")],
        );
        let lines = [" N  NAME", " 7  a       x", "12  longer  x", ""];
        assert_eq!(sheet.text(false), lines.join("\n"));
        let coloured = sheet.text(true);
        assert!(
            coloured.starts_with("\x1b[1m N  NAME\x1b[0m\n"),
            "{coloured}"
        );
    }

    #[test]
    fn a_text_is_cut_where_it_says_least() {
        assert_eq!(cut("short", 5), "short");
        assert_eq!(cut("too long", 6), "too...");
        assert_eq!(cut("too long", 2), "..");
        assert_eq!(cut_front("/run/app.sock", 10), "...pp.sock");
        assert_eq!(cut_front("\u{4e00}\u{4e00}\u{4e00}", 5), "...\u{4e00}");
    }
}
