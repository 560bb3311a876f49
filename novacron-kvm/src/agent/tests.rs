//! The client against a guest that behaves, one that is silent, and ones that send whatever they like.

use std::time::Duration;

use proptest::prelude::*;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixListener;

use super::*;

const SOON: Duration = Duration::from_secs(10);

struct Guest {
    dir: tempfile::TempDir,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Guest {
    /// A guest that answers the sync after `before`, and each command by `answer`.
    fn new(before: Vec<u8>, answer: impl Fn(&str, &Value) -> Vec<u8> + Send + 'static) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("agent.sock")).unwrap();
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let mut stream = BufReader::new(stream);
                let mut line = Vec::new();
                while stream.read_until(b'\n', &mut line).await.unwrap_or(0) > 0 {
                    let text = if line[0] == 0xff { &line[1..] } else { &line };
                    let request: Value = serde_json::from_slice(text).unwrap();
                    let command = request["execute"].as_str().unwrap();
                    let mut bytes = before.clone();
                    if command == "guest-sync-delimited" {
                        bytes.push(0xff);
                        bytes.extend(
                            format!("{{\"return\":{}}}\n", request["arguments"]["id"]).bytes(),
                        );
                    } else {
                        bytes = answer(command, &request["arguments"]);
                    }
                    if stream.write_all(&bytes).await.is_err() {
                        break;
                    }
                    line.clear();
                }
            }
        });
        Self { dir, task }
    }

    fn agent(&self) -> Agent {
        Agent::new(self.dir.path().join("agent.sock"))
    }
}

#[tokio::test]
async fn a_program_runs_and_old_answers_are_skipped() {
    let asked = std::sync::atomic::AtomicUsize::new(0);
    let guest = Guest::new(
        b"{\"return\": 1}\n{\"ret".to_vec(),
        move |command, _| match command {
            "guest-exec" => b"{\"return\":{\"pid\":7}}\n".to_vec(),
            _ if asked.fetch_add(1, std::sync::atomic::Ordering::Relaxed) < 2 => {
                b"{\"return\":{\"exited\":false}}\n".to_vec()
            }
            _ => b"{\"return\":{\"exited\":true,\"exitcode\":3,\"out-data\":\"aGk=\"}}\n".to_vec(),
        },
    );
    let request = ExecRequest {
        program: "/bin/true".into(),
        arguments: vec![],
        environment: vec![],
        input: bytes::Bytes::new(),
    };
    let output = guest.agent().exec(&request, SOON).await.unwrap();
    assert_eq!(
        (output.exit_code, output.signal, &output.stdout[..]),
        (Some(3), None, &b"hi"[..])
    );
    assert!(!output.stdout_truncated && !output.stderr_truncated);
}

#[tokio::test]
async fn a_signal_a_large_code_and_output_that_was_cut_are_told() {
    let request = ExecRequest {
        program: "/bin/true".into(),
        arguments: vec![],
        environment: vec![],
        input: bytes::Bytes::new(),
    };
    let ends = async |end: &'static str| {
        let guest = Guest::new(vec![], move |command, _| match command {
            "guest-exec" => b"{\"return\":{\"pid\":7}}\n".to_vec(),
            _ => format!("{{\"return\":{{\"exited\":true,{end}}}}}\n").into_bytes(),
        });
        guest.agent().exec(&request, SOON).await.unwrap()
    };
    let killed = ends("\"signal\":9,\"err-data\":\"aGk=\",\"err-truncated\":true").await;
    assert_eq!((killed.exit_code, killed.signal), (None, Some(9)));
    assert_eq!(killed.stderr, "hi");
    assert!(killed.stderr_truncated && !killed.stdout_truncated);
    let crashed = ends("\"exitcode\":3221225477,\"out-truncated\":true").await;
    assert_eq!(crashed.exit_code, Some(0xc000_0005_u32.cast_signed()));
    assert!(crashed.stdout_truncated && !crashed.stderr_truncated);
}

#[tokio::test]
async fn a_silent_guest_is_a_deadline_and_the_next_call_gets_its_turn() {
    let guest = Guest::new(vec![], |command, _| match command {
        "guest-ping" => b"{\"return\":{}}\n".to_vec(),
        _ => Vec::new(),
    });
    let agent = guest.agent();
    let error = agent.freeze(Duration::from_millis(50)).await.unwrap_err();
    assert!(matches!(error, AgentError::Deadline { .. }), "{error}");
    agent.ping(SOON).await.unwrap();
}

#[tokio::test]
async fn a_refusal_carries_the_agents_words_and_addresses_are_read() {
    let guest = Guest::new(vec![], |command, _| {
        match command {
        "guest-network-get-interfaces" => br#"{"return":[{"name":"eth0","hardware-address":"52:54:00:00:00:01",
            "ip-addresses":[{"ip-address":"10.0.2.15","prefix":24},{"ip-address":"nonsense"}]},{"no":"name"}]}"#
            .iter()
            .copied()
            .filter(|&byte| byte != b'\n')
            .chain([b'\n'])
            .collect(),
        _ => b"{\"error\":{\"class\":\"GenericError\",\"desc\":\"not\\u0007 allowed\"}}\n".to_vec(),
    }
    });
    let agent = guest.agent();
    let error = agent.thaw(SOON).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "the guest agent refused `guest-fsfreeze-thaw`: not allowed"
    );
    let list = agent.interfaces(SOON).await.unwrap();
    assert_eq!(
        (list.len(), list[0].addresses.as_slice()),
        (1, &[("10.0.2.15".parse().unwrap(), 24)][..])
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    /// Whatever the guest sends, every call ends, and soon.
    #[test]
    fn rubbish_neither_breaks_nor_hangs(
        before in proptest::collection::vec(any::<u8>(), 0..300),
        answer in prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..300),
            "\\{\"return\":(\\{\"pid\":-?[0-9]{1,20}\\}|\\[[0-9,]{0,9}\\]|null|\"x\")\\}\n".prop_map(String::into_bytes),
        ],
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let guest = Guest::new(before, move |_, _| answer.clone());
            let agent = guest.agent();
            let request =
                ExecRequest { program: "x".into(), arguments: vec![], environment: vec![], input: bytes::Bytes::new() };
            let brief = Duration::from_millis(20);
            let calls = async {
                let _ = agent.exec(&request, brief).await;
                let _ = agent.interfaces(brief).await;
            };
            tokio::time::timeout(SOON, calls).await.unwrap();
        });
    }
}
