//! Specs as they come over the wire.

use serde::de::DeserializeOwned;

use super::request::problem;
use crate::error::{Error, Result};

/// The most characters of a message: it may quote what was found, and that may be anything.
const LONGEST: usize = 300;

fn told(error: &serde_json::Error) -> String {
    let message = error.to_string();
    match message.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &message[..end]),
        None => message,
    }
}

/// Reads a spec ([`VmSpec`](crate::VmSpec), [`VolumeSpec`](super::VolumeSpec), [`ImageSpec`](super::ImageSpec)) from JSON,
/// as the body of a request.
///
/// ```
/// use novacron_core::{VmSpec, cluster::spec_from_json};
/// let error = spec_from_json::<VmSpec>(br#"{"name": "a", "hardware": {"memory": 512, "vcpus": "two"}}"#).unwrap_err();
/// assert_eq!(error.problems()[0].field, "hardware.vcpus");
/// ```
///
/// # Errors
/// [`ErrorKind::Invalid`](crate::ErrorKind::Invalid) with the field at which the JSON stops being a spec, what was found
/// there and what would be right.
pub fn spec_from_json<T: DeserializeOwned>(json: &[u8]) -> Result<T> {
    let mut reader = serde_json::Deserializer::from_slice(json);
    let spec = serde_path_to_error::deserialize(&mut reader).map_err(|error| {
        let path = error.path().to_string();
        // The root is told as a dot.
        let field = if path == "." { "spec" } else { &path };
        problem(field, told(error.inner()))
    });
    let spec = spec.and_then(|spec| match reader.end() {
        Ok(()) => Ok(spec),
        Err(error) => Err(problem("spec", told(&error))),
    });
    spec.map_err(|problem| Error::invalid("spec.read", vec![problem]))
}
