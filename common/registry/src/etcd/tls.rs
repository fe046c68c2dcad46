//! Keys and certificates for etcd.
//!
//! The files are read for every new connection, so that renewed ones are taken up without a restart.

use std::path::PathBuf;

use etcd_client::ConnectOptions;

use super::link::Trouble;

/// Files in PEM form.
#[derive(Debug, Clone)]
pub struct Tls {
    /// The authority that signed etcd's certificate.
    pub ca: PathBuf,
    /// Our certificate and its key, where etcd asks for them.
    pub identity: Option<(PathBuf, PathBuf)>,
}

impl Tls {
    /// Whether the files can be read now, or what is wrong.
    pub fn check(&self) -> Result<(), String> {
        self.read().map(|_| ())
    }

    fn read(&self) -> Result<etcd_client::TlsOptions, String> {
        use etcd_client::{Certificate, Identity, TlsOptions};
        let file = |path: &PathBuf| {
            std::fs::read(path).map_err(|error| format!("{} cannot be read: {error}", path.display()))
        };
        let mut options = TlsOptions::new().ca_certificate(Certificate::from_pem(file(&self.ca)?));
        if let Some((certificate, key)) = &self.identity {
            options = options.identity(Identity::from_pem(file(certificate)?, file(key)?));
        }
        Ok(options)
    }

    /// Options that use the files as they are now.
    pub async fn add_to(self, options: ConnectOptions) -> Result<ConnectOptions, Trouble> {
        // Files may be on a slow disk, and calls may be served on this thread.
        match tokio::task::spawn_blocking(move || self.read()).await {
            Ok(tls) => Ok(options.with_tls(tls.map_err(Trouble::Tls)?)),
            Err(error) => Err(Trouble::Tls(format!("the certificates were not read: {error}"))),
        }
    }
}
