//! Fetching an image from a URL, going on where a broken connection left off.
//!
//! Each attempt asks for the rest by `Range`, with `If-Range` on the strong ETag (or the date) of the first answer: a
//! server that has something else by now sends all of it, and the copy begins anew. Attempts that bring nothing cost
//! the budget, with a growing pause; an attempt ends when nothing comes for [`IDLE`]. TLS is rustls with the Mozilla
//! roots; an `https` URL is never redirected to `http`. Which hosts a URL may name is for the host application to
//! decide. A URL may carry a secret: messages show neither its user nor its query.

use std::io::{self, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use novacron_core::{Error, ErrorKind, Result};
use ureq::http::{HeaderMap, StatusCode};

use super::create::{Making, invalid};
use super::layout::new_file;
use crate::failure::of_io;
use crate::task::{Stop, blocking};

const OP: &str = "storage.create";
/// An attempt ends when nothing comes for so long.
const IDLE: Duration = Duration::from_secs(30);
/// Attempts in a row that bring nothing.
const BARREN: u32 = 5;
/// Attempts in all.
const ATTEMPTS: u32 = 100;
/// The first pause; each next one is twice as long.
const PAUSE: Duration = Duration::from_millis(200);
const REDIRECTS: u32 = 5;

/// What is known of the source so far.
#[derive(Clone, Debug, Default)]
struct Progress {
    /// Bytes that the copy has.
    at: u64,
    /// Bytes in all.
    total: Option<u64>,
    /// What tells this version of the source from another.
    validator: Option<String>,
}

enum Outcome {
    Done,
    /// The connection broke, or the server asks to come again.
    Again(Error),
}

/// Copies what `url` names to `target`.
pub(super) async fn fetch(making: &Making, url: &str, target: &Path, max: u64) -> Result<()> {
    let scheme = url.split_once("://").map(|(s, _)| s.to_ascii_lowercase());
    if !matches!(scheme.as_deref(), Some("http" | "https")) {
        return Err(invalid(
            "source",
            "the URL of an image begins with http:// or https://",
        ));
    }
    let mut progress = Progress::default();
    let mut barren = 0;
    for _ in 0..ATTEMPTS {
        let (stop, _guard) = Stop::new(OP, making.deadline);
        let attempt = Attempt {
            url: url.to_owned(),
            https_only: scheme.as_deref() == Some("https"),
            target: target.to_owned(),
            max,
            stop,
        };
        let (held, before) = (Arc::clone(&making.held), progress.clone());
        let (after, outcome) = blocking(OP, move || {
            let _held = held;
            let mut progress = before;
            let outcome = attempt.run(&mut progress)?;
            Ok((progress, outcome))
        })
        .await?;
        let Outcome::Again(why) = outcome else {
            return Ok(());
        };
        barren = if after.at > progress.at {
            0
        } else {
            barren + 1
        };
        progress = after;
        if barren >= BARREN {
            return Err(why);
        }
        tracing::info!(at = progress.at, why = %why.report(), "going on with the image");
        let pause = PAUSE * 2u32.pow(barren);
        if making.deadline.remaining() <= pause {
            return Err(why);
        }
        #[expect(
            clippy::disallowed_methods,
            reason = "the pause between two attempts at a server"
        )]
        tokio::time::sleep(pause).await;
    }
    Err(again("the source broke off too often".to_owned()))
}

fn again(message: String) -> Error {
    Error::new(ErrorKind::Unavailable, OP, message)
}

/// A URL without what may be a secret.
fn shown(url: &str) -> String {
    let end = url.find(['?', '#']).unwrap_or(url.len());
    let (scheme, rest) = url[..end].split_once("://").unwrap_or(("", ""));
    let slash = rest.find('/').unwrap_or(rest.len());
    let host = rest[..slash].rsplit('@').next().unwrap_or_default();
    format!("{scheme}://{host}{}", &rest[slash..])
}

struct Attempt {
    url: String,
    https_only: bool,
    target: PathBuf,
    max: u64,
    stop: Stop,
}

impl Attempt {
    fn run(&self, progress: &mut Progress) -> Result<Outcome> {
        self.stop.check()?;
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .https_only(self.https_only)
            .max_redirects(REDIRECTS)
            .accept_encoding("identity")
            .user_agent(concat!("novacron/", env!("CARGO_PKG_VERSION")))
            .timeout_connect(Some(IDLE))
            .timeout_recv_response(Some(IDLE))
            .timeout_per_read(Some(IDLE))
            .timeout_global(Some(self.stop.deadline().remaining()))
            .build();
        let mut request = ureq::Agent::new_with_config(config).get(&self.url);
        let resumed = progress.validator.clone().filter(|_| progress.at > 0);
        if let Some(validator) = &resumed {
            request = request
                .header("Range", format!("bytes={}-", progress.at))
                .header("If-Range", validator);
        }
        let response = match request.call() {
            Ok(response) => response,
            Err(error) => return self.no_response(error),
        };
        let (parts, body) = response.into_parts();
        let headers = &parts.headers;
        match parts.status {
            StatusCode::OK => {
                *progress = Progress {
                    at: 0,
                    total: number(headers, "content-length"),
                    validator: validator(headers),
                };
            }
            StatusCode::PARTIAL_CONTENT => {
                if continues(headers) != Some((progress.at, progress.total)) {
                    *progress = Progress::default();
                    return Ok(Outcome::Again(again(
                        "the server sent another part than asked for".into(),
                    )));
                }
            }
            StatusCode::RANGE_NOT_SATISFIABLE => {
                *progress = Progress::default();
                return Ok(Outcome::Again(again(
                    "the source changed its length".into(),
                )));
            }
            status => return self.refused(status),
        }
        let encoding = headers.get("content-encoding");
        if encoding.is_some_and(|e| e.as_bytes() != b"identity") {
            return Err(invalid("source", "the server sends the image compressed"));
        }
        if let Some(total) = progress.total.filter(|t| *t > self.max) {
            return Err(self.too_large(total));
        }
        self.receive(body.into_reader(), progress)
    }

    fn receive(&self, mut body: impl io::Read, progress: &mut Progress) -> Result<Outcome> {
        let fail = |e| of_io(OP, "cannot write the copy", &self.target, e);
        let mut file = if progress.at == 0 {
            new_file(OP, &self.target)?
        } else {
            std::fs::OpenOptions::new()
                .write(true)
                .open(&self.target)
                .map_err(fail)?
        };
        file.set_len(progress.at).map_err(fail)?;
        file.seek(SeekFrom::Start(progress.at)).map_err(fail)?;
        let mut buffer = vec![0; 256 << 10];
        loop {
            self.stop.check()?;
            let got = match body.read(&mut buffer) {
                Ok(got) => got,
                Err(e) => {
                    let broke = again(format!("the connection broke after {} bytes", progress.at));
                    return Ok(Outcome::Again(broke.caused_by(e)));
                }
            };
            if got == 0 {
                break;
            }
            let after = progress.at + got as u64;
            if after > self.max {
                return Err(self.too_large(after));
            }
            file.write_all(&buffer[..got]).map_err(fail)?;
            progress.at = after;
        }
        match progress.total {
            Some(total) if progress.at < total => Ok(Outcome::Again(again(format!(
                "the server sent {} of {total} bytes",
                progress.at
            )))),
            _ => Ok(Outcome::Done),
        }
    }

    fn too_large(&self, bytes: u64) -> Error {
        invalid(
            "source",
            &format!("{bytes} bytes or more; at most {} are taken", self.max),
        )
    }

    /// A server's answer that is not the image.
    fn refused(&self, status: StatusCode) -> Result<Outcome> {
        let message = format!("{} answers {status}", shown(&self.url));
        let kind = match status {
            StatusCode::NOT_FOUND | StatusCode::GONE => ErrorKind::NotFound,
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => ErrorKind::PermissionDenied,
            StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT => ErrorKind::Unavailable,
            status if status.is_server_error() => ErrorKind::Unavailable,
            _ => ErrorKind::Invalid,
        };
        match kind {
            ErrorKind::Unavailable => Ok(Outcome::Again(again(message))),
            ErrorKind::Invalid => Err(invalid("source", &message)),
            kind => Err(Error::new(kind, OP, message)),
        }
    }

    /// No answer at all. The errors that show the URL are not passed on.
    fn no_response(&self, error: ureq::Error) -> Result<Outcome> {
        let url = shown(&self.url);
        match error {
            ureq::Error::BadUri(_) | ureq::Error::Http(_) => {
                Err(invalid("source", &format!("{url} is not a URL")))
            }
            ureq::Error::RequireHttpsOnly(_) => Err(invalid(
                "source",
                &format!("{url} leads from https to http"),
            )),
            ureq::Error::TooManyRedirects => Err(invalid(
                "source",
                &format!("{url} leads from one address to the next, more than {REDIRECTS} times"),
            )),
            error => Ok(Outcome::Again(
                again(format!("{url} does not answer")).caused_by(error),
            )),
        }
    }
}

fn number(headers: &HeaderMap, name: &str) -> Option<u64> {
    headers.get(name)?.to_str().ok()?.trim().parse().ok()
}

/// A strong ETag, else the date of the last change.
fn validator(headers: &HeaderMap) -> Option<String> {
    let text = |name| headers.get(name)?.to_str().ok().map(str::to_owned);
    text("etag")
        .filter(|tag| !tag.starts_with("W/"))
        .or_else(|| text("last-modified"))
}

/// Where a part begins, and the length of the whole.
fn continues(headers: &HeaderMap) -> Option<(u64, Option<u64>)> {
    let range = headers.get("content-range")?.to_str().ok()?;
    let (part, total) = range.trim().strip_prefix("bytes ")?.split_once('/')?;
    let (from, _) = part.split_once('-')?;
    Some((from.trim().parse().ok()?, total.trim().parse().ok()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shown_url_has_no_secret() {
        assert_eq!(
            shown("https://me:pass@host:8443/a/b.qcow2?token=secret#x"),
            "https://host:8443/a/b.qcow2"
        );
        assert_eq!(shown("http://host"), "http://host");
    }
}
