//! The lines that QEMU sends, decoded without trust in their shape.

use serde_json::Value;

/// An asynchronous event of QEMU.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Event {
    /// Its name, such as `SHUTDOWN`.
    pub(crate) name: String,
    /// Its data; `Null` when there is none.
    pub(crate) data: Value,
}

/// A refusal, in QEMU's words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// The error class.
    pub(crate) class: String,
    /// The description.
    pub(crate) description: String,
}

/// One line from QEMU.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Message {
    /// The first line of a session.
    Greeting,
    /// The answer to the command with this id.
    Reply {
        id: u64,
        outcome: Result<Value, Refusal>,
    },
    /// An event.
    Event(Event),
    /// Anything else, such as the error for a line that QEMU could not parse.
    Other,
}

impl Message {
    /// Decodes a line; never fails, since a line that makes no sense is [`Message::Other`].
    pub(crate) fn decode(line: &[u8]) -> Self {
        let Ok(Value::Object(mut object)) = serde_json::from_slice::<Value>(line) else {
            return Self::Other;
        };
        if object.contains_key("QMP") {
            return Self::Greeting;
        }
        if let Some(Value::String(name)) = object.remove("event") {
            return Self::Event(Event {
                name,
                data: object.remove("data").unwrap_or(Value::Null),
            });
        }
        let Some(id) = object.get("id").and_then(Value::as_u64) else {
            return Self::Other;
        };
        if let Some(value) = object.remove("return") {
            return Self::Reply {
                id,
                outcome: Ok(value),
            };
        }
        match object.remove("error") {
            Some(error) => {
                let text = |key: &str| {
                    error
                        .get(key)
                        .and_then(Value::as_str)
                        .unwrap_or("unknown")
                        .to_owned()
                };
                Self::Reply {
                    id,
                    outcome: Err(Refusal {
                        class: text("class"),
                        description: text("desc"),
                    }),
                }
            }
            None => Self::Other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn decodes_each_kind() {
        assert_eq!(
            Message::decode(br#"{"QMP": {"version": {}}}"#),
            Message::Greeting
        );
        assert_eq!(
            Message::decode(br#"{"id": 7, "return": {"running": true}}"#),
            Message::Reply {
                id: 7,
                outcome: Ok(serde_json::json!({"running": true}))
            }
        );
        assert_eq!(
            Message::decode(br#"{"id": 7, "error": {"class": "GenericError", "desc": "no"}}"#),
            Message::Reply {
                id: 7,
                outcome: Err(Refusal {
                    class: "GenericError".into(),
                    description: "no".into()
                })
            }
        );
        assert_eq!(
            Message::decode(br#"{"timestamp": {}, "event": "STOP"}"#),
            Message::Event(Event {
                name: "STOP".into(),
                data: Value::Null
            })
        );
    }

    proptest! {
        #[test]
        fn never_panics_on_rubbish(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Message::decode(&bytes);
        }

        #[test]
        fn never_panics_on_odd_objects(
            key in "(id|return|error|event|QMP|data)",
            value in "(null|1|-1|\"x\"|\\[\\]|\\{\\}|1e400|\\{\"class\":3\\})",
        ) {
            let _ = Message::decode(format!("{{\"id\":1,\"{key}\":{value}}}").as_bytes());
        }
    }
}
