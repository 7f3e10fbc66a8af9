//! The text of a file (YAML or JSON) as a tree that keeps the order and the duplicates of its keys.
//! What the fields mean is left to `file`.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};

/// One value of a file.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Tree {
    Null,
    Bool(bool),
    Int(i128),
    Float(f64),
    Text(String),
    List(Vec<Tree>),
    /// In the order of the file; a key may stand there twice.
    Map(Vec<(String, Tree)>),
}

/// What [`Tree::parse`] reads.
pub(super) struct Parsed {
    /// The first document.
    pub(super) tree: Tree,
    /// Documents after the first that hold something; kube-proxy ignores them.
    pub(super) n_ignored: usize,
}

impl Tree {
    /// Reads the first document; the error is one line.
    pub(super) fn parse(text: &str) -> Result<Parsed, String> {
        // JSON may hold what YAML does not take: tabs, and keys that are longer than 1024 characters.
        if text.trim_start().starts_with('{')
            && let Ok(tree) = serde_json::from_str::<Tree>(text)
        {
            return Ok(Parsed { tree, n_ignored: 0 });
        }
        let options = serde_saphyr::options! {
            duplicate_keys: serde_saphyr::DuplicateKeyPolicy::LastWins,
            legacy_octal_numbers: true,
            with_snippet: false,
            // Nobody writes many aliases here, and few of them can make much of little.
            alias_limits: serde_saphyr::alias_limits! { max_total_replayed_events: 10_000 },
        };
        let documents: Vec<Tree> = serde_saphyr::from_multiple_with_options(text, options)
            .map_err(|error| one_line(&error.to_string()))?;
        let mut documents = documents.into_iter().filter(|tree| *tree != Tree::Null);
        let tree = documents.next().unwrap_or(Tree::Null);
        Ok(Parsed { tree, n_ignored: documents.count() })
    }
}

/// `text` without line breaks and what else a terminal would obey, at most 300 characters.
fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(300).collect()
}

/// As JSON, cut after 100 characters: how a value is quoted in a message.
impl fmt::Display for Tree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.json();
        match text.char_indices().nth(100) {
            Some((end, _)) => write!(f, "{}...", &text[..end]),
            None => f.write_str(&text),
        }
    }
}

impl Tree {
    fn json(&self) -> String {
        match self {
            Tree::Null => "null".to_owned(),
            Tree::Bool(value) => value.to_string(),
            Tree::Int(value) => value.to_string(),
            Tree::Float(value) => value.to_string(),
            Tree::Text(text) => format!("{text:?}"),
            Tree::List(items) => {
                let items: Vec<String> = items.iter().map(Tree::json).collect();
                format!("[{}]", items.join(", "))
            }
            Tree::Map(entries) => {
                let entries: Vec<String> =
                    entries.iter().map(|(key, value)| format!("{key:?}: {}", value.json())).collect();
                format!("{{{}}}", entries.join(", "))
            }
        }
    }
}

impl<'de> Deserialize<'de> for Tree {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Tree, D::Error> {
        deserializer.deserialize_any(TreeVisitor)
    }
}

struct TreeVisitor;

impl<'de> Visitor<'de> for TreeVisitor {
    type Value = Tree;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<Tree, E> {
        Ok(Tree::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Tree, E> {
        Ok(Tree::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Tree, E> {
        Ok(Tree::Int(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Tree, E> {
        Ok(Tree::Int(value.into()))
    }

    fn visit_i128<E>(self, value: i128) -> Result<Tree, E> {
        Ok(Tree::Int(value))
    }

    fn visit_u128<E>(self, value: u128) -> Result<Tree, E> {
        Ok(i128::try_from(value).map_or(Tree::Float(value as f64), Tree::Int))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Tree, E> {
        Ok(Tree::Float(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Tree, E> {
        Ok(Tree::Text(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Tree, E> {
        Ok(Tree::Text(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Tree, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Tree::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Tree, A::Error> {
        let mut map = Vec::new();
        while let Some(entry) = entries.next_entry()? {
            map.push(entry);
        }
        Ok(Tree::Map(map))
    }
}
