//! The power switch of a host's BMC over Redfish (DMTF DSP0266): `ComputerSystem.Reset` with `ForceOff`.
//!
//! Requests are made one after the other by a blocking client on a thread of the pool; one whose caller left ends at its
//! own time. The user logs in with every request (HTTP basic, which the standard asks of each BMC): a session would be
//! left behind by a call that is cut off, and BMCs have few. TLS is not optional, no redirect is followed and no proxy
//! used: the password goes to the BMC and nowhere else.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine as _;
use novacron_core::driver::{Call, Fence, FenceTarget, Power, PowerSwitch, ensure_off};
use novacron_core::model::FenceReceipt;
use novacron_core::{Error, ErrorKind, Problem, Result};
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Value, json};
use ureq::http::{StatusCode, Uri};
use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};
use uuid::Uuid;

const OPERATION: &str = "fence.redfish";
const SYSTEMS: &str = "/redfish/v1/Systems";
/// The longest that one request is waited for.
const REQUEST: Duration = Duration::from_secs(15);
/// The longest answer that is read.
const LONGEST: u64 = 1 << 20;

/// How a [`RedfishFence`] reaches its BMC. The password is never printed.
#[derive(Clone, Debug)]
pub struct RedfishOptions {
    /// The BMC's address: `https://bmc-alpha` or `https://10.0.0.7:8443`.
    pub address: String,
    /// The `Id` of the computer system; if none is given, the BMC's only one.
    pub system: Option<String>,
    /// The system's UUID, as the host's firmware tells it (`/sys/class/dmi/id/product_uuid`): a BMC with another one is
    /// the wrong one, and is left alone.
    pub system_uuid: Option<Uuid>,
    /// A user who may switch the power.
    pub user: String,
    /// Its password.
    pub password: SecretString,
    /// Certificates in PEM of who may vouch for the BMC; Mozilla's if none are given.
    pub authorities: Option<String>,
    /// Whether the host is told to switch on again once it was off.
    pub power_on_again: bool,
}

impl RedfishOptions {
    /// The BMC at this address. The host stays off: one that was lost is to be looked at before it takes part again.
    pub fn new(
        address: impl Into<String>,
        user: impl Into<String>,
        password: impl Into<SecretString>,
    ) -> Self {
        Self {
            address: address.into(),
            system: None,
            system_uuid: None,
            user: user.into(),
            password: password.into(),
            authorities: None,
            power_on_again: false,
        }
    }
}

/// Switches a host off over Redfish.
///
/// It proves that the BMC says "Off" once the order was given, and with [`RedfishOptions::system_uuid`] that it is the
/// BMC of that very machine.
#[derive(Clone, Debug)]
pub struct RedfishFence {
    options: RedfishOptions,
    client: Arc<Client>,
}

impl RedfishFence {
    /// A fence by the BMC that the options name.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] with every field that cannot be; no message repeats a user or a password.
    pub fn new(options: RedfishOptions) -> Result<Self> {
        let mut problems = Vec::new();
        let mut wrong = |field: &str, message: &str| {
            problems.push(Problem {
                field: field.to_owned(),
                message: message.to_owned(),
            });
        };
        let uri = options.address.parse::<Uri>().ok().filter(|uri| {
            let bare = uri
                .authority()
                .is_some_and(|host| !host.as_str().contains('@'));
            bare && uri.scheme_str() == Some("https") && matches!(uri.path(), "" | "/")
        });
        if uri.is_none() {
            wrong(
                "address",
                "https:// and a host are needed, without a user or a path",
            );
        }
        let is_id = |id: &String| {
            let fits = |c: char| c.is_ascii_alphanumeric() || "-._~".contains(c);
            !id.is_empty() && id.chars().all(fits) && !id.starts_with('.')
        };
        if options.system.as_ref().is_some_and(|id| !is_id(id)) {
            wrong("system", "an Id has letters, digits and -._~");
        }
        if options.user.is_empty() || options.user.contains(':') {
            wrong("user", "a name is needed, without a colon");
        }
        let roots = options.authorities.as_deref().map(certificates);
        if matches!(roots, Some(None)) {
            wrong("authorities", "there is no certificate in PEM");
        }
        match uri {
            Some(uri) if problems.is_empty() => {
                let authority = uri.authority().map(ToString::to_string).unwrap_or_default();
                let client = Client::new(authority, &options, roots.flatten());
                Ok(Self {
                    options,
                    client: Arc::new(client),
                })
            }
            _ => Err(Error::invalid(OPERATION, problems)),
        }
    }

    async fn ask(&self, call: Call, path: String, body: Option<Value>) -> Result<Value> {
        let client = Arc::clone(&self.client);
        let limit = call.deadline.remaining().min(REQUEST);
        let asked = tokio::task::spawn_blocking(move || client.ask(limit, &path, body));
        asked.await.unwrap_or_else(|error| {
            let message = "a worker ended early";
            Err(Error::new(ErrorKind::Internal, OPERATION, message).caused_by(error))
        })
    }

    /// The computer system, once it is known to be the right one.
    async fn system(&self, call: Call) -> Result<Value> {
        let path = match &self.options.system {
            Some(id) => format!("{SYSTEMS}/{id}"),
            None => {
                let all = self.ask(call, SYSTEMS.to_owned(), None).await?;
                match all["Members"].as_array().map(Vec::as_slice) {
                    Some([one]) => local(&one["@odata.id"])?,
                    others => {
                        let count = others.map_or(0, <[_]>::len);
                        let message = format!(
                            "the BMC has {count} computer systems: the Id of the right one is needed"
                        );
                        return Err(Error::new(
                            ErrorKind::FailedPrecondition,
                            OPERATION,
                            message,
                        ));
                    }
                }
            }
        };
        let system = self.ask(call, path, None).await?;
        let uuid = system["UUID"].as_str().and_then(|uuid| uuid.parse().ok());
        match self.options.system_uuid {
            Some(wanted) if uuid != Some(wanted) => {
                let seen = uuid.map_or_else(|| "none".to_owned(), |uuid: Uuid| uuid.to_string());
                let message = format!("the wrong host: its system has UUID {seen}, not {wanted}");
                Err(Error::new(
                    ErrorKind::FailedPrecondition,
                    OPERATION,
                    message,
                ))
            }
            _ => Ok(system),
        }
    }

    async fn reset(&self, call: Call, kind: &str) -> Result<()> {
        let system = self.system(call).await?;
        let reset = &system["Actions"]["#ComputerSystem.Reset"];
        let allowed = reset["ResetType@Redfish.AllowableValues"].as_array();
        if allowed.is_some_and(|allowed| !allowed.iter().any(|value| value == kind)) {
            let message = format!("the BMC's ComputerSystem.Reset knows no {kind}");
            return Err(Error::new(ErrorKind::Unsupported, OPERATION, message));
        }
        let path = local(&reset["target"])?;
        let body = json!({ "ResetType": kind });
        self.ask(call, path, Some(body)).await.map(drop)
    }
}

/// A path that the BMC names on itself.
fn local(path: &Value) -> Result<String> {
    match path.as_str() {
        Some(path) if path.starts_with('/') && !path.starts_with("//") => Ok(path.to_owned()),
        _ => {
            let message = "the BMC's answer lacks the path of a system or of its reset";
            Err(Error::new(ErrorKind::Corrupt, OPERATION, message))
        }
    }
}

fn certificates(pem: &str) -> Option<RootCerts> {
    let items = parse_pem(pem.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .ok()?;
    let certificates: Vec<_> = items
        .into_iter()
        .filter_map(|item| match item {
            PemItem::Certificate(certificate) => Some(certificate),
            _ => None,
        })
        .collect();
    (!certificates.is_empty()).then(|| RootCerts::Specific(Arc::new(certificates)))
}

#[async_trait]
impl PowerSwitch for RedfishFence {
    async fn power(&self, call: Call) -> Result<Power> {
        match self.system(call).await?["PowerState"].as_str() {
            Some("Off") => Ok(Power::Off),
            Some(state) => Ok(Power::On(state.chars().take(32).collect())),
            None => {
                let message = "the BMC does not tell a PowerState";
                Err(Error::new(ErrorKind::Unavailable, OPERATION, message))
            }
        }
    }

    async fn switch_off(&self, call: Call) -> Result<()> {
        self.reset(call, "ForceOff").await
    }

    async fn switch_on(&self, call: Call) -> Result<()> {
        self.reset(call, "On").await
    }
}

#[async_trait]
impl Fence for RedfishFence {
    async fn fence(&self, call: Call, _: &FenceTarget) -> Result<FenceReceipt> {
        let on_again = self.options.power_on_again;
        let detail = ensure_off(self, call, on_again, OPERATION).await?;
        Ok(FenceReceipt {
            method: "redfish".to_owned(),
            detail: format!("{detail}, says the BMC {}", self.client.authority),
        })
    }
}

/// The BMC at the other end of the wire.
#[derive(Debug)]
struct Client {
    authority: String,
    login: SecretString,
    agent: ureq::Agent,
}

impl Client {
    fn new(authority: String, options: &RedfishOptions, roots: Option<RootCerts>) -> Self {
        let login = format!("{}:{}", options.user, options.password.expose_secret());
        let login = base64::engine::general_purpose::STANDARD.encode(login);
        let tls = TlsConfig::builder().root_certs(roots.unwrap_or(RootCerts::WebPki));
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .https_only(true)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .proxy(None)
            .max_idle_connections(0)
            .accept("application/json")
            .user_agent(concat!("novacron/", env!("CARGO_PKG_VERSION")))
            .tls_config(tls.build())
            .build();
        Self {
            authority,
            login: format!("Basic {login}").into(),
            agent: config.into(),
        }
    }

    /// One request: a read, or with a body one that has an effect.
    fn ask(&self, limit: Duration, path: &str, body: Option<Value>) -> Result<Value> {
        let url = format!("https://{}{path}", self.authority);
        let (login, effect) = (self.login.expose_secret(), body.is_some());
        let answer = match body {
            None => {
                let request = self.agent.get(&url).header("Authorization", login);
                request.config().timeout_global(Some(limit)).build().call()
            }
            Some(body) => {
                let request = self.agent.post(&url).header("Authorization", login);
                let request = request.header("Content-Type", "application/json");
                let request = request.config().timeout_global(Some(limit)).build();
                request.send(body.to_string())
            }
        };
        let mut response = answer.map_err(|error| self.no_answer(error, effect))?;
        let status = response.status();
        let text = response.body_mut().with_config().limit(LONGEST);
        let text = match text.read_to_string() {
            Ok(text) => text,
            // The status says enough.
            Err(_) if effect => String::new(),
            Err(error) => return Err(self.no_answer(error, effect)),
        };
        if !status.is_success() {
            return Err(self.refusal(status, &text));
        }
        if effect {
            return Ok(Value::Null);
        }
        serde_json::from_str(&text).map_err(|error| {
            let message = "the BMC's answer is not JSON";
            self.failed(ErrorKind::Corrupt, message).caused_by(error)
        })
    }

    fn refusal(&self, status: StatusCode, text: &str) -> Error {
        let kind = match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => ErrorKind::PermissionDenied,
            StatusCode::NOT_FOUND | StatusCode::GONE => ErrorKind::NotFound,
            StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT => ErrorKind::Unavailable,
            status if status.is_server_error() => ErrorKind::Unavailable,
            _ => ErrorKind::FailedPrecondition,
        };
        let words = serde_json::from_str::<Value>(text).unwrap_or_default();
        let words = words["error"]["message"].as_str().unwrap_or_default();
        let words = words.chars().filter(|c| !c.is_control()).take(200);
        let words: String = words.collect();
        self.failed(kind, &format!("the BMC answers {status}: {words}"))
    }

    /// No answer at all, or not a whole one.
    fn no_answer(&self, error: ureq::Error, effect: bool) -> Error {
        let distrusted = match &error {
            ureq::Error::Tls(_) | ureq::Error::Rustls(_) => true,
            ureq::Error::Io(error) => error.kind() == io::ErrorKind::InvalidData,
            _ => false,
        };
        let (kind, message) = if distrusted {
            (
                ErrorKind::FailedPrecondition,
                "the BMC's certificate is not trusted, or it speaks no TLS",
            )
        } else if effect {
            (ErrorKind::OutcomeUnknown, "the BMC did not answer an order")
        } else {
            (ErrorKind::Unavailable, "the BMC does not answer")
        };
        self.failed(kind, message).caused_by(error)
    }

    fn failed(&self, kind: ErrorKind, message: &str) -> Error {
        Error::new(kind, OPERATION, message.to_owned()).with("bmc", &self.authority)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_that_cannot_be_are_refused_by_field_and_without_a_secret() {
        let options = RedfishOptions {
            system: Some("../Managers/1".to_owned()),
            authorities: Some("hidden".to_owned()),
            ..RedfishOptions::new("http://root:hidden@bmc", "a:b", "hidden".to_owned())
        };
        let error = RedfishFence::new(options.clone()).unwrap_err();
        let fields: Vec<_> = error.problems().iter().map(|p| p.field.as_str()).collect();
        assert_eq!(fields, ["address", "system", "user", "authorities"]);
        assert!(!format!("{error:?} {error}").contains("hidden"));
        for address in ["bmc", "https://", "https://bmc/redfish", "ftp://bmc"] {
            let options = RedfishOptions::new(address, "admin", "hidden".to_owned());
            assert!(RedfishFence::new(options).is_err(), "{address}");
        }
        let fence = RedfishFence::new(RedfishOptions::new(
            "https://bmc:1",
            "admin",
            "hidden".to_owned(),
        ));
        let shown = format!("{:?}", fence.unwrap());
        assert!(
            shown.contains("bmc:1") && !shown.contains("hidden"),
            "{shown}"
        );
    }
}
