//! Signs requests by Standard Webhooks: HMAC-SHA256 over `id.timestamp.body`, one signature per secret.

use base64::alphabet;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig, STANDARD};
use base64::engine::{DecodePaddingMode, Engine as _};
use catalog_bridge_api::Secret;
use hmac::{Hmac, Mac};
use sha2::Sha256;

/// The keys of one sink; never shown.
pub(crate) struct Signer {
    keys: Vec<Hmac<Sha256>>,
}

const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

impl Signer {
    /// Opens the secrets; the error names a file or what is wrong, never a secret.
    pub(crate) fn read(secrets: &[Secret]) -> Result<Signer, String> {
        let keys = secrets.iter().map(read_key).collect::<Result<_, _>>()?;
        Ok(Signer { keys })
    }

    /// The value of `webhook-signature`: what each secret signs, parted by spaces.
    pub(crate) fn sign(&self, id: &str, timestamp: u64, body: &[u8]) -> String {
        let mut value = String::new();
        for key in &self.keys {
            let mut mac = key.clone();
            mac.update(format!("{id}.{timestamp}.").as_bytes());
            mac.update(body);
            if !value.is_empty() {
                value.push(' ');
            }
            value.push_str("v1,");
            STANDARD.encode_string(mac.finalize().into_bytes(), &mut value);
        }
        value
    }
}

/// Opens one secret.
pub(crate) fn read_key(secret: &Secret) -> Result<Hmac<Sha256>, String> {
    let text = secret.open().map_err(|error| error.to_string())?;
    let bytes = text.trim().strip_prefix("whsec_").and_then(|text| LENIENT.decode(text).ok());
    let Some(bytes) = bytes.filter(|bytes| (24..=64).contains(&bytes.len())) else {
        return Err("is no signing secret; write whsec_ and the base64 of 24 to 64 random bytes, such as from \
                    echo \"whsec_$(openssl rand -base64 32)\""
            .to_owned());
    };
    Ok(Hmac::new_from_slice(&bytes).expect("a key of any length is taken"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example that the libraries of Standard Webhooks are tested with.
    #[test]
    fn the_published_example_is_signed_as_published() {
        let secret = Secret::new("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw");
        let signer = Signer::read(&[secret]).expect("a secret");

        let signature = signer.sign("msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, br#"{"test": 2432232314}"#);

        assert_eq!(signature, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn each_secret_signs() {
        let secrets = ["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYX"];
        let alone = secrets.map(|secret| Signer::read(&[Secret::new(secret)]).expect("a secret").sign("a", 1, b"x"));
        let both = Signer::read(&secrets.map(Secret::new)).expect("secrets").sign("a", 1, b"x");
        assert_eq!(both, alone.join(" "));
        assert_ne!(alone[0], alone[1]);
    }
}
