//! RabbitMQ's TLS listener: clients may show a certificate and then log in by it (EXTERNAL).
//!
//! The user `client` is the one of `client.crt` and has no password that works. The certificates are made new for each server,
//! by the `openssl` program, and are good for 127.0.0.1 and localhost.

use std::path::PathBuf;

use anyhow::Result;

use crate::{certificates, port::Port};

/// The TLS listener of one node and the certificates that it and its clients use.
#[derive(Debug)]
pub struct RabbitMqSecurity {
    port: Port,
    directory: PathBuf,
}

impl RabbitMqSecurity {
    /// Reserves the port and makes the certificates.
    pub(crate) async fn prepare(directory: PathBuf) -> Result<Self> {
        certificates::make(&directory).await?;
        Ok(Self { port: Port::reserve()?, directory })
    }

    /// The TLS listener.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port.number())
    }

    /// A PEM file: `ca.pem`, `client.crt` or `client.key`.
    pub fn file(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// The plugin that it needs.
    pub(crate) const PLUGIN: &str = "rabbitmq_auth_mechanism_ssl";

    /// Lines of `rabbitmq.conf`.
    pub(crate) fn settings(&self) -> String {
        format!(
            "\
listeners.ssl.1 = {}
ssl_options.cacertfile = {}
ssl_options.certfile = {}
ssl_options.keyfile = {}
ssl_options.verify = verify_peer
ssl_options.fail_if_no_peer_cert = false
ssl_cert_login_from = common_name
auth_mechanisms.1 = PLAIN
auth_mechanisms.2 = EXTERNAL
",
            self.address(),
            self.file("ca.pem").display(),
            self.file("server.crt").display(),
            self.file("server.key").display(),
        )
    }
}
