//! A message as a signed HTTP request.
//!
//! Invariant (P6): `webhook-id`, body and all headers but timestamp and signature are the same in each repetition.

use std::fmt::Write;
use std::time::SystemTime;

use catalog_bridge_api::{BRIDGE_GENERATION, BRIDGE_LOG_ID, BRIDGE_OFFSET, Message};
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Client, RequestBuilder, Url};

use crate::signature::Signer;

/// The request of an attempt made now.
pub(crate) fn request(
    client: &Client,
    url: &Url,
    message: &Message,
    signer: &Signer,
    now: SystemTime,
) -> RequestBuilder {
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(message.content_type));
    for (name, value) in &message.attributes {
        insert(&mut headers, &format!("ce-{name}"), &escaped(value));
    }
    insert(&mut headers, BRIDGE_LOG_ID, &message.id.log_id.to_string());
    insert(&mut headers, BRIDGE_GENERATION, &message.id.generation.to_string());
    insert(&mut headers, BRIDGE_OFFSET, &message.id.offset.to_string());
    // No full stop: those part what is signed.
    let id = message.id.joined_by('_');
    let timestamp = now.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    insert(&mut headers, "webhook-id", &id);
    insert(&mut headers, "webhook-timestamp", &timestamp.to_string());
    insert(&mut headers, "webhook-signature", &signer.sign(&id, timestamp, &message.body));
    client.post(url.clone()).headers(headers).body(message.body.clone())
}

fn insert(headers: &mut HeaderMap, name: &str, value: &str) {
    let name = HeaderName::from_bytes(name.as_bytes()).expect("attribute names are lower-case letters");
    headers.insert(name, HeaderValue::from_str(value).expect("escaped, or made of digits, letters and signs"));
}

/// As CloudEvents asks for in headers: everything but visible ASCII, and `"` and `%`, as percent-encoded UTF-8.
fn escaped(value: &str) -> String {
    let mut text = String::with_capacity(value.len());
    for byte in value.bytes() {
        match byte {
            b'"' | b'%' => {}
            b'!'..=b'~' => {
                text.push(byte.into());
                continue;
            }
            _ => {}
        }
        write!(text, "%{byte:02X}").expect("memory takes it");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_values_are_escaped_as_cloudevents_asks() {
        assert_eq!(escaped("component:default/a.b"), "component:default/a.b");
        assert_eq!(escaped("Euro € \"%\n"), "Euro%20%E2%82%AC%20%22%25%0A");
    }
}
