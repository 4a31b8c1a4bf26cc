//! Tables of text: a heading, columns as wide as their widest cell, two spaces between.

use std::io::{self, Write};

/// A table under construction. Cells are one line each; control characters are shown as `?`, so that a
/// name from an image cannot drive the terminal.
#[derive(Debug)]
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
    right: Vec<bool>,
}

impl Table {
    /// A table with these headings; a heading that begins with `>` aligns its column to the right.
    pub(crate) fn new(headings: &[&str]) -> Self {
        Self {
            rows: vec![
                headings
                    .iter()
                    .map(|h| h.trim_start_matches('>').to_owned())
                    .collect(),
            ],
            right: headings.iter().map(|h| h.starts_with('>')).collect(),
        }
    }

    /// Adds a row; it has as many cells as there are headings.
    pub(crate) fn row<I: IntoIterator<Item = S>, S: Into<String>>(&mut self, cells: I) {
        let cells: Vec<String> = cells
            .into_iter()
            .map(|cell| printable(cell.into()))
            .collect();
        debug_assert_eq!(cells.len(), self.right.len(), "one cell for each heading");
        self.rows.push(cells);
    }

    /// Writes the table; the headings alone if there are no rows.
    pub(crate) fn write(&self, out: &mut (impl Write + ?Sized)) -> io::Result<()> {
        let width = |column: usize| {
            self.rows
                .iter()
                .map(|row| row[column].chars().count())
                .max()
                .unwrap_or_default()
        };
        let widths: Vec<usize> = (0..self.right.len()).map(width).collect();
        for row in &self.rows {
            let mut line = String::new();
            for ((cell, &width), &right) in row.iter().zip(&widths).zip(&self.right) {
                let cell = if right {
                    format!("{cell:>width$}")
                } else {
                    format!("{cell:<width$}")
                };
                line.push_str(&cell);
                line.push_str("  ");
            }
            writeln!(out, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

fn printable(text: String) -> String {
    if text.chars().any(char::is_control) {
        text.chars()
            .map(|c| if c.is_control() { '?' } else { c })
            .collect()
    } else {
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_lines_have_no_trailing_space() {
        let mut table = Table::new(&["NAME", ">SIZE", "STATE"]);
        table.row(["a", "1.5 MB", ""]);
        table.row(["größer", "12 B", "ok"]);
        let mut out = Vec::new();
        table.write(&mut out).unwrap();
        let expected = "NAME      SIZE  STATE\na       1.5 MB\ngrößer    12 B  ok\n";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }

    #[test]
    fn a_cell_cannot_drive_the_terminal() {
        let mut table = Table::new(&["NAME"]);
        table.row(["a\x1b[2Jb\nc"]);
        let mut out = Vec::new();
        table.write(&mut out).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), "NAME\na?[2Jb?c\n");
    }
}
