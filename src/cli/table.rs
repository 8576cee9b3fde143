//! Tables for people: columns as wide as their widest cell. Must not know what is
//! in them.

/// Rows under a head; columns that are all numbers go to the right.
pub fn render(head: &[&str], rows: &[Vec<String>]) -> String {
    let columns = head.len();
    let width = |at: usize| {
        let cells = rows.iter().filter_map(|row| row.get(at)).map(|cell| cell.chars().count());
        cells.chain([head[at].chars().count()]).max().unwrap_or(0)
    };
    let number = |cell: &String| {
        cell == "-"
            || cell.starts_with(|char: char| char.is_ascii_digit())
                && !cell.contains(['/', 'T', 'x'])
                && cell.len() < 16
    };
    let right = |at: usize| !rows.is_empty() && rows.iter().all(|row| row.get(at).is_some_and(number));
    let layout: Vec<(usize, bool)> = (0..columns).map(|at| (width(at), right(at))).collect();
    let mut out = String::new();
    let head: Vec<String> = head.iter().map(|&cell| cell.to_owned()).collect();
    for row in std::iter::once(&head).chain(rows) {
        let cells = row.iter().zip(&layout).map(|(cell, &(width, right))| match right {
            true => format!("{cell:>width$}"),
            false => format!("{cell:<width$}"),
        });
        out.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        out.push('\n');
    }
    out
}

/// A size in bytes for people: `0 B`, `12.3 KiB`.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut value = count as f64 / 1024.0;
    let mut unit = UNITS[0];
    for next in &UNITS[1..] {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        unit = next;
    }
    format!("{value:.1} {unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let rows =
            vec![vec!["a.db".to_owned(), "7".to_owned()], vec!["longer.db".to_owned(), "12".to_owned()]];
        assert_eq!(
            render(&["name", "pages"], &rows),
            "name       pages\na.db           7\nlonger.db     12\n"
        );
        assert_eq!(render(&["name"], &[]), "name\n");
    }

    #[test]
    fn sizes_are_for_people() {
        for (count, text) in [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (10 << 30, "10.0 GiB")] {
            assert_eq!(bytes(count), text);
        }
    }
}
