//! A field of an API object as it was sent: absent, of the expected type, or of another type.
//!
//! Reading a field never fails, so one malformed field does not affect its object; the code that uses the
//! field reports the problem. Keys that are not fields of a [`FieldType`] are skipped by the parser: they
//! are not allocated, and only their JSON syntax is checked.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{
    Deserialize, DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor,
};

use crate::model::problem::quote;

/// The value of a field.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum FieldValue<T> {
    /// Missing, or `null`.
    #[default]
    Absent,
    /// A value of the expected type.
    Valid(T),
    /// A value of another type.
    WrongType(WrongTypeValue),
}

/// A value of the wrong type, in short form for messages: `[...]` for a list, `{...}` for an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WrongTypeValue(pub Box<str>);

impl<T> FieldValue<T> {
    /// The value, if it is of the expected type.
    pub fn get(&self) -> Option<&T> {
        match self {
            FieldValue::Valid(value) => Some(value),
            FieldValue::Absent | FieldValue::WrongType(_) => None,
        }
    }

    /// The value to modify, if it is of the expected type.
    pub fn get_mut(&mut self) -> Option<&mut T> {
        match self {
            FieldValue::Valid(value) => Some(value),
            FieldValue::Absent | FieldValue::WrongType(_) => None,
        }
    }

    /// Whether the field is absent.
    pub fn is_absent(&self) -> bool {
        matches!(self, FieldValue::Absent)
    }
}

impl<T: Default> FieldValue<T> {
    /// The value to modify, created if absent; `None` if it is of the wrong type.
    pub fn get_or_default(&mut self) -> Option<&mut T> {
        if self.is_absent() {
            *self = FieldValue::Valid(T::default());
        }
        self.get_mut()
    }
}

impl FieldValue<String> {
    /// The string; empty if there is none.
    pub fn text(&self) -> &str {
        self.get().map_or("", String::as_str)
    }
}

impl<T> FieldValue<Vec<T>> {
    /// The elements; empty if there is no list.
    pub fn items(&self) -> &[T] {
        self.get().map_or(&[], Vec::as_slice)
    }

    /// The elements to modify; empty if there is no list.
    pub fn items_mut(&mut self) -> &mut [T] {
        self.get_mut().map_or(&mut [], Vec::as_mut_slice)
    }
}

/// The type of a field, and its conversion from each JSON type.
pub trait FieldType: Sized {
    /// Its name in a message: `a string`.
    const NAME: &'static str;

    /// From a string.
    fn from_text(_: &str) -> Option<Self> {
        None
    }

    /// Of a whole number.
    fn from_number(_: i64) -> Option<Self> {
        None
    }

    /// From a boolean.
    fn from_bool(_: bool) -> Option<Self> {
        None
    }

    /// From a list. Reads the list to its end in any case.
    fn from_list<'de, A: SeqAccess<'de>>(mut list: A) -> Result<Option<Self>, A::Error> {
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(None)
    }

    /// From an object. Reads the object to its end in any case.
    fn from_object<'de, A: MapAccess<'de>>(mut object: A) -> Result<Option<Self>, A::Error> {
        while object.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(None)
    }
}

impl FieldType for String {
    const NAME: &'static str = "a string";

    fn from_text(text: &str) -> Option<String> {
        Some(text.to_owned())
    }
}

impl FieldType for i64 {
    const NAME: &'static str = "a whole number";

    fn from_number(number: i64) -> Option<i64> {
        Some(number)
    }
}

impl FieldType for bool {
    const NAME: &'static str = "true or false";

    fn from_bool(is: bool) -> Option<bool> {
        Some(is)
    }
}

impl<T: FieldType> FieldType for Vec<FieldValue<T>> {
    const NAME: &'static str = "a list";

    fn from_list<'de, A: SeqAccess<'de>>(mut list: A) -> Result<Option<Self>, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = list.next_element()? {
            items.push(item);
        }
        Ok(Some(items))
    }
}

/// The first element of a list; the others are skipped.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FirstItem<T>(pub Option<FieldValue<T>>);

impl<T: FieldType> FieldType for FirstItem<T> {
    const NAME: &'static str = "a list";

    fn from_list<'de, A: SeqAccess<'de>>(mut list: A) -> Result<Option<Self>, A::Error> {
        let first = list.next_element()?;
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Some(FirstItem(first)))
    }
}

impl<'de, T: FieldType> Deserialize<'de> for FieldValue<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<FieldValue<T>, D::Error> {
        deserializer.deserialize_any(FieldVisitor(PhantomData))
    }
}

struct FieldVisitor<T>(PhantomData<T>);

/// A valid value, or the wrong-type value with `text` for messages.
fn valid_or_wrong_type<T>(value: Option<T>, text: impl FnOnce() -> String) -> FieldValue<T> {
    value.map_or_else(|| FieldValue::WrongType(WrongTypeValue(text().into())), FieldValue::Valid)
}

impl<'de, T: FieldType> Visitor<'de> for FieldVisitor<T> {
    type Value = FieldValue<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("anything")
    }

    fn visit_unit<E: Error>(self) -> Result<FieldValue<T>, E> {
        Ok(FieldValue::Absent)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<FieldValue<T>, E> {
        Ok(valid_or_wrong_type(T::from_text(text), || quote(text)))
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<FieldValue<T>, E> {
        Ok(valid_or_wrong_type(T::from_number(number), || number.to_string()))
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<FieldValue<T>, E> {
        Ok(valid_or_wrong_type(i64::try_from(number).ok().and_then(T::from_number), || number.to_string()))
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<FieldValue<T>, E> {
        Ok(valid_or_wrong_type(None, || number.to_string()))
    }

    fn visit_bool<E: Error>(self, is: bool) -> Result<FieldValue<T>, E> {
        Ok(valid_or_wrong_type(T::from_bool(is), || is.to_string()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<FieldValue<T>, A::Error> {
        Ok(valid_or_wrong_type(T::from_list(list)?, || "[...]".to_owned()))
    }

    fn visit_map<A: MapAccess<'de>>(self, object: A) -> Result<FieldValue<T>, A::Error> {
        Ok(valid_or_wrong_type(T::from_object(object)?, || "{...}".to_owned()))
    }
}

/// Reads a key of an object as the field with that name; `None` for an unused key.
pub struct JsonKeySeed<K>(pub fn(&str) -> Option<K>);

impl<'de, K> DeserializeSeed<'de> for JsonKeySeed<K> {
    type Value = Option<K>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Option<K>, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<K> Visitor<'_> for JsonKeySeed<K> {
    type Value = Option<K>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E: Error>(self, key: &str) -> Result<Option<K>, E> {
        Ok((self.0)(key))
    }
}

/// Defines an API type by its used fields: `<name>: <key in JSON> => <type>`. Of a duplicate key, the last
/// value is used.
macro_rules! api_type {
    ($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $key:literal => $type:ty,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        pub struct $name {
            $($(#[$field_doc])* pub $field: $crate::model::decode::field_value::FieldValue<$type>,)+
        }

        impl $crate::model::decode::field_value::FieldType for $name {
            const NAME: &'static str = "an object";

            fn from_object<'de, A: serde::de::MapAccess<'de>>(mut object: A) -> Result<Option<Self>, A::Error> {
                #[allow(non_camel_case_types, reason = "keys are named as their fields")]
                enum JsonKey { $($field),+ }
                let key = |key: &str| match key {
                    $($key => Some(JsonKey::$field),)+
                    _ => None,
                };
                let mut found = Self::default();
                while let Some(key) = object.next_key_seed($crate::model::decode::field_value::JsonKeySeed(key))? {
                    match key {
                        $(Some(JsonKey::$field) => found.$field = object.next_value()?,)+
                        None => drop(object.next_value::<serde::de::IgnoredAny>()?),
                    }
                }
                Ok(Some(found))
            }
        }
    };
}
pub(in crate::model::decode) use api_type;

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    api_type! {
        /// A type for these tests.
        Thing {
            /// A string.
            text: "text" => String,
            /// A number.
            number: "aNumber" => i64,
            /// A boolean.
            is: "is" => bool,
            /// Strings.
            list: "list" => Vec<FieldValue<String>>,
            /// The first of several numbers.
            first: "first" => FirstItem<i64>,
        }
    }

    fn wrong<T>(text: &str) -> FieldValue<T> {
        FieldValue::WrongType(WrongTypeValue(text.into()))
    }

    fn read(text: &str) -> Thing {
        let FieldValue::Valid(thing) = serde_json::from_str::<FieldValue<Thing>>(text).unwrap() else {
            panic!("{text}")
        };
        // Text and parsed JSON give the same result.
        let value: serde_json::Value = serde_json::from_str(text).unwrap();
        assert_eq!(FieldValue::<Thing>::deserialize(&value).unwrap(), FieldValue::Valid(thing.clone()));
        thing
    }

    #[test]
    fn fields_are_read_by_key_and_other_keys_are_skipped() {
        let thing = read(
            r#"{"other": {"text": [1, {"a": null}]}, "text": "a", "aNumber": -5, "is": true, "number": 1,
            "list": ["b", null, 3], "first": [7, "x", {}]}"#,
        );
        let expected = Thing {
            text: FieldValue::Valid("a".into()),
            number: FieldValue::Valid(-5),
            is: FieldValue::Valid(true),
            list: FieldValue::Valid(vec![FieldValue::Valid("b".into()), FieldValue::Absent, wrong("3")]),
            first: FieldValue::Valid(FirstItem(Some(FieldValue::Valid(7)))),
        };
        assert_eq!(thing, expected);
        assert_eq!(read("{}"), Thing::default());
        assert_eq!(read(r#"{"text": null, "list": null, "first": null}"#), Thing::default());
        assert_eq!(read(r#"{"first": []}"#).first, FieldValue::Valid(FirstItem(None)));
        assert_eq!(read(r#"{"text": "a", "text": "b"}"#).text, FieldValue::Valid("b".into()));
    }

    #[test]
    fn a_value_of_the_wrong_type_is_kept_in_short_form() {
        let long = "x".repeat(5_000);
        let thing =
            read(&format!(r#"{{"text": {{"a": 1}}, "aNumber": "{long}", "is": [true, []], "list": 5.5}}"#));
        assert_eq!((thing.text, thing.is, thing.list), (wrong("{...}"), wrong("[...]"), wrong("5.5")));
        let FieldValue::WrongType(WrongTypeValue(number)) = thing.number else { panic!("a number") };
        assert!(number.len() < 300 && number.ends_with("(5000 bytes)"), "{number}");
        assert_eq!(read(r#"{"aNumber": 18446744073709551615}"#).number, wrong("18446744073709551615"));
        assert_eq!(read(r#"{"text": false}"#).text, wrong("false"));
        for text in ["5", "[1]", "\"x\"", "null"] {
            assert!(serde_json::from_str::<FieldValue<Thing>>(text).unwrap().get().is_none(), "{text}");
        }
    }

    #[test]
    fn skipped_values_may_have_any_depth() {
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        assert_eq!(
            serde_json::from_str::<FieldValue<Thing>>(&format!(r#"{{"other": {deep}, "text": "a"}}"#))
                .unwrap(),
            FieldValue::Valid(Thing { text: FieldValue::Valid("a".into()), ..Thing::default() })
        );
    }

    #[test]
    fn defaults_are_set_only_where_a_field_is_absent() {
        let mut thing = read(r#"{"aNumber": "x"}"#);
        assert_eq!(thing.text.get_or_default().map(|text| text.as_str()), Some(""));
        assert_eq!(thing.number.get_or_default(), None);
        assert_eq!((thing.text.text(), thing.list.items()), ("", &[][..]));
        assert!(serde_json::from_value::<FieldValue<Thing>>(json!({"text": 5})).is_ok());
    }
}
