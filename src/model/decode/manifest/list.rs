//! Deserializes one document as a stream: list items are passed on one by one, so that a list of 50 000
//! objects needs the memory of one.

use std::cell::Cell;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, de};
use serde_json::{Map, Value};
use serde_saphyr::Spanned;

/// Kind and version of a list, which apply to items that have none.
pub struct ListKind {
    pub kind: Option<String>,
    pub api_version: Option<String>,
}

impl ListKind {
    /// `Service` for a `ServiceList`.
    pub fn item(&self) -> Option<String> {
        let item = self.kind.as_deref()?.strip_suffix("List")?;
        (!item.is_empty()).then(|| item.to_owned())
    }
}

/// Receives the objects of a document.
pub trait ValueSink {
    /// Handles one object, or the items of a list, at `line`. An object without a kind gets it from its list, `list`.
    fn handle_value(&mut self, value: Value, line: usize, list: Option<&ListKind>);
    /// The current item of a list was read to its end.
    fn item_read(&mut self);
}

/// Where the line of an object comes from.
#[derive(Clone, Copy)]
pub enum LineSource<'a> {
    /// The YAML parser; it counts from the document's line `first`.
    Yaml {
        /// The document's first line, from 1.
        first: usize,
    },
    /// The reader's count.
    Json(&'a Cell<usize>),
}

impl LineSource<'_> {
    fn now(self) -> usize {
        match self {
            LineSource::Yaml { first } => first,
            LineSource::Json(line) => line.get(),
        }
    }

    /// Reads a value and the line it begins on.
    fn value<'de, D: Deserializer<'de>>(self, deserializer: D) -> Result<(usize, Value), D::Error> {
        match self {
            LineSource::Yaml { first } => {
                let spanned = Spanned::<Value>::deserialize(deserializer)?;
                let line = spanned.referenced.line().max(1) as usize;
                Ok((first + line - 1, spanned.value))
            }
            LineSource::Json(line) => {
                let line = line.get();
                Ok((line, Value::deserialize(deserializer)?))
            }
        }
    }
}

/// Reads a document: an object, or a list whose items are objects.
pub struct DocumentSeed<'a, S> {
    /// Receives the objects.
    pub sink: &'a mut S,
    /// Where their lines come from.
    pub position: LineSource<'a>,
}

impl<'de, S: ValueSink> DeserializeSeed<'de> for DocumentSeed<'_, S> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de, S: ValueSink> Visitor<'de> for DocumentSeed<'_, S> {
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
        let mut without_kind = None;
        while let Some(key) = map.next_key::<String>()? {
            if key == "items" && without_kind.is_none() {
                let seed = ItemsSeed { sink: &mut *self.sink, position: self.position, own: &object };
                without_kind = Some(map.next_value_seed(seed)?);
            } else {
                object.insert(key, map.next_value()?);
            }
        }
        let Some(without_kind) = without_kind else {
            self.sink.handle_value(Value::Object(object), line, None);
            return Ok(());
        };
        let kind = list_kind(&object);
        for (line, value) in without_kind {
            self.sink.handle_value(value, line, Some(&kind));
        }
        Ok(())
    }
}

fn list_kind(object: &Map<String, Value>) -> ListKind {
    let text = |key| object.get(key).and_then(Value::as_str).map(str::to_owned);
    ListKind { kind: text("kind"), api_version: text("apiVersion") }
}

/// Reads the `items` of a list. Passes on each item with a kind, or whose list stated the kind already;
/// returns the others, whose list states it after them.
struct ItemsSeed<'a, S> {
    sink: &'a mut S,
    position: LineSource<'a>,
    /// The list's own fields read so far.
    own: &'a Map<String, Value>,
}

impl<'de, S: ValueSink> DeserializeSeed<'de> for ItemsSeed<'_, S> {
    type Value = Vec<(usize, Value)>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de, S: ValueSink> Visitor<'de> for ItemsSeed<'_, S> {
    type Value = Vec<(usize, Value)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of objects")
    }

    fn visit_unit<E: de::Error>(self) -> Result<Self::Value, E> {
        Ok(Vec::new())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
        let list = list_kind(self.own);
        let mut without_kind = Vec::new();
        while let Some((line, value)) = items.next_element_seed(ItemSeed(self.position))? {
            if value.get("kind").is_some() || list.kind.is_some() {
                self.sink.handle_value(value, line, Some(&list));
                self.sink.item_read();
            } else {
                // Kept until their list states the kind; together they count as one object.
                without_kind.push((line, value));
            }
        }
        Ok(without_kind)
    }

    /// Another kind of object with a field `items`.
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Vec::new())
    }
}

/// Reads one item with its line.
struct ItemSeed<'a>(LineSource<'a>);

impl<'de> DeserializeSeed<'de> for ItemSeed<'_> {
    type Value = (usize, Value);

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        self.0.value(deserializer)
    }
}
