//! One document, deserialized as a stream: the items of a list are handed on one by one, so that
//! a list of 50 000 objects needs the memory of one.

use std::cell::Cell;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, de};
use serde_json::{Map, Value};
use serde_saphyr::Spanned;

use super::{ListKind, Reading};

/// How to tell the line of an object.
#[derive(Clone, Copy)]
pub enum Position<'a> {
    /// The YAML parser knows it, counted from the document's `first` line.
    Yaml {
        /// The document's first line, from 1.
        first: usize,
    },
    /// The reader counts it.
    Json(&'a Cell<usize>),
}

impl Position<'_> {
    fn now(self) -> usize {
        match self {
            Position::Yaml { first } => first,
            Position::Json(line) => line.get(),
        }
    }

    /// Reads a value and the line it begins on.
    fn value<'de, D: Deserializer<'de>>(self, deserializer: D) -> Result<(usize, Value), D::Error> {
        match self {
            Position::Yaml { first } => {
                let spanned = Spanned::<Value>::deserialize(deserializer)?;
                let line = spanned.referenced.line().max(1) as usize;
                Ok((first + line - 1, spanned.value))
            }
            Position::Json(line) => {
                let line = line.get();
                Ok((line, Value::deserialize(deserializer)?))
            }
        }
    }
}

/// Reads a document: an object, or a list whose items are objects.
pub struct DocumentSeed<'a, 'r> {
    /// Where the objects go.
    pub reading: &'a mut Reading<'r>,
    /// How to tell their lines.
    pub position: Position<'a>,
}

impl<'de> DeserializeSeed<'de> for DocumentSeed<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for DocumentSeed<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object or a list of objects")
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let line = self.position.now();
        let mut object = Map::new();
        let mut waiting = None;
        while let Some(key) = map.next_key::<String>()? {
            if key == "items" && waiting.is_none() {
                let seed = ItemsSeed { document: &mut *self.reading, position: self.position, own: &object };
                waiting = Some(map.next_value_seed(seed)?);
            } else {
                object.insert(key, map.next_value()?);
            }
        }
        let Some(waiting) = waiting else {
            self.reading.object(Value::Object(object), line, None);
            return Ok(());
        };
        let kind = list_kind(&object);
        for (line, value) in waiting {
            self.reading.object(value, line, Some(&kind));
        }
        Ok(())
    }
}

fn list_kind(object: &Map<String, Value>) -> ListKind {
    let text = |key| object.get(key).and_then(Value::as_str).map(str::to_owned);
    ListKind { kind: text("kind"), api_version: text("apiVersion") }
}

/// Reads the `items` of a list and hands on each that says its kind, or whose kind the list said
/// before. The others come back: their list says it behind them.
struct ItemsSeed<'a, 'r> {
    document: &'a mut Reading<'r>,
    position: Position<'a>,
    /// What was read of the list so far.
    own: &'a Map<String, Value>,
}

impl<'de> DeserializeSeed<'de> for ItemsSeed<'_, '_> {
    type Value = Vec<(usize, Value)>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for ItemsSeed<'_, '_> {
    type Value = Vec<(usize, Value)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of objects")
    }

    fn visit_unit<E: de::Error>(self) -> Result<Self::Value, E> {
        Ok(Vec::new())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
        let list = list_kind(self.own);
        let mut waiting = Vec::new();
        while let Some((line, value)) = items.next_element_seed(ItemSeed(self.position))? {
            if value.get("kind").is_some() || list.kind.is_some() {
                self.document.object(value, line, Some(&list));
                self.document.n_bytes.set(0);
            } else {
                // Kept until their list says what they are: all together are one object.
                waiting.push((line, value));
            }
        }
        Ok(waiting)
    }

    /// Another kind of object has a field of that name.
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Vec::new())
    }
}

/// Reads one item with its line.
struct ItemSeed<'a>(Position<'a>);

impl<'de> DeserializeSeed<'de> for ItemSeed<'_> {
    type Value = (usize, Value);

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        self.0.value(deserializer)
    }
}
