//! The options of a foreign match or target: names with their values.

/// One option, as `! --dports 80,443`.
pub(super) struct Clause<'a> {
    /// Whether `!` stands before it.
    pub negated: bool,
    /// With its dashes; `""` for words before the first option.
    pub name: &'a str,
    /// The words up to the next option.
    pub values: Vec<&'a str>,
}

impl<'a> Clause<'a> {
    /// Its only value.
    pub fn value(&self) -> Option<&'a str> {
        if let [value] = self.values[..] { Some(value) } else { None }
    }
}

/// Splits `words` at the options.
pub(super) fn clauses<'a>(words: &'a [Box<str>]) -> Vec<Clause<'a>> {
    let mut clauses: Vec<Clause<'a>> = Vec::new();
    let mut negated = false;
    for word in words.iter().map(|word| &**word) {
        if word == "!" {
            negated = true;
        } else if word.starts_with('-') && word.len() > 1 || clauses.is_empty() {
            let (name, values) = if word.starts_with('-') { (word, vec![]) } else { ("", vec![word]) };
            clauses.push(Clause { negated: std::mem::take(&mut negated), name, values });
        } else if let Some(last) = clauses.last_mut() {
            last.values.push(word);
        }
    }
    clauses
}

/// `80`, `80:90`, `:90` or `80:`, with another `separator` as well: first and last number.
pub(super) fn range(text: &str, separator: char) -> Option<(u16, u16)> {
    let Some((first, last)) = text.split_once(separator) else {
        let one = text.parse().ok()?;
        return Some((one, one));
    };
    let first = if first.is_empty() { 0 } else { first.parse().ok()? };
    let last = if last.is_empty() { u16::MAX } else { last.parse().ok()? };
    Some((first, last))
}
