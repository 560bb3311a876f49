//! A trace's words.

use crate::control::executor::Completion;
use crate::control::plan::Command;
use crate::store::Op;

/// What a command came to, for the trace.
pub(super) fn told(completion: &Completion) -> String {
    match &completion.result {
        Ok(_) => "done".to_owned(),
        Err(error) => error.to_string(),
    }
}

/// The command's name.
pub(super) fn short(command: &Command) -> String {
    let text = format!("{command:?}");
    text.split([' ', '{', '('])
        .next()
        .unwrap_or_default()
        .to_owned()
}

/// The records that a commit writes, with what a reader of a trace wants of them.
pub(super) fn told_ops(ops: &[Op]) -> String {
    let told = ops.iter().map(|op| match op {
        Op::Delete(key) => format!("no {}", key.kind()),
        Op::Put(key, value) => {
            let json: serde_json::Value = serde_json::from_slice(value).expect("JSON");
            let body = &json["body"];
            let mut text = key
                .as_str()
                .split('/')
                .next()
                .unwrap_or_default()
                .to_owned();
            for field in [
                "epoch", "place", "phase", "state", "member", "released", "proof", "fenced",
                "power",
            ] {
                if !body[field].is_null() {
                    text += &format!(" {field}={}", body[field]);
                }
            }
            text
        }
    });
    told.collect::<Vec<_>>().join("; ")
}
