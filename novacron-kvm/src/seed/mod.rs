//! A cloud-init NoCloud seed: the small CD that tells a guest its host name, keys and what to run.
//!
//! ```
//! use novacron_kvm::seed::Seed;
//!
//! let iso = Seed::new("instance-id: web-1\nlocal-hostname: web-1\n", "#cloud-config\n")
//!     .network_config("version: 2\n")
//!     .to_iso();
//! assert_eq!(iso.len() % 2048, 0);
//! ```
//! The image is ISO 9660 with Rock Ridge and Joliet names and the volume label `cidata`, written in plain Rust: no
//! `genisoimage` on the host. The same seed gives the same bytes. User data may hold passwords, so `Debug` shows sizes
//! only, and whoever writes the image keeps it to its owner.

mod directory;
mod iso;

use std::fmt;

/// What goes onto the CD.
#[derive(Clone, PartialEq, Eq)]
pub struct Seed {
    meta_data: String,
    user_data: String,
    network_config: Option<String>,
    vendor_data: Option<String>,
}

impl Seed {
    /// A seed with the two files that cloud-init insists on: `meta-data` (YAML with `instance-id` and mostly
    /// `local-hostname`) and `user-data` (`#cloud-config`, a script, or empty).
    pub fn new(meta_data: impl Into<String>, user_data: impl Into<String>) -> Self {
        Self {
            meta_data: meta_data.into(),
            user_data: user_data.into(),
            network_config: None,
            vendor_data: None,
        }
    }

    /// Adds `network-config`; without it the guest uses DHCP on its first NIC.
    #[must_use]
    pub fn network_config(mut self, text: impl Into<String>) -> Self {
        self.network_config = Some(text.into());
        self
    }

    /// Adds `vendor-data`: defaults of the platform, which the user's data overrides.
    #[must_use]
    pub fn vendor_data(mut self, text: impl Into<String>) -> Self {
        self.vendor_data = Some(text.into());
        self
    }

    /// The CD image.
    pub fn to_iso(&self) -> Vec<u8> {
        let mut files = vec![
            ("meta-data", self.meta_data.as_bytes()),
            ("user-data", self.user_data.as_bytes()),
        ];
        files.extend(
            self.network_config
                .as_ref()
                .map(|text| ("network-config", text.as_bytes())),
        );
        files.extend(
            self.vendor_data
                .as_ref()
                .map(|text| ("vendor-data", text.as_bytes())),
        );
        iso::image("cidata", &files)
    }
}

impl fmt::Debug for Seed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = |text: &Option<String>| text.as_ref().map(String::len);
        f.debug_struct("Seed")
            .field("meta_data_bytes", &self.meta_data.len())
            .field("user_data_bytes", &self.user_data.len())
            .field("network_config_bytes", &bytes(&self.network_config))
            .field("vendor_data_bytes", &bytes(&self.vendor_data))
            .finish()
    }
}

#[cfg(test)]
mod tests;
