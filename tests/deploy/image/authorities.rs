//! TLS from the last stage: which authorities the clients of the binary trust, seen by servers of TLS.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use catalog_bridge_services::{Nats, NatsOptions, Postgres, PostgresOptions, image, make_certificates};
use serde_json::{Value, json};

use super::container::{CONFIG, Image};
use crate::support::free_port;

/// What `openssl s_server` says when a client finished the handshake, which it does only with a server that it trusts.
const TRUSTED: &str = "SSL_accept:SSLv3/TLS read finished";
/// What our clients say of a certificate whose authority they do not know: rustls, and OpenSSL.
const UNTRUSTED: [&str; 2] = ["UnknownIssuer", "certificate verify failed"];

/// Every client trusts the authorities of the last stage, unless it was given others: with an authority of ours among them all
/// finish the handshake, without it none does.
pub(super) async fn check(image: &Image) -> Result<()> {
    let certificates = image.directory("certificates")?;
    make_certificates(&certificates).await?;
    let authority = fs::read_to_string(certificates.join("ca.pem"))?;
    let postgres = Postgres::start(PostgresOptions { tls: true, ..PostgresOptions::default() }).await?;
    let database = postgres.fresh_database("log").await?;
    let its_authority = postgres.tls_url("log");
    let its_authority = its_authority.split_once("sslrootcert=").context("an authority")?.1;
    let settings =
        format!("tls {{ cert_file: \"{0}/server.crt\", key_file: \"{0}/server.key\" }}\n", certificates.display());
    let nats = Nats::start(NatsOptions { settings, ..NatsOptions::default() }).await?;

    let layer = image.place.join("authorities");
    let bundle = layer.join(image::AUTHORITIES);
    fs::create_dir_all(bundle.parent().context("a directory")?)?;
    let all = fs::read_to_string(image.layers.last().context("a base")?.join(image::AUTHORITIES))?;
    fs::write(&bundle, format!("{all}{authority}{}", fs::read_to_string(its_authority)?))?;
    let trusting = image.with_layer(layer);

    let names = ["kafka", "rabbitmq", "webhook", "sqs"];
    for (image, is_trusted) in [(&trusting, true), (image, false)] {
        let servers = TlsServers::start(&certificates, &names)?;
        let config = image.directory(&format!("trusted-{is_trusted}"))?;
        let log = format!("{database}?sslmode=verify-full&sslrootcert=/{}", image::AUTHORITIES);
        fs::write(config.join("catalog-bridge.yaml"), dial_config(&log, &nats.address(1), &servers)?)?;

        let output = image.start(&[(config, CONFIG)], &["check", "--output", "json"])?.output().context("unshare")?;
        let told = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        let parts: Vec<Value> = serde_json::from_slice(&output.stdout).with_context(|| told.clone())?;

        let trusted = servers.that_saw(TRUSTED);
        ensure!(
            trusted.len() == if is_trusted { names.len() } else { 0 },
            "trusted by the clients of {trusted:?}:\n{told}"
        );
        for part in parts.iter().filter(|part| part["part"] == "log" || names_sink(part)) {
            let error = part["error"].as_str().unwrap_or_default();
            let is_refused = UNTRUSTED.iter().any(|words| error.contains(words));
            ensure!(is_refused != is_trusted, "{part}");
        }
        ensure!(parts.iter().filter(|part| names_sink(part)).count() == names.len() + 1, "{told}");
    }

    // What docs/capture.md says of PostgreSQL: without sslrootcert the system's authorities are not looked at.
    let config = image.directory("compiled-in")?;
    let text = json!({ "log": format!("{database}?sslmode=verify-full"), "sources": { "push": { "ingest": {} } } });
    fs::write(config.join("catalog-bridge.yaml"), text.to_string())?;
    let output = trusting.start(&[(config, CONFIG)], &["check"])?.output().context("unshare")?;
    let told = String::from_utf8_lossy(&output.stdout);
    ensure!(told.contains(UNTRUSTED[0]), "{told}{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

fn names_sink(part: &Value) -> bool {
    part["part"].as_str().is_some_and(|name| name.starts_with("sink "))
}

/// A config that dials everything that speaks TLS, with the system's authorities.
fn dial_config(log: &str, nats: &str, servers: &TlsServers) -> Result<String> {
    let at = |name: &str| Ok::<_, anyhow::Error>(format!("localhost:{}", servers.port(name)?));
    let config = json!({
        "log": log,
        "sources": { "push": { "ingest": {} } },
        "sinks": {
            "kafka": { "kafka": { "brokers": [at("kafka")?], "topic": "catalog", "tls": {} } },
            "rabbitmq": { "rabbitmq": { "url": format!("amqps://a:a@{}/%2f", at("rabbitmq")?), "exchange": "catalog" } },
            "webhook": { "webhook": {
                "url": format!("https://{}/", at("webhook")?),
                "allow_addresses": ["127.0.0.1", "::1"],
                "secret": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
            } },
            "sqs": { "sqs": {
                "queue_url": format!("https://{}/000000000000/a.fifo", at("sqs")?),
                "region": "eu-west-1",
                "access_key_id": "a",
                "secret_access_key": "a",
            } },
            "nats": { "nats": { "servers": [format!("tls://{nats}")], "stream": "catalog", "tls": {} } },
        },
    });
    Ok(config.to_string())
}

/// Servers of TLS that say whether a client took their certificate.
struct TlsServers {
    servers: Vec<(&'static str, u16, Child, PathBuf)>,
}

impl TlsServers {
    fn start(certificates: &Path, names: &[&'static str]) -> Result<TlsServers> {
        let mut servers = Vec::new();
        for name in names {
            let port = free_port()?;
            let log = certificates.join(format!("{name}.log"));
            let file = fs::File::create(&log)?;
            let mut command = Command::new("openssl");
            command.args(["s_server", "-accept", &format!("127.0.0.1:{port}"), "-state", "-www"]);
            command.args(["-cert", "server.crt", "-key", "server.key"]).current_dir(certificates).stdin(Stdio::null());
            let child = command.stdout(file.try_clone()?).stderr(file).spawn().context("openssl")?;
            servers.push((*name, port, child, log));
        }
        Ok(TlsServers { servers })
    }

    fn port(&self, name: &str) -> Result<u16> {
        let found = self.servers.iter().find(|(server, ..)| *server == name);
        Ok(found.with_context(|| format!("no server {name}"))?.1)
    }

    /// Those that logged this.
    fn that_saw(&self, words: &str) -> Vec<&'static str> {
        let has_seen = |log: &Path| fs::read_to_string(log).unwrap_or_default().contains(words);
        self.servers.iter().filter(|(.., log)| has_seen(log)).map(|(name, ..)| *name).collect()
    }
}

impl Drop for TlsServers {
    fn drop(&mut self) {
        for (_, _, child, _) in &mut self.servers {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
