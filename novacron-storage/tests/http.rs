//! Images from a URL, against a small server that misbehaves on purpose.
#![cfg(feature = "http")]
#![allow(clippy::unwrap_used, reason = "to panic is to report")]

mod support;

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use novacron_core::driver::{ArtefactId, CreateSource, StorageBackend as _};
use novacron_core::model::{ImageSource, VolumeFormat};
use novacron_core::{ErrorKind, Result};
use support::{Fixture, MIB, call, disk, same};

/// What the server does with one request: the body, and how to answer. Given the number of the request.
type Answer = Box<dyn Fn(usize, Option<u64>) -> Reply + Send>;

struct Reply {
    status: &'static str,
    headers: Vec<String>,
    /// Claimed length, and what is sent before the connection is cut.
    length: usize,
    body: Vec<u8>,
}

struct Server {
    url: String,
    /// The `Range` of each request.
    asked: Arc<Mutex<Vec<Option<u64>>>>,
}

impl Server {
    fn start(answer: Answer) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!(
            "http://{}/disk.img?token=secret",
            listener.local_addr().unwrap()
        );
        let asked = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&asked);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(stream) = stream else { return };
                let _ = serve(stream, &answer, &seen);
            }
        });
        Self { url, asked }
    }

    fn source(&self) -> CreateSource {
        CreateSource::Import {
            source: ImageSource::Url(self.url.clone()),
            sha256: None,
        }
    }
}

fn serve(
    stream: TcpStream,
    answer: &Answer,
    seen: &Mutex<Vec<Option<u64>>>,
) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let mut range = None;
    while let Some(line) = lines.next().transpose()? {
        if line.is_empty() {
            break;
        }
        if let Some(from) = line.to_ascii_lowercase().strip_prefix("range: bytes=") {
            range = from.trim_end_matches('-').parse().ok();
        }
    }
    let number = {
        let mut seen = seen.lock().unwrap();
        seen.push(range);
        seen.len() - 1
    };
    let reply = answer(number, range);
    let mut head = format!("HTTP/1.1 {}\r\nConnection: close\r\n", reply.status);
    head += &format!("Content-Length: {}\r\n", reply.length);
    for header in &reply.headers {
        head += &format!("{header}\r\n");
    }
    head += "\r\n";
    let mut stream = stream;
    stream.write_all(head.as_bytes())?;
    stream.write_all(&reply.body)?;
    stream.flush()
}

/// The whole or the rest, cut after `cut` bytes.
fn part(whole: &[u8], from: Option<u64>, cut: usize, tag: &str) -> Reply {
    let start = from.unwrap_or(0) as usize;
    let rest = &whole[start..];
    let mut headers = vec![format!("ETag: \"{tag}\"")];
    if from.is_some() {
        let last = whole.len() - 1;
        headers.push(format!(
            "Content-Range: bytes {start}-{last}/{}",
            whole.len()
        ));
    }
    Reply {
        status: if from.is_some() {
            "206 Partial Content"
        } else {
            "200 OK"
        },
        headers,
        length: rest.len(),
        body: rest[..rest.len().min(cut)].to_vec(),
    }
}

fn status(status: &'static str) -> Reply {
    Reply {
        status,
        headers: Vec::new(),
        length: 0,
        body: Vec::new(),
    }
}

fn image() -> Vec<u8> {
    let mut bytes = disk(4 * MIB, &[]);
    for (at, byte) in bytes.iter_mut().enumerate() {
        *byte = (at / 1000) as u8;
    }
    bytes
}

async fn import(t: &Fixture, server: &Server) -> Result<ArtefactId> {
    let id = ArtefactId::Image(t.image());
    t.create(id, 0, VolumeFormat::Qcow2, server.source())
        .await?;
    Ok(id)
}

#[tokio::test]
async fn a_cut_connection_is_resumed() {
    let t = Fixture::new().await;
    let whole = image();
    let server = Server::start(Box::new({
        let whole = whole.clone();
        move |_, from| part(&whole, from, 1_500_000, "v1")
    }));
    let id = import(&t, &server).await.unwrap();
    same(&t.read(id, None).await, &whole);
    let asked = server.asked.lock().unwrap().clone();
    assert_eq!(asked, [None, Some(1_500_000), Some(3_000_000)]);
}

#[tokio::test]
async fn a_source_that_changes_is_fetched_anew() {
    let t = Fixture::new().await;
    let (old, new) = (disk(4 * MIB, &[(1, 0, 4 * MIB)]), image());
    let server = Server::start(Box::new({
        let new = new.clone();
        move |number, _| match number {
            0 => part(&old, None, 1_000_000, "old"),
            _ => part(&new, None, usize::MAX, "new"),
        }
    }));
    let id = import(&t, &server).await.unwrap();
    same(&t.read(id, None).await, &new);
    assert_eq!(*server.asked.lock().unwrap(), [None, Some(1_000_000)]);
}

#[tokio::test]
async fn a_server_without_ranges_is_asked_for_all_again() {
    let t = Fixture::new().await;
    let whole = image();
    let server = Server::start(Box::new({
        let whole = whole.clone();
        move |number, from| {
            assert_eq!(from, None);
            let cut = if number == 0 { 100_000 } else { usize::MAX };
            let mut reply = part(&whole, None, cut, "v1");
            reply.headers.clear();
            reply
        }
    }));
    let id = import(&t, &server).await.unwrap();
    same(&t.read(id, None).await, &whole);
}

#[tokio::test]
async fn a_wrong_part_and_a_busy_server_cost_an_attempt() {
    let t = Fixture::new().await;
    let whole = image();
    let server = Server::start(Box::new({
        let whole = whole.clone();
        move |number, from| match number {
            0 => status("503 Service Unavailable"),
            1 => part(&whole, None, 1_000_000, "v1"),
            2 => part(&whole, Some(5), usize::MAX, "v1"),
            _ => part(&whole, from, usize::MAX, "v1"),
        }
    }));
    let id = import(&t, &server).await.unwrap();
    same(&t.read(id, None).await, &whole);
}

#[tokio::test]
async fn what_cannot_be_had_is_said_without_the_secret() {
    let t = Fixture::new().await;
    for (answer, kind) in [
        ("404 Not Found", ErrorKind::NotFound),
        ("403 Forbidden", ErrorKind::PermissionDenied),
        ("400 Bad Request", ErrorKind::Invalid),
        ("500 Internal Server Error", ErrorKind::Unavailable),
    ] {
        let server = Server::start(Box::new(move |_, _| status(answer)));
        let error = import(&t, &server).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(!error.report().contains("secret"), "{}", error.report());
        assert!(t.left().is_empty());
    }
    // Nobody listens, or it is no URL of ours.
    let gone = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    for (url, kind) in [
        (format!("http://{gone}/a?secret"), ErrorKind::Unavailable),
        ("http://a b/secret".into(), ErrorKind::Invalid),
        ("file:///etc/passwd".into(), ErrorKind::Invalid),
    ] {
        let server = Server {
            url,
            asked: Arc::default(),
        };
        let error = import(&t, &server).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(t.left().is_empty());
    }
}

#[tokio::test]
async fn absurd_lengths_and_redirects_are_refused() {
    let t = Fixture::new().await;
    let server = Server::start(Box::new(|_, _| {
        let mut reply = status("200 OK");
        reply.length = 1 << 60;
        reply
    }));
    let error = import(&t, &server).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    let server = Server::start(Box::new(|_, _| {
        let mut reply = status("302 Found");
        reply.headers.push("Location: /again".into());
        reply
    }));
    let error = import(&t, &server).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    assert!(t.left().is_empty());
}

#[tokio::test]
async fn a_body_that_is_no_image_is_refused_after_the_checksum() {
    let t = Fixture::new().await;
    let server = Server::start(Box::new(|_, _| part(b"<html>not here", None, 99, "x")));
    let error = import(&t, &server).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    let id = ArtefactId::Image(t.image());
    let source = CreateSource::Import {
        source: ImageSource::Url(server.url.clone()),
        sha256: Some("0".repeat(64)),
    };
    let request = t.request(id, 0, VolumeFormat::Qcow2, source);
    let error = t.pool.create(call(), &request).await.unwrap_err();
    assert_eq!(error.problems()[0].field, "sha256", "{error}");
    assert!(t.left().is_empty());
}
