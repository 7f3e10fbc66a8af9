//! Finds the metrics and labels in a PromQL expression.

use std::collections::BTreeSet;

/// The names in an expression.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// Metrics.
    pub metrics: BTreeSet<String>,
    /// Labels: of matchers, and of `by`, `on` and their like.
    pub labels: BTreeSet<String>,
}

/// Words that are followed by a list of labels in parentheses.
const BEFORE_LABELS: [&str; 6] = ["by", "without", "on", "ignoring", "group_left", "group_right"];
/// Words that are neither metrics nor functions.
const KEYWORDS: [&str; 8] = ["and", "or", "unless", "bool", "offset", "atan2", "inf", "nan"];

#[derive(Debug, PartialEq)]
enum Token {
    Word(String),
    Text,
    Sign(char),
}

/// Words begin with a letter; numbers, durations and operators do not matter.
fn tokens(expression: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut rest = expression.chars().peekable();
    while let Some(first) = rest.next() {
        let is_part = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '_' | ':' | '.' | '$');
        match first {
            '"' | '\'' => {
                while let Some(c) = rest.next() {
                    match c {
                        '\\' => drop(rest.next()),
                        c if c == first => break,
                        _ => {}
                    }
                }
                tokens.push(Token::Text);
            }
            c if is_part(&c) => {
                let mut word = String::from(c);
                while let Some(c) = rest.next_if(is_part) {
                    word.push(c);
                }
                let is_word = c.is_ascii_alphabetic() || matches!(c, '_' | ':');
                tokens.push(if is_word { Token::Word(word) } else { Token::Sign('0') });
            }
            c if c.is_whitespace() => {}
            c => tokens.push(Token::Sign(c)),
        }
    }
    tokens
}

/// The names in `expression`.
///
/// # Panics If its brackets do not match.
pub fn names(expression: &str) -> Names {
    let mut names = Names::default();
    let tokens = tokens(expression);
    let mut open: Vec<char> = Vec::new();
    for (i, token) in tokens.iter().enumerate() {
        let next = tokens.get(i + 1);
        match token {
            Token::Sign('(') => {
                let before = i.checked_sub(1).map(|i| &tokens[i]);
                let is_labels =
                    matches!(before, Some(Token::Word(word)) if BEFORE_LABELS.contains(&word.as_str()));
                open.push(if is_labels { 'l' } else { '(' });
            }
            Token::Sign(c @ ('{' | '[')) => open.push(*c),
            Token::Sign(c @ (')' | '}' | ']')) => {
                let fits = match open.pop() {
                    Some('(' | 'l') => *c == ')',
                    Some('{') => *c == '}',
                    Some('[') => *c == ']',
                    _ => false,
                };
                assert!(fits, "{c} in {expression}");
            }
            Token::Word(word) => match open.last() {
                Some('l' | '{') => drop(names.labels.insert(word.clone())),
                Some('[') => {}
                _ if next == Some(&Token::Sign('(')) || is_keyword(word) => {}
                _ => drop(names.metrics.insert(word.clone())),
            },
            Token::Text | Token::Sign(_) => {}
        }
    }
    assert!(open.is_empty(), "{open:?} is not closed in {expression}");
    names
}

fn is_keyword(word: &str) -> bool {
    // `sum by (a) (b)` and `sum(b) by (a)` are equivalent; `sum` is then followed by `by`.
    let aggregations = ["sum", "max", "min", "avg", "count", "topk", "quantile"];
    let word = word.to_ascii_lowercase();
    [&KEYWORDS[..], &BEFORE_LABELS[..], &aggregations[..]].iter().any(|list| list.contains(&word.as_str()))
}

#[test]
fn metrics_and_labels_are_distinguished_from_functions_and_keywords() {
    let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
    let check = |expression: &str, metrics: &[&str], labels: &[&str]| {
        let expected = Names { metrics: set(metrics), labels: set(labels) };
        assert_eq!(names(expression), expected, "{expression}");
    };
    check("a_total", &["a_total"], &[]);
    check("rate(a{x=\"b{\\\"\",y!~'c'}[5m]) > 0.5e3", &["a"], &["x", "y"]);
    check("sum by (le, z) (rate(a_bucket[$__rate_interval])) / 2", &["a_bucket"], &["le", "z"]);
    check("max(a) by (z) or vector(0) and on(q) time() - b > 60", &["a", "b"], &["z", "q"]);
    check("increase(a[1h:30s] offset 5m)", &["a"], &[]);
}

#[test]
#[should_panic(expected = "is not closed")]
fn an_unmatched_bracket_is_found() {
    names("sum(a");
}
