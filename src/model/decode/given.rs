//! A field of an API object as it was sent: absent, of the type that is expected, or of another one.
//!
//! Reading a field never fails, so that one wrong field costs itself and not its object; the code that
//! uses the field reports the problem. Whatever an object holds beside the fields of its [`Shape`] is
//! skipped by the parser: nothing of it is allocated, nor checked for more than the grammar of JSON.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{
    Deserialize, DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor,
};

use crate::model::problem::quote;

/// What was given for a field.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Given<T> {
    /// Nothing, or `null`.
    #[default]
    Absent,
    /// A value of the type that is expected.
    Good(T),
    /// A value of another type.
    Wrong(Wrong),
}

/// A value of the wrong type, as a message shows it: never long, `[...]` for a list, `{...}` for an
/// object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wrong(pub Box<str>);

impl<T> Given<T> {
    /// The value, if it is of the right type.
    pub fn get(&self) -> Option<&T> {
        match self {
            Given::Good(value) => Some(value),
            Given::Absent | Given::Wrong(_) => None,
        }
    }

    /// The value to change, if it is of the right type.
    pub fn get_mut(&mut self) -> Option<&mut T> {
        match self {
            Given::Good(value) => Some(value),
            Given::Absent | Given::Wrong(_) => None,
        }
    }

    /// Whether there is nothing.
    pub fn is_absent(&self) -> bool {
        matches!(self, Given::Absent)
    }
}

impl<T: Default> Given<T> {
    /// The value to fill in, made where there was none; `None` where it is of the wrong type.
    pub fn get_or_default(&mut self) -> Option<&mut T> {
        if self.is_absent() {
            *self = Given::Good(T::default());
        }
        self.get_mut()
    }
}

impl Given<String> {
    /// The text; empty where there is none.
    pub fn text(&self) -> &str {
        self.get().map_or("", String::as_str)
    }
}

impl<T> Given<Vec<T>> {
    /// The elements; none where there is no list.
    pub fn items(&self) -> &[T] {
        self.get().map_or(&[], Vec::as_slice)
    }

    /// The elements to change; none where there is no list.
    pub fn items_mut(&mut self) -> &mut [T] {
        self.get_mut().map_or(&mut [], Vec::as_mut_slice)
    }
}

/// A type that a field may be of, and how it is made of each type that JSON has.
pub trait Shape: Sized {
    /// What it is called in a message: `a string`.
    const NAME: &'static str;

    /// Of a text.
    fn of_text(_: &str) -> Option<Self> {
        None
    }

    /// Of a whole number.
    fn of_number(_: i64) -> Option<Self> {
        None
    }

    /// Of true or false.
    fn of_bool(_: bool) -> Option<Self> {
        None
    }

    /// Of a list, which is read to its end in any case.
    fn of_list<'de, A: SeqAccess<'de>>(mut list: A) -> Result<Option<Self>, A::Error> {
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(None)
    }

    /// Of an object, which is read to its end in any case.
    fn of_object<'de, A: MapAccess<'de>>(mut object: A) -> Result<Option<Self>, A::Error> {
        while object.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(None)
    }
}

impl Shape for String {
    const NAME: &'static str = "a string";

    fn of_text(text: &str) -> Option<String> {
        Some(text.to_owned())
    }
}

impl Shape for i64 {
    const NAME: &'static str = "a whole number";

    fn of_number(number: i64) -> Option<i64> {
        Some(number)
    }
}

impl Shape for bool {
    const NAME: &'static str = "true or false";

    fn of_bool(is: bool) -> Option<bool> {
        Some(is)
    }
}

impl<T: Shape> Shape for Vec<Given<T>> {
    const NAME: &'static str = "a list";

    fn of_list<'de, A: SeqAccess<'de>>(mut list: A) -> Result<Option<Self>, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = list.next_element()? {
            items.push(item);
        }
        Ok(Some(items))
    }
}

/// The first element of a list, the only one that is read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct First<T>(pub Option<Given<T>>);

impl<T: Shape> Shape for First<T> {
    const NAME: &'static str = "a list";

    fn of_list<'de, A: SeqAccess<'de>>(mut list: A) -> Result<Option<Self>, A::Error> {
        let first = list.next_element()?;
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Some(First(first)))
    }
}

impl<'de, T: Shape> Deserialize<'de> for Given<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Given<T>, D::Error> {
        deserializer.deserialize_any(Reader(PhantomData))
    }
}

struct Reader<T>(PhantomData<T>);

/// What was made of `value`, which a message shows as `text`.
fn made<T>(value: Option<T>, text: impl FnOnce() -> String) -> Given<T> {
    value.map_or_else(|| Given::Wrong(Wrong(text().into())), Given::Good)
}

impl<'de, T: Shape> Visitor<'de> for Reader<T> {
    type Value = Given<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("anything")
    }

    fn visit_unit<E: Error>(self) -> Result<Given<T>, E> {
        Ok(Given::Absent)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Given<T>, E> {
        Ok(made(T::of_text(text), || quote(text)))
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<Given<T>, E> {
        Ok(made(T::of_number(number), || number.to_string()))
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<Given<T>, E> {
        Ok(made(i64::try_from(number).ok().and_then(T::of_number), || number.to_string()))
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<Given<T>, E> {
        Ok(made(None, || number.to_string()))
    }

    fn visit_bool<E: Error>(self, is: bool) -> Result<Given<T>, E> {
        Ok(made(T::of_bool(is), || is.to_string()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Given<T>, A::Error> {
        Ok(made(T::of_list(list)?, || "[...]".to_owned()))
    }

    fn visit_map<A: MapAccess<'de>>(self, object: A) -> Result<Given<T>, A::Error> {
        Ok(made(T::of_object(object)?, || "{...}".to_owned()))
    }
}

/// Reads a key of an object as the field it names; `None` for one that is not used.
pub struct KeySeed<K>(pub fn(&str) -> Option<K>);

impl<'de, K> DeserializeSeed<'de> for KeySeed<K> {
    type Value = Option<K>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Option<K>, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<K> Visitor<'_> for KeySeed<K> {
    type Value = Option<K>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E: Error>(self, key: &str) -> Result<Option<K>, E> {
        Ok((self.0)(key))
    }
}

/// Defines an object by the fields that are used of it: `<name>: <key in JSON> => <type>`. Of a key
/// that stands twice the last one counts.
macro_rules! shape {
    ($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $key:literal => $type:ty,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        pub struct $name {
            $($(#[$field_doc])* pub $field: $crate::model::decode::given::Given<$type>,)+
        }

        impl $crate::model::decode::given::Shape for $name {
            const NAME: &'static str = "an object";

            fn of_object<'de, A: serde::de::MapAccess<'de>>(mut object: A) -> Result<Option<Self>, A::Error> {
                #[allow(non_camel_case_types, reason = "keys are called as their fields are")]
                enum Key { $($field),+ }
                let key = |key: &str| match key {
                    $($key => Some(Key::$field),)+
                    _ => None,
                };
                let mut found = Self::default();
                while let Some(key) = object.next_key_seed($crate::model::decode::given::KeySeed(key))? {
                    match key {
                        $(Some(Key::$field) => found.$field = object.next_value()?,)+
                        None => drop(object.next_value::<serde::de::IgnoredAny>()?),
                    }
                }
                Ok(Some(found))
            }
        }
    };
}
pub(in crate::model::decode) use shape;

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    shape! {
        /// Something to read.
        Thing {
            /// A text.
            text: "text" => String,
            /// A number.
            number: "aNumber" => i64,
            /// Yes or no.
            is: "is" => bool,
            /// Texts.
            list: "list" => Vec<Given<String>>,
            /// The first of many.
            first: "first" => First<i64>,
        }
    }

    fn wrong<T>(text: &str) -> Given<T> {
        Given::Wrong(Wrong(text.into()))
    }

    fn read(text: &str) -> Thing {
        let Given::Good(thing) = serde_json::from_str::<Given<Thing>>(text).unwrap() else {
            panic!("{text}")
        };
        // It makes no difference where it comes from.
        let value: serde_json::Value = serde_json::from_str(text).unwrap();
        assert_eq!(Given::<Thing>::deserialize(&value).unwrap(), Given::Good(thing.clone()));
        thing
    }

    #[test]
    fn fields_are_read_by_key_and_others_skipped() {
        let thing = read(
            r#"{"other": {"text": [1, {"a": null}]}, "text": "a", "aNumber": -5, "is": true, "number": 1,
            "list": ["b", null, 3], "first": [7, "x", {}]}"#,
        );
        let expected = Thing {
            text: Given::Good("a".into()),
            number: Given::Good(-5),
            is: Given::Good(true),
            list: Given::Good(vec![Given::Good("b".into()), Given::Absent, wrong("3")]),
            first: Given::Good(First(Some(Given::Good(7)))),
        };
        assert_eq!(thing, expected);
        assert_eq!(read("{}"), Thing::default());
        assert_eq!(read(r#"{"text": null, "list": null, "first": null}"#), Thing::default());
        assert_eq!(read(r#"{"first": []}"#).first, Given::Good(First(None)));
        assert_eq!(read(r#"{"text": "a", "text": "b"}"#).text, Given::Good("b".into()));
    }

    #[test]
    fn a_wrong_type_is_kept_as_a_short_text() {
        let long = "x".repeat(5_000);
        let thing =
            read(&format!(r#"{{"text": {{"a": 1}}, "aNumber": "{long}", "is": [true, []], "list": 5.5}}"#));
        assert_eq!((thing.text, thing.is, thing.list), (wrong("{...}"), wrong("[...]"), wrong("5.5")));
        let Given::Wrong(Wrong(number)) = thing.number else { panic!("a number") };
        assert!(number.len() < 300 && number.ends_with("(5000 bytes)"), "{number}");
        assert_eq!(read(r#"{"aNumber": 18446744073709551615}"#).number, wrong("18446744073709551615"));
        assert_eq!(read(r#"{"text": false}"#).text, wrong("false"));
        for text in ["5", "[1]", "\"x\"", "null"] {
            assert!(serde_json::from_str::<Given<Thing>>(text).unwrap().get().is_none(), "{text}");
        }
    }

    #[test]
    fn what_is_skipped_may_be_of_any_depth() {
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        assert_eq!(
            serde_json::from_str::<Given<Thing>>(&format!(r#"{{"other": {deep}, "text": "a"}}"#)).unwrap(),
            Given::Good(Thing { text: Given::Good("a".into()), ..Thing::default() })
        );
    }

    #[test]
    fn defaults_are_filled_in_where_nothing_was_given() {
        let mut thing = read(r#"{"aNumber": "x"}"#);
        assert_eq!(thing.text.get_or_default().map(|text| text.as_str()), Some(""));
        assert_eq!(thing.number.get_or_default(), None);
        assert_eq!((thing.text.text(), thing.list.items()), ("", &[][..]));
        assert!(serde_json::from_value::<Given<Thing>>(json!({"text": 5})).is_ok());
    }
}
