//! What somebody may have meant who wrote a name that does not exist.

/// `; did you mean ...?` with the nearest name, or nothing if none is near.
pub(super) fn did_you_mean<'k>(wrong: &str, known: impl Iterator<Item = &'k str>) -> String {
    let near = |name: &&str| distance(wrong, name) <= 1 + wrong.len() / LETTERS_PER_SLIP;
    known
        .filter(near)
        .min_by_key(|name| distance(wrong, name))
        .map(|name| format!("; did you mean `{name}`?"))
        .unwrap_or_default()
}

/// Insertions, deletions, changes and swaps of neighbours that make one name of the other.
fn distance(from: &str, to: &str) -> usize {
    let (from, to): (Vec<char>, Vec<char>) = (from.chars().collect(), to.chars().collect());
    let mut before_last: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=to.len()).collect();
    for i in 1..=from.len() {
        let mut row = vec![i];
        for j in 1..=to.len() {
            let change = last[j - 1] + usize::from(from[i - 1] != to[j - 1]);
            let mut best = change.min(last[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && from[i - 1] == to[j - 2] && from[i - 2] == to[j - 1] {
                best = best.min(before_last[j - 2] + 1);
            }
            row.push(best);
        }
        before_last = std::mem::replace(&mut last, row);
    }
    last[to.len()]
}

/// One slip in so many letters is a typing error; more is another word.
const LETTERS_PER_SLIP: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_is_suggested() {
        let known = || ["port", "host", "max_connections"].into_iter();
        assert_eq!(did_you_mean("prot", known()), "; did you mean `port`?");
        assert_eq!(did_you_mean("max_conections", known()), "; did you mean `max_connections`?");
        assert_eq!(did_you_mean("pool_size", known()), "");
        assert_eq!(did_you_mean("", known()), "");
    }
}
