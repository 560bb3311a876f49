//! The power switch of a host's BMC over IPMI, by the system's `ipmitool`.
//!
//! Each step is one run of the program, which ends with the call or when its caller leaves. The password goes to it by
//! the environment: the arguments of a process can be read by everybody on the machine. IPMI 2.0 (RMCP+) proves that the
//! user knows the password and encrypts; it does not prove who the BMC is, and hands a hash of the password to whoever
//! asks for it. So it belongs on a network of its own, and Redfish is to be preferred where there is both.

use std::io;
use std::path::PathBuf;
use std::process::{Output, Stdio};
use std::time::Duration;

use async_trait::async_trait;
use novacron_core::driver::{Call, Fence, FenceTarget, Power, PowerSwitch, ensure_off};
use novacron_core::model::FenceReceipt;
use novacron_core::{Error, ErrorKind, Problem, Result};
use secrecy::{ExposeSecret, SecretString};
use tokio::process::Command;
use tokio::time::timeout;

const OPERATION: &str = "fence.ipmi";
/// The longest that one run of the program is waited for.
const RUN: Duration = Duration::from_secs(20);

/// How an [`IpmiFence`] reaches its BMC. The password is never printed.
#[derive(Clone, Debug)]
pub struct IpmiOptions {
    /// The BMC's name or address.
    pub host: String,
    /// Its UDP port.
    pub port: u16,
    /// A user who may switch the power.
    pub user: String,
    /// Its password.
    pub password: SecretString,
    /// The program.
    pub program: PathBuf,
    /// Whether the host is told to switch on again once it was off.
    pub power_on_again: bool,
}

impl IpmiOptions {
    /// The BMC at this address, on the usual port, by the `ipmitool` of the `PATH`. The host stays off: one that was lost
    /// is to be looked at before it takes part again.
    pub fn new(
        host: impl Into<String>,
        user: impl Into<String>,
        password: impl Into<SecretString>,
    ) -> Self {
        Self {
            host: host.into(),
            port: 623,
            user: user.into(),
            password: password.into(),
            program: "ipmitool".into(),
            power_on_again: false,
        }
    }
}

/// Switches a host off over IPMI 2.0.
///
/// It proves that the BMC says "off" once the order was given. IPMI does not tell which host a BMC belongs to: that the
/// address is the node's is the host application's to know.
#[derive(Clone, Debug)]
pub struct IpmiFence {
    options: IpmiOptions,
}

impl IpmiFence {
    /// A fence by the BMC that the options name.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] for a host or a user that is empty or would be taken for an option.
    pub fn new(options: IpmiOptions) -> Result<Self> {
        let fields = [("host", &options.host), ("user", &options.user)];
        let wrong = fields
            .into_iter()
            .filter(|(_, text)| text.is_empty() || text.starts_with('-') || text.contains('\0'));
        let problems: Vec<_> = wrong
            .map(|(field, _)| Problem {
                field: field.to_owned(),
                message: "a name is needed, which does not begin with -".to_owned(),
            })
            .collect();
        if !problems.is_empty() {
            return Err(Error::invalid(OPERATION, problems));
        }
        Ok(Self { options })
    }

    /// Runs `ipmitool chassis power …`; what it printed.
    async fn chassis_power(&self, call: Call, verb: &str) -> Result<String> {
        let options = &self.options;
        let mut command = Command::new(&options.program);
        command
            // With one -v, it says why a session was not to be had.
            .args(["-v", "-I", "lanplus", "-N", "1", "-R", "3", "-E"])
            .args(["-H", &options.host, "-p", &options.port.to_string()])
            .args(["-U", &options.user, "chassis", "power", verb])
            .env_clear()
            .env("LC_ALL", "C")
            .env("IPMI_PASSWORD", options.password.expose_secret())
            .envs(std::env::var_os("PATH").map(|path| ("PATH", path)))
            .stdin(Stdio::null())
            .kill_on_drop(true);
        let limit = call.deadline.remaining().min(RUN);
        let ran = timeout(limit, command.output()).await;
        let output = match ran {
            Err(_) => return Err(self.failed(ErrorKind::Unavailable, "the BMC does not answer")),
            Ok(Err(error)) => return Err(self.not_run(error)),
            Ok(Ok(output)) => output,
        };
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned());
        }
        let (kind, message) = meaning(&output);
        Err(self.failed(kind, &message))
    }

    fn not_run(&self, error: io::Error) -> Error {
        let program = self.options.program.display();
        if error.kind() == io::ErrorKind::NotFound {
            let message =
                format!("there is no {program}; on Debian and Ubuntu: apt-get install ipmitool");
            return Error::new(ErrorKind::Unsupported, OPERATION, message);
        }
        let message = format!("cannot start {program}");
        Error::new(ErrorKind::Unsupported, OPERATION, message).caused_by(error)
    }

    fn failed(&self, kind: ErrorKind, message: &str) -> Error {
        let IpmiOptions { host, port, .. } = &self.options;
        Error::new(kind, OPERATION, message.to_owned()).with("bmc", format!("{host}:{port}"))
    }
}

/// What the program's last words mean.
fn meaning(output: &Output) -> (ErrorKind, String) {
    let words = String::from_utf8_lossy(&output.stderr);
    let says = |text: &str| words.contains(text);
    if says("HMAC is invalid") {
        return (
            ErrorKind::PermissionDenied,
            "the BMC does not take the password".to_owned(),
        );
    }
    if says("Address lookup for") || says("Could not open socket") {
        return (
            ErrorKind::Unavailable,
            "the BMC's name is not known, or its network is not reached".to_owned(),
        );
    }
    if says("unauthorized name") {
        let message = "the BMC does not take the user".to_owned();
        return (ErrorKind::PermissionDenied, message);
    }
    if says("no response from RAKP") {
        let message = "the BMC ceased to answer at the login: perhaps it does not know the user";
        return (ErrorKind::Unavailable, message.to_owned());
    }
    if says("Insufficient privilege") || says("Set Session Privilege Level") {
        return (
            ErrorKind::PermissionDenied,
            "the user may not switch the power".to_owned(),
        );
    }
    if says("Unable to establish IPMI v2") {
        return (ErrorKind::Unavailable, "the BMC does not answer".to_owned());
    }
    let last = words.lines().rev().find(|line| !line.trim().is_empty());
    let last: String = last.unwrap_or("nothing").trim().chars().take(200).collect();
    (
        ErrorKind::Unavailable,
        format!("ipmitool failed ({}) and said: {last}", output.status),
    )
}

#[async_trait]
impl PowerSwitch for IpmiFence {
    async fn power(&self, call: Call) -> Result<Power> {
        let text = self.chassis_power(call, "status").await?;
        match text.lines().last() {
            Some("Chassis Power is off") => Ok(Power::Off),
            Some("Chassis Power is on") => Ok(Power::On("on".to_owned())),
            _ => Err(self.failed(
                ErrorKind::Unavailable,
                "ipmitool does not say whether the power is on or off",
            )),
        }
    }

    async fn switch_off(&self, call: Call) -> Result<()> {
        self.chassis_power(call, "off").await.map(drop)
    }

    async fn switch_on(&self, call: Call) -> Result<()> {
        self.chassis_power(call, "on").await.map(drop)
    }
}

#[async_trait]
impl Fence for IpmiFence {
    async fn fence(&self, call: Call, _: &FenceTarget) -> Result<FenceReceipt> {
        let on_again = self.options.power_on_again;
        let detail = ensure_off(self, call, on_again, OPERATION).await?;
        let IpmiOptions { host, port, .. } = &self.options;
        Ok(FenceReceipt {
            method: "ipmi".to_owned(),
            detail: format!("{detail}, says the BMC {host}:{port}"),
        })
    }
}
