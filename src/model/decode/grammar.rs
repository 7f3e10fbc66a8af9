//! The grammars of names, which a string must match before it becomes part of a value.

/// Whether `text` is a DNS label (RFC 1123): 1 to 63 of `a-z`, `0-9`, `-`, with no `-` at the start or end.
pub fn is_dns_label(text: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    text.len() <= 63 && text.bytes().all(inner) && has_alphanumeric_ends(text)
}

/// Whether `text` is a DNS subdomain (RFC 1123): labels of any length joined by dots, at most 253 bytes.
/// Source: Kubernetes `IsDNS1123Subdomain`.
pub fn is_dns_subdomain(text: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    text.len() <= 253 && text.split('.').all(|label| label.bytes().all(inner) && has_alphanumeric_ends(label))
}

/// Whether `text` is a label value other than the empty one: at most 63 letters, digits, `-`, `_`, `.`,
/// with a letter or digit at both ends.
pub fn is_label_value(text: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    text.len() <= 63 && text.bytes().all(inner) && has_alphanumeric_ends(text)
}

fn has_alphanumeric_ends(text: &str) -> bool {
    let is_word = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    is_word(text.as_bytes().first()) && is_word(text.as_bytes().last())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_lower_case_words_of_at_most_63_bytes() {
        let longest = "a".repeat(63);
        for text in ["a", "0", "a-b", "web-0", "xn--bcher-kva", &longest] {
            assert!(is_dns_label(text), "{text:?}");
        }
        let longer = "a".repeat(64);
        for text in ["", "-", "-a", "a-", "A", "a_b", "a.b", "a b", "a\n", "a\0", "ä", "a\"", "a/b", &longer]
        {
            assert!(!is_dns_label(text), "{text:?}");
        }
    }

    #[test]
    fn subdomains_are_labels_joined_by_dots() {
        for text in ["a", "a.b", "node-1.example.org", "10.0.0.1"] {
            assert!(is_dns_subdomain(text), "{text:?}");
        }
        let longer = ["a"; 128].join(".");
        for text in ["", ".", "a.", ".a", "a..b", "a.-b", "A.b", "a.b\n", &longer] {
            assert!(!is_dns_subdomain(text), "{text:?}");
        }
    }

    #[test]
    fn label_values_may_be_upper_case_with_dots_and_underscores() {
        for text in ["us-east1_b.C", "0", "Zone"] {
            assert!(is_label_value(text), "{text:?}");
        }
        for text in ["", "_a", "a.", "a b", "a\"b", "zöne"] {
            assert!(!is_label_value(text), "{text:?}");
        }
    }
}
