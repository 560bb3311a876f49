//! When two values of a record are the same: as JSON, since a store may keep JSON in a form of its own.

use serde_json::{Number, Value};

/// Whether two values are equal byte by byte, or as JSON: numbers by their value, members in whatever order.
pub(crate) fn equal(one: &[u8], other: &[u8]) -> bool {
    let json = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).ok();
    one == other
        || json(one)
            .zip(json(other))
            .is_some_and(|(one, other)| same(&one, &other))
}

fn same(one: &Value, other: &Value) -> bool {
    match (one, other) {
        (Value::Number(one), Value::Number(other)) => one == other || same_number(one, other),
        (Value::Array(one), Value::Array(other)) => {
            one.len() == other.len() && one.iter().zip(other).all(|(one, other)| same(one, other))
        }
        (Value::Object(one), Value::Object(other)) => {
            let alike = |(name, one)| other.get(name).is_some_and(|other| same(one, other));
            one.len() == other.len() && one.iter().all(alike)
        }
        _ => one == other,
    }
}

/// As `1e3` and `1000`. Two integers that differ may be one as floating point, so one side has to be that.
fn same_number(one: &Number, other: &Number) -> bool {
    (one.is_f64() || other.is_f64()) && one.as_f64() == other.as_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_equal_as_json() {
        for (one, other) in [
            (r#"{"a":1,"b":[2,null]}"#, r#"{ "b": [2, null], "a": 1 }"#),
            ("1e3", "1000"),
            (r#"{"n":-0.0}"#, r#"{"n":0}"#),
            (r#""\u00e4""#, "\"ä\""),
            ("no JSON", "no JSON"),
        ] {
            assert!(equal(one.as_bytes(), other.as_bytes()), "{one} {other}");
        }
        for (one, other) in [
            (r#"{"a":1}"#, r#"{"a":1,"b":1}"#),
            (r#"{"a":1,"c":1}"#, r#"{"a":1,"b":1}"#),
            ("[1,2]", "[2,1]"),
            ("9007199254740993", "9007199254740992"),
            ("1", "\"1\""),
            ("no JSON", "no  JSON"),
            ("null", "no JSON"),
        ] {
            assert!(!equal(one.as_bytes(), other.as_bytes()), "{one} {other}");
        }
    }
}
