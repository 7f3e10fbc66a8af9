//! The address of a Unix socket.

use std::fmt;
use std::path::PathBuf;

/// The longest name or path of a Unix socket that the kernel takes, in bytes. Source: unix(7), `sun_path`.
const MAX_BYTES: usize = 107;

/// The address of a Unix socket: a name of the network namespace, which needs no file system, or a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UnixAddress {
    /// A name without its `@`; exists as long as the socket is open.
    Abstract(String),
    /// An absolute path.
    Path(PathBuf),
}

impl UnixAddress {
    /// Reads `@NAME` or `/PATH`, with or without `unix:` before it. The error says what is expected.
    pub fn parse(text: &str) -> Result<UnixAddress, String> {
        let address = text.strip_prefix("unix:").unwrap_or(text);
        let expected = || format!("{text:?} is not @NAME, /PATH, unix:@NAME or unix:/PATH");
        if address.len() > MAX_BYTES {
            return Err(format!(
                "{text:?} is longer than {MAX_BYTES} bytes, the kernel's limit for a Unix socket"
            ));
        }
        if address.chars().any(char::is_control) {
            return Err(expected());
        }
        match address.strip_prefix('@') {
            Some("") => Err(expected()),
            Some(name) => Ok(UnixAddress::Abstract(name.to_owned())),
            None if address.starts_with('/') => Ok(UnixAddress::Path(address.into())),
            None => Err(expected()),
        }
    }
}

/// `@NAME` or `/PATH`.
impl fmt::Display for UnixAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            UnixAddress::Abstract(name) => write!(f, "@{name}"),
            UnixAddress::Path(path) => write!(f, "{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_paths_are_read_and_shown() {
        for (text, shown) in [
            ("@chainsmith", Some("@chainsmith")),
            ("unix:@a", Some("@a")),
            ("unix:/run/a.sock", Some("/run/a.sock")),
            ("/run/a", Some("/run/a")),
            ("", None),
            ("@", None),
            ("unix:", None),
            ("run/a", None),
            ("http://127.0.0.1", None),
            ("@a\nb", None),
        ] {
            let read = UnixAddress::parse(text);
            assert_eq!(read.as_ref().ok().map(ToString::to_string).as_deref(), shown, "{text}: {read:?}");
        }
    }

    #[test]
    fn a_name_may_be_as_long_as_the_kernel_takes() {
        let of = |n: usize| UnixAddress::parse(&format!("@{}", "x".repeat(n)));
        assert!(of(MAX_BYTES - 1).is_ok());
        assert!(of(MAX_BYTES).unwrap_err().contains("107 bytes"));
    }
}
