//! Kafka's listeners that ask who one is: SASL, SASL over TLS, and TLS with a client certificate.
//!
//! Users: `alice` with `alice-pw` by PLAIN, `bob` with `bob-pw` by SCRAM-SHA-256. The certificates are made new for each
//! server, by the `openssl` program, and are good for 127.0.0.1.

use std::path::PathBuf;

use anyhow::Result;

use crate::{certificates, port::Port};

/// The listeners of one node and the certificates that they and their clients use.
#[derive(Debug)]
pub struct KafkaSecurity {
    sasl: Port,
    sasl_tls: Port,
    mutual_tls: Port,
    directory: PathBuf,
}

impl KafkaSecurity {
    /// Reserves the ports and makes the certificates.
    pub(crate) async fn prepare(directory: PathBuf) -> Result<Self> {
        certificates::make(&directory).await?;
        Ok(Self { sasl: Port::reserve()?, sasl_tls: Port::reserve()?, mutual_tls: Port::reserve()?, directory })
    }

    /// SASL without TLS.
    pub fn sasl_address(&self) -> String {
        at(&self.sasl)
    }

    /// SASL over TLS.
    pub fn sasl_tls_address(&self) -> String {
        at(&self.sasl_tls)
    }

    /// TLS that requires a client certificate.
    pub fn mutual_tls_address(&self) -> String {
        at(&self.mutual_tls)
    }

    /// A PEM file: `ca.pem`, `client.crt` or `client.key`.
    pub fn file(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Entries of the settings that list listeners, to be appended to those of the others.
    pub(crate) fn listeners(&self) -> String {
        let (sasl, sasl_tls, tls) = (at(&self.sasl), at(&self.sasl_tls), at(&self.mutual_tls));
        format!(",SASL://{sasl},SASL_TLS://{sasl_tls},MUTUAL://{tls}")
    }

    /// As [`listeners`](Self::listeners), for the map of protocols.
    pub(crate) fn protocols(&self) -> &'static str {
        ",SASL:SASL_PLAINTEXT,SASL_TLS:SASL_SSL,MUTUAL:SSL"
    }

    /// The settings of their own.
    pub(crate) fn settings(&self) -> String {
        let mut text = String::from("sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256\n");
        for listener in ["sasl", "sasl_tls"] {
            text.push_str(&format!(
                "listener.name.{listener}.plain.sasl.jaas.config=\
                 org.apache.kafka.common.security.plain.PlainLoginModule required user_alice=\"alice-pw\";\n\
                 listener.name.{listener}.scram-sha-256.sasl.jaas.config=\
                 org.apache.kafka.common.security.scram.ScramLoginModule required;\n"
            ));
        }
        text.push_str(&format!(
            "ssl.keystore.type=PEM\nssl.keystore.location={}\nssl.truststore.type=PEM\nssl.truststore.location={}\n\
             ssl.client.auth=none\nlistener.name.mutual.ssl.client.auth=required\n",
            self.file("server.pem").display(),
            self.file("ca.pem").display(),
        ));
        text
    }
}

fn at(port: &Port) -> String {
    format!("127.0.0.1:{}", port.number())
}
