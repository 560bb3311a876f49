//! What is logged: an interrupted call's leftovers are told, what belongs to a call is not.
#![allow(clippy::unwrap_used, reason = "to panic is to report")]

mod support;

use std::fmt::{self, Write as _};
use std::sync::{Arc, Mutex};

use novacron_core::driver::StorageBackend as _;
use novacron_core::model::VolumeFormat;
use support::{Fixture, MIB, call};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

/// Keeps what is logged at INFO and above.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<String>>>);

struct Text(String);

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let _ = write!(self.0, "{field}={value:?} ");
    }
}

impl Subscriber for Lines {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= Level::INFO
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut text = Text(String::new());
        event.record(&mut text);
        self.0.lock().unwrap().push(text.0);
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

#[tokio::test]
async fn only_what_was_interrupted_is_told() {
    let lines = Lines::default();
    tracing::subscriber::set_global_default(lines.clone()).unwrap();
    let t = Fixture::new().await;
    let id = t.blank(MIB, VolumeFormat::Qcow2).await;
    t.write(id, 1, 0, 4096).await;
    let snapshot = t.snap(id).await;
    for _ in 0..2 {
        t.write(id, 2, 0, 4096).await;
        t.pool.restore(call(), id, snapshot).await.unwrap();
    }
    t.pool.snapshot_delete(call(), id, snapshot).await.unwrap();
    assert_eq!(*lines.0.lock().unwrap(), [""; 0]);

    let left = t.pool.dir().join(format!("volumes/{id}/left.qcow2"));
    std::fs::write(&left, "half").unwrap();
    t.snap(id).await;
    let told = lines.0.lock().unwrap().join("\n");
    assert!(!left.exists());
    assert!(
        told.contains("interrupted") && told.contains("left.qcow2"),
        "{told}"
    );
}
