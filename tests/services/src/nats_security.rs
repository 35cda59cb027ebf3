//! NATS in operator mode: users log in with credentials files, and no server's settings name them.
//!
//! An operator signs accounts, an account signs its users, each as a JWT
//! (<https://docs.nats.io/running-a-nats-service/configuration/securing_nats/jwt>); the server holds the operator's and the
//! accounts' in its settings. Keys and JWTs are made here, without the `nsc` program.

use std::time::SystemTime;

use anyhow::{Context, Result};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use nkeys::KeyPair;
use serde_json::{Value, json};

/// An operator, its system account, which JetStream asks for, and an account that may use JetStream.
#[derive(Debug)]
pub struct NatsOperator {
    operator: KeyPair,
    system: KeyPair,
    account: KeyPair,
}

impl NatsOperator {
    /// Makes new keys: what another operator's accounts signed is worth nothing to this one's servers.
    pub fn new() -> Self {
        Self { operator: KeyPair::new_operator(), system: KeyPair::new_account(), account: KeyPair::new_account() }
    }

    /// Lines of the settings of a server that trusts this operator.
    pub fn settings(&self) -> Result<String> {
        let system = self.system.public_key();
        let operator = json!({ "type": "operator", "version": 2, "system_account": system });
        let operator = sign(&self.operator, &self.operator, operator, None)?;
        let accounts = [(&self.system, json!({})), (&self.account, json!({ "mem_storage": -1, "disk_storage": -1 }))];
        let mut preload = String::new();
        for (account, storage) in accounts {
            let mut limits = json!({
                "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": true, "conn": -1,
                "leaf": -1, "streams": -1, "consumer": -1,
            });
            for (name, limit) in storage.as_object().into_iter().flatten() {
                limits[name] = limit.clone();
            }
            let claims = json!({ "type": "account", "version": 2, "limits": limits });
            let token = sign(&self.operator, account, claims, None)?;
            preload.push_str(&format!("{}: {token}, ", account.public_key()));
        }
        Ok(format!("operator: {operator}\nresolver: MEMORY\nresolver_preload: {{ {preload} }}\n"))
    }

    /// A credentials file for a new user of the account, as `nsc` writes it.
    pub fn credentials(&self, expires: Option<SystemTime>) -> Result<String> {
        let user = KeyPair::new_user();
        let claims = json!({ "type": "user", "version": 2, "subs": -1, "data": -1, "payload": -1 });
        let token = sign(&self.account, &user, claims, expires)?;
        let seed = user.seed().context("a new key has a seed")?;
        Ok(format!(
            "-----BEGIN NATS USER JWT-----\n{token}\n------END NATS USER JWT------\n\n\
             -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
        ))
    }
}

impl Default for NatsOperator {
    fn default() -> Self {
        Self::new()
    }
}

fn sign(issuer: &KeyPair, subject: &KeyPair, claims: Value, expires: Option<SystemTime>) -> Result<String> {
    let seconds = |time: SystemTime| anyhow::Ok(time.duration_since(SystemTime::UNIX_EPOCH)?.as_secs());
    let mut body = json!({
        "iss": issuer.public_key(),
        "sub": subject.public_key(),
        "name": "tests",
        "iat": seconds(SystemTime::now())?,
        "nats": claims,
    });
    if let Some(expires) = expires {
        body["exp"] = seconds(expires)?.into();
    }
    let header = json!({ "typ": "JWT", "alg": "ed25519-nkey" });
    let encoded = |part: &[u8]| BASE64_URL_SAFE_NO_PAD.encode(part);
    let text = format!("{}.{}", encoded(header.to_string().as_bytes()), encoded(body.to_string().as_bytes()));
    let signature = issuer.sign(text.as_bytes()).context("signing a JWT")?;
    Ok(format!("{text}.{}", encoded(&signature)))
}
