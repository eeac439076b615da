//! Tables of cases that stand in a test as they would on paper: a line a case, its cells between bars.

/// The rows of a table. Cells lose the blanks around them and may be empty; empty lines and lines that begin with `#`
/// are left out.
///
/// # Panics
/// When a row has another number of cells.
pub fn rows<const N: usize>(table: &str) -> impl Iterator<Item = [&str; N]> {
    let lines = table.lines().map(str::trim);
    let rows = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
    rows.map(|row| {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let count = cells.len();
        cells
            .try_into()
            .unwrap_or_else(|_| panic!("{count} cells, not {N}: {row}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_are_trimmed_and_may_be_empty() {
        let found: Vec<[&str; 3]> = rows("\n  a | | b c\n\n  # no row | at | all\n  | d |\n").collect();
        assert_eq!(found, [["a", "", "b c"], ["", "d", ""]]);
    }

    #[test]
    #[should_panic(expected = "2 cells, not 3: a | b")]
    fn rows_of_another_length_are_errors() {
        let _count = rows::<3>("a | b").count();
    }
}
