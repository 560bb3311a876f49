//! The key of a record: `<kind>/<path>`, ASCII, so that its order is the same in every store.

use std::fmt;
use std::sync::Arc;

use crate::error::{Error, ErrorKind, Result};

/// The longest key, bytes.
const MAX_BYTES: usize = 512;

/// The key of a record. Cheap to clone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(Arc<str>);

impl Key {
    /// A key from text.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] unless it is 1 to 512 characters of `[a-z0-9A-Z._:@-]` in parts joined by single slashes.
    pub fn new(text: impl Into<Arc<str>>) -> Result<Self> {
        let text = text.into();
        let plain =
            |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b':' | b'@' | b'-');
        let ok = text.len() <= MAX_BYTES
            && text
                .split('/')
                .all(|part| !part.is_empty() && part.bytes().all(plain));
        if ok {
            Ok(Self(text))
        } else {
            let shown: String = text.chars().take(80).collect();
            Err(Error::new(
                ErrorKind::Invalid,
                "store.key",
                format!(
                    "{shown:?} is not a key: 1 to {MAX_BYTES} characters [a-zA-Z0-9._:@-] in parts joined by '/'"
                ),
            ))
        }
    }

    /// For keys made of parts that are valid by their types.
    pub(crate) fn of_parts(parts: &[&dyn fmt::Display]) -> Self {
        use fmt::Write as _;
        let mut text = String::with_capacity(64);
        for (i, part) in parts.iter().enumerate() {
            let _ = write!(text, "{}{part}", if i == 0 { "" } else { "/" });
        }
        debug_assert!(Self::new(text.as_str()).is_ok(), "{text}");
        Self(text.into())
    }

    /// The key as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The first part: the record's kind.
    pub fn kind(&self) -> &str {
        self.0.split('/').next().unwrap_or_default()
    }

    /// The parts after the kind.
    pub fn path(&self) -> impl Iterator<Item = &str> {
        self.0.split('/').skip(1)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl AsRef<str> for Key {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

// Lets ordered maps be searched by a prefix, which need not be a key. Sound: the order is the text's.
impl std::borrow::Borrow<str> for Key {
    fn borrow(&self) -> &str {
        &self.0
    }
}
