//! The client against a peer on a real socket: one that behaves, hangs, dies, or talks rubbish; and against QEMU.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};

use super::{Qmp, QmpError};

const SOON: Duration = Duration::from_secs(10);

struct Peer {
    _dir: tempfile::TempDir,
    path: PathBuf,
    listener: UnixListener,
}

impl Peer {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("qmp.sock");
        let listener = UnixListener::bind(&path).unwrap();
        Self {
            _dir: dir,
            path,
            listener,
        }
    }

    /// Accepts, greets and answers the capability negotiation.
    async fn greeted(&self) -> BufReader<UnixStream> {
        let (stream, _) = self.listener.accept().await.unwrap();
        let mut stream = BufReader::new(stream);
        stream
            .write_all(b"{\"QMP\": {\"version\": {}}}\r\n")
            .await
            .unwrap();
        let mut line = String::new();
        stream.read_line(&mut line).await.unwrap();
        assert!(line.contains("qmp_capabilities"));
        stream
            .write_all(b"{\"return\": {}, \"id\": 1}\r\n")
            .await
            .unwrap();
        stream
    }
}

#[tokio::test]
async fn a_peer_that_never_greets_is_a_deadline() {
    let peer = Peer::new();
    let error = Qmp::connect(&peer.path, Duration::from_millis(50))
        .await
        .unwrap_err();
    assert!(
        matches!(error, QmpError::Deadline { ref command, .. } if command == "greeting"),
        "{error}"
    );
}

#[tokio::test]
async fn a_hang_names_the_command_and_a_late_answer_does_no_harm() {
    let peer = Peer::new();
    let (qmp, mut stream) = tokio::join!(Qmp::connect(&peer.path, SOON), peer.greeted());
    let qmp = qmp.unwrap();
    let error = qmp
        .execute("query-status", json!({}), Duration::from_millis(50))
        .await
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "QEMU did not answer `query-status` within 50ms"
    );

    let answers = async {
        stream
            .write_all(b"rubbish\n\n[]\n{\"id\":2,\"return\":1}\n{\"id\":99,\"return\":1}\n")
            .await
            .unwrap();
        stream
            .write_all(b"{\"event\":\"STOP\"}\n{\"id\":3,\"return\":\"third\"}\n")
            .await
            .unwrap();
    };
    let mut events = qmp.events();
    let (answer, ()) = tokio::join!(qmp.execute("query-name", json!({}), SOON), answers);
    assert_eq!(answer.unwrap(), json!("third"));
    assert_eq!(events.recv().await.unwrap().name, "STOP");
}

#[tokio::test]
async fn a_death_fails_every_call_at_once() {
    let peer = Peer::new();
    let (qmp, stream) = tokio::join!(Qmp::connect(&peer.path, SOON), peer.greeted());
    let qmp = qmp.unwrap();
    let started = Instant::now();
    let calls =
        futures::future::join_all((0..20).map(|_| qmp.execute("query-block", json!({}), SOON)));
    let (answers, ()) = tokio::join!(calls, async { drop(stream) });
    assert!(
        answers
            .iter()
            .all(|answer| matches!(answer, Err(QmpError::Disconnected { .. })))
    );
    assert!(matches!(
        qmp.execute("stop", json!({}), SOON).await,
        Err(QmpError::Disconnected { .. })
    ));
    qmp.closed().await;
    assert!(started.elapsed() < Duration::from_secs(5));
}

struct Qemu(Child);

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_real_qemu_answers_concurrently_refuses_and_sends_events() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("qmp.sock");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    rustix::io::fcntl_setfd(&listener, rustix::io::FdFlags::empty()).unwrap();
    let chardev = {
        use std::os::fd::AsRawFd;
        format!(
            "socket,id=qmp,fd={},server=on,wait=off",
            listener.as_raw_fd()
        )
    };
    let child = Command::new("qemu-system-x86_64")
        .args([
            "-M",
            "none",
            "-S",
            "-nodefaults",
            "-display",
            "none",
            "-chardev",
            &chardev,
        ])
        .args(["-mon", "chardev=qmp,mode=control"])
        .stderr(Stdio::null())
        .spawn()
        .expect("qemu-system-x86_64 is missing: apt-get install qemu-system-x86");
    let mut qemu = Qemu(child);
    drop(listener);

    let qmp = Qmp::connect(&path, SOON).await.unwrap();
    let calls =
        futures::future::join_all((0..50).map(|_| qmp.execute("query-status", json!({}), SOON)));
    assert!(
        calls
            .await
            .into_iter()
            .all(|answer| answer.unwrap()["running"] == false)
    );
    let refused = qmp
        .execute("device_del", json!({ "id": "nobody" }), SOON)
        .await
        .unwrap_err();
    assert_eq!(refused.class(), Some("DeviceNotFound"));
    assert!(refused.to_string().contains("nobody"), "{refused}");

    let mut events = qmp.events();
    qmp.execute("quit", json!({}), SOON).await.unwrap();
    assert_eq!(events.recv().await.unwrap().name, "SHUTDOWN");
    qmp.closed().await;
    assert!(qemu.0.wait().unwrap().success());
}
