//! Label and field selectors of a request, and the namespace of its path.

use super::object::Object;
use super::resource::Resource;

/// The objects of a kind that a request is about.
#[derive(Debug, Default)]
pub struct Selector {
    /// Only this namespace, from the path.
    pub namespace: Option<String>,
    labels: Vec<Label>,
    fields: Vec<Field>,
}

#[derive(Debug, PartialEq)]
struct Label {
    key: String,
    test: Test,
}

#[derive(Debug, PartialEq)]
enum Test {
    Exists,
    Missing,
    In(Vec<String>),
    NotIn(Vec<String>),
}

#[derive(Debug)]
struct Field {
    name: String,
    is_equal: bool,
    text: String,
}

impl Selector {
    /// Reads the two query parameters; the error is the message of the 400.
    pub fn parse(
        resource: &Resource,
        namespace: Option<&str>,
        labels: &str,
        fields: &str,
    ) -> Result<Selector, String> {
        let labels = terms(labels).into_iter().map(label).collect::<Result<_, _>>()?;
        let fields = terms(fields).into_iter().map(field).collect::<Result<Vec<_>, _>>()?;
        for field in &fields {
            let is_common = matches!(field.name.as_str(), "metadata.name" | "metadata.namespace");
            if !is_common && !resource.fields.contains(&field.name.as_str()) {
                let known = ["metadata.name", "metadata.namespace"].iter().chain(resource.fields);
                let known: Vec<String> = known.map(|name| format!("{name:?}")).collect();
                return Err(format!(
                    "{:?} is not a known field selector: only {}",
                    field.name,
                    known.join(", ")
                ));
            }
        }
        Ok(Selector { namespace: namespace.map(str::to_owned), labels, fields })
    }

    /// Narrows to one object, as a path with its name does.
    pub fn require_name(&mut self, name: &str) {
        self.fields.push(Field { name: "metadata.name".into(), is_equal: true, text: name.to_owned() });
    }

    /// Whether `object` is selected.
    pub fn matches(&self, object: &Object) -> bool {
        self.namespace.as_ref().is_none_or(|namespace| *namespace == object.key.namespace)
            && self.labels.iter().all(|label| label.matches(object))
            && self
                .fields
                .iter()
                .all(|field| (object.field(&field.name) == Some(field.text.as_str())) == field.is_equal)
    }

    /// Whether it has labels or fields; without them a list can report how many objects remain.
    pub fn has_terms(&self) -> bool {
        !self.labels.is_empty() || !self.fields.is_empty()
    }
}

impl Label {
    fn matches(&self, object: &Object) -> bool {
        let value = object.labels.get(&self.key);
        match &self.test {
            Test::Exists => value.is_some(),
            Test::Missing => value.is_none(),
            Test::In(values) => value.is_some_and(|value| values.contains(value)),
            // An object without the label passes `!=` and `notin`.
            Test::NotIn(unwanted) => value.is_none_or(|value| !unwanted.contains(value)),
        }
    }
}

/// The terms between commas that stand outside parentheses.
fn terms(text: &str) -> Vec<&str> {
    let mut depth = 0_usize;
    let parts = text.split(|letter| {
        match letter {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            _ => {}
        }
        letter == ',' && depth == 0
    });
    parts.map(str::trim).filter(|part| !part.is_empty()).collect()
}

fn label(term: &str) -> Result<Label, String> {
    let one = |text: &str| vec![text.trim().to_owned()];
    let (key, test) = if let Some(key) = term.strip_prefix('!') {
        (key, Test::Missing)
    } else if let Some((key, value)) = term.split_once("!=") {
        (key, Test::NotIn(one(value)))
    } else if let Some((key, value)) = term.split_once("==").or_else(|| term.split_once('=')) {
        (key, Test::In(one(value)))
    } else if let Some((key, set)) = term.split_once(" notin ") {
        (key, Test::NotIn(values(set)?))
    } else if let Some((key, set)) = term.split_once(" in ") {
        (key, Test::In(values(set)?))
    } else {
        (term, Test::Exists)
    };
    let key = key.trim();
    if key.is_empty() || key.contains(|letter: char| letter.is_whitespace() || "()<>!".contains(letter)) {
        return Err(format!("unable to parse requirement: {term:?}"));
    }
    Ok(Label { key: key.to_owned(), test })
}

fn values(set: &str) -> Result<Vec<String>, String> {
    let inner = set.trim().strip_prefix('(').and_then(|set| set.strip_suffix(')'));
    let inner = inner.ok_or_else(|| format!("unable to parse requirement: found {set:?}, expected: '('"))?;
    Ok(inner.split(',').map(|value| value.trim().to_owned()).collect())
}

fn field(term: &str) -> Result<Field, String> {
    let unequal = term.split_once("!=").map(|pair| (pair, false));
    let equal = term.split_once("==").or_else(|| term.split_once('=')).map(|pair| (pair, true));
    let ((name, text), is_equal) =
        unequal.or(equal).ok_or_else(|| format!("invalid selector: {term:?}; can't understand {term:?}"))?;
    Ok(Field { name: name.trim().to_owned(), is_equal, text: text.trim().to_owned() })
}
