//! What an answer means.
//!
//! | status | meaning |
//! | --- | --- |
//! | 2xx | stored |
//! | 3xx | misconfigured: redirects are not followed |
//! | 400, 413, 422, 431 | this event is refused for good |
//! | 410 | the endpoint wants no more: an operator decides |
//! | 408, 409, 423, 425, 429, every 5xx but those below | passes; `Retry-After` is honoured |
//! | every other 4xx; 501, 505, 511 | misconfigured |
//!
//! Standard Webhooks calls all but 2xx failures and gives 3xx, 410, 429 and `Retry-After` these meanings. Which failures
//! are final it leaves open: senders without order give up on any, after days; one that keeps order must not pass an event by
//! because a route or a credential was missing, so only what speaks of the event itself refuses it.

use std::time::{Duration, SystemTime};

use catalog_bridge_api::{ConnectorError, Message};
use reqwest::header::{HeaderMap, LOCATION, RETRY_AFTER};
use reqwest::{Response, StatusCode, Url};

use crate::config::endpoint;

/// How much of an answer's body is read, so that its connection can be used again, and for how long.
const BODY_BYTES_MAX: usize = 64 * 1024;
const BODY_PATIENCE: Duration = Duration::from_secs(1);
/// How much of it is shown.
const WORDS_CHARS_MAX: usize = 200;
/// A part of a path that is at least as long may be a token.
const TOKEN_LENGTH: usize = 8;

/// `Ok` when the message is stored.
pub(crate) async fn judge(mut response: Response, url: &Url, message: &Message) -> Result<(), ConnectorError> {
    // A success stands whatever follows it.
    let body = tokio::time::timeout(BODY_PATIENCE, read_body(&mut response)).await.unwrap_or_default();
    if response.status().is_success() {
        return Ok(());
    }
    let said = words(&body, url);
    Err(meaning(response.status(), response.headers(), &said, url, message))
}

async fn read_body(response: &mut Response) -> Vec<u8> {
    let mut body = Vec::new();
    let mut read = 0;
    while read < BODY_BYTES_MAX
        && let Ok(Some(chunk)) = response.chunk().await
    {
        read += chunk.len();
        let room = (4 * WORDS_CHARS_MAX).saturating_sub(body.len());
        body.extend_from_slice(&chunk[..chunk.len().min(room)]);
    }
    body
}

fn meaning(status: StatusCode, headers: &HeaderMap, said: &str, url: &Url, message: &Message) -> ConnectorError {
    let at = endpoint(url);
    let answer = format!("{status}{said}");
    match status.as_u16() {
        300..=399 => ConnectorError::misconfigured(at, format!("{answer}; {}", redirect(headers, url))),
        400 | 413 | 422 | 431 => ConnectorError::Refused {
            offset: message.offset(),
            entity_ref: message.entity_ref.clone(),
            endpoint: at,
            reason: answer,
        },
        410 => ConnectorError::Diverged {
            endpoint: at,
            reason: format!("{answer}: the endpoint wants no more events; resume the sink when it does again"),
        },
        408 | 409 | 423 | 425 | 429 | 500 | 502..=504 | 506..=510 | 512.. => ConnectorError::Transient {
            action: "post",
            endpoint: at,
            source: answer.into(),
            retry_after: retry_after(headers, SystemTime::now()),
        },
        code => ConnectorError::misconfigured(at, format!("{answer}; {}", hint(code))),
    }
}

fn hint(code: u16) -> &'static str {
    match code {
        401 | 403 | 407 => "check that the endpoint knows the secret, and what else it asks for",
        404 | 405 => "check the URL's path, and that the endpoint takes POST",
        406 | 415 => "check that the endpoint takes this encoding",
        _ => "check the URL and what the endpoint asks for",
    }
}

/// Where a redirect leads; the path stays hidden, as ours does.
fn redirect(headers: &HeaderMap, url: &Url) -> String {
    let location = headers.get(LOCATION).and_then(|value| value.to_str().ok());
    let leads = match location.and_then(|text| url.join(text).ok()) {
        Some(target) if target.origin() == url.origin() => "to another path of the same host".to_owned(),
        Some(target) => format!("to {}", endpoint(&target)),
        None => "without saying where to".to_owned(),
    };
    format!("it redirects {leads}; redirects are not followed, write the final URL")
}

/// The endpoint's wish, in seconds or as a date.
fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(text).ok()?;
    Some(date.duration_since(now).unwrap_or_default())
}

/// The beginning of an answer's body, for a person. Many servers repeat what was asked for: what may be secret of that is left
/// out.
fn words(body: &[u8], url: &Url) -> String {
    let mut text = String::from_utf8_lossy(body).into_owned();
    for part in secret_parts(url) {
        text = text.replace(part, "***");
    }
    let text = text.split(|letter: char| letter.is_whitespace() || letter.is_control());
    let text = text.filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ");
    if text.is_empty() {
        return text;
    }
    let shown: String = text.chars().take(WORDS_CHARS_MAX).collect();
    let dots = if shown.len() < text.len() { "…" } else { "" };
    format!(" \"{shown}{dots}\"")
}

/// Path, query and credentials, and what of the first two looks like a token.
fn secret_parts(url: &Url) -> impl Iterator<Item = &str> {
    let query = url.query().unwrap_or_default();
    let whole = [url.path(), query, url.username(), url.password().unwrap_or_default()];
    let segments = url.path().split('/').filter(|segment| segment.len() >= TOKEN_LENGTH);
    let values = query.split('&').filter_map(|pair| Some(pair.split_once('=')?.1));
    whole.into_iter().filter(|part| part.len() > 1).chain(segments).chain(values.filter(|value| value.len() > 3))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url() -> Url {
        Url::parse("https://me:hunter2@hooks.example/T0/KEN-OF-YOURS?access_token=s3cret").expect("a URL")
    }

    #[test]
    fn a_wish_is_read_in_seconds_and_as_a_date() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_445_412_480 - 30);
        let wish = |text: &str| {
            let headers = HeaderMap::from_iter([(RETRY_AFTER, text.parse().expect("a value"))]);
            retry_after(&headers, now)
        };
        assert_eq!(wish("120"), Some(Duration::from_secs(120)));
        assert_eq!(wish("Wed, 21 Oct 2015 07:28:00 GMT"), Some(Duration::from_secs(30)));
        assert_eq!(wish("Wed, 21 Oct 2009 07:28:00 GMT"), Some(Duration::ZERO));
        assert_eq!(wish("soon"), None);
    }

    #[test]
    fn words_are_short_printable_and_hold_no_secret() {
        let said = words(b"Cannot POST /T0/KEN-OF-YOURS?access_token=s3cret\r\n\x1b[2J hunter2", &url());
        assert_eq!(said, " \"Cannot POST ***?*** [2J ***\"");
        let said = words(b"no hook KEN-OF-YOURS, or s3cret is wrong", &url());
        assert_eq!(said, " \"no hook ***, or *** is wrong\"");
        assert_eq!(words(b" \n", &url()), "");
        assert!(words("é".repeat(1_000).as_bytes(), &url()).chars().count() < 210);
    }

    #[test]
    fn a_redirect_says_where_it_leads_without_the_path() {
        let leads =
            |location: &str| redirect(&HeaderMap::from_iter([(LOCATION, location.parse().expect("a value"))]), &url());
        assert!(leads("https://other.example:8443/T0/KEN").contains("to https://other.example:8443;"));
        assert!(leads("/elsewhere/KEN").contains("another path of the same host"));
        assert!(!leads("/elsewhere/KEN").contains("KEN"));
    }
}
