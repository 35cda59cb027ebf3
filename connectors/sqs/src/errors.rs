//! What an error of the service or of its client means for the sink: wait, give this event up, or tell the operator.
//!
//! Only the service's own codes stop a sink; whatever else stands between is waited out. Texts are the first line of the
//! service's words: what follows it may quote the signed request, a session token included.

use std::error::Error as StdError;

use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_sqs::config::http::HttpResponse;
use aws_sdk_sqs::error::{ProvideErrorMetadata, SdkError};
use catalog_bridge_api::ConnectorError;

/// What a failure asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It passes.
    Passing,
    /// It passes when we send less.
    Congested,
    /// The service takes this never.
    Refused,
    /// There is no such queue.
    Missing,
    /// The operator must act.
    Misconfigured,
}

/// A failed call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) verdict: Verdict,
    pub(crate) words: String,
}

impl Failure {
    /// Of a whole request.
    pub(crate) fn of<E>(error: &SdkError<E, HttpResponse>) -> Self
    where
        E: ProvideErrorMetadata + StdError + Send + Sync + 'static,
    {
        match error {
            SdkError::ServiceError(service) => {
                let status = service.raw().status().as_u16();
                let (code, words) = (service.err().code(), service.err().message());
                let verdict = code.and_then(verdict_by_code).unwrap_or_else(|| verdict_by_status(code, status));
                let words = first_line(words.unwrap_or("the service says no more"));
                Failure { verdict, words: format!("{} ({words}, HTTP {status})", code.unwrap_or("refused")) }
            }
            SdkError::TimeoutError(_) => Failure {
                verdict: Verdict::Congested,
                words: format!("no answer within {} s", crate::REQUEST_TIMEOUT.as_secs()),
            },
            other => {
                let (verdict, words) = (verdict_of_client(other), chain(other));
                let is_about_credentials = verdict == Verdict::Misconfigured;
                Failure { verdict, words: if is_about_credentials { advise(&words) } else { words } }
            }
        }
    }

    /// Of one entry of a request.
    pub(crate) fn of_entry(code: &str, message: Option<&str>, sender_fault: bool) -> Self {
        let otherwise = if sender_fault { Verdict::Refused } else { Verdict::Passing };
        let words = match message {
            Some(message) => format!("{code} ({})", first_line(message)),
            None => code.to_owned(),
        };
        Failure { verdict: verdict_by_code(code).unwrap_or(otherwise), words }
    }

    /// For calls that carry no event.
    pub(crate) fn into_error(self, action: &'static str, endpoint: &str) -> ConnectorError {
        match self.verdict {
            Verdict::Passing | Verdict::Congested => ConnectorError::transient(action, endpoint, self.words),
            Verdict::Missing => missing(endpoint, &self.words),
            Verdict::Refused | Verdict::Misconfigured => {
                ConnectorError::misconfigured(endpoint, format!("{action}: {}", self.words))
            }
        }
    }
}

/// The queue is not there.
pub(crate) fn missing(endpoint: &str, words: &str) -> ConnectorError {
    let reason = format!("the queue does not exist: {words}; create it, correct queue_url, or set ensure: true");
    ConnectorError::misconfigured(endpoint, reason)
}

/// The service's own codes, by their last part: queues, signatures and keys each have a family of their own.
fn verdict_by_code(code: &str) -> Option<Verdict> {
    let verdict = match code.rsplit(['#']).next().unwrap_or(code) {
        "QueueDoesNotExist" | "AWS.SimpleQueueService.NonExistentQueue" => Verdict::Missing,
        "RequestThrottled"
        | "RequestThrottledException"
        | "Throttled"
        | "ThrottledException"
        | "Throttling"
        | "ThrottlingException"
        | "TooManyRequestsException"
        | "RequestLimitExceeded"
        | "SlowDown"
        | "OverLimit"
        | "KmsThrottled"
        | "KMS.ThrottlingException" => Verdict::Congested,
        "InternalError"
        | "InternalFailure"
        | "InternalServerError"
        | "ServiceUnavailable"
        | "RequestTimeout"
        | "AWS.SimpleQueueService.QueueDeletedRecently"
        | "QueueDeletedRecently" => Verdict::Passing,
        "InvalidAddress"
        | "InvalidSecurity"
        | "UnsupportedOperation"
        | "AWS.SimpleQueueService.UnsupportedOperation"
        | "InvalidAction"
        | "OptInRequired"
        | "AuthFailure"
        | "NotAuthorized"
        | "RequestExpired"
        | "QueueNameExists"
        | "QueueAlreadyExists" => Verdict::Misconfigured,
        code if code.starts_with("Kms") || code.starts_with("KMS.") => Verdict::Misconfigured,
        code if [
            "AccessDenied",
            "AccessKeyId",
            "ClientTokenId",
            "UnrecognizedClient",
            "Signature",
            "AuthenticationToken",
            "ExpiredToken",
        ]
        .iter()
        .any(|part| code.contains(part)) =>
        {
            Verdict::Misconfigured
        }
        _ => return None,
    };
    Some(verdict)
}

/// Without a code it is not the service that speaks, but something before it.
fn verdict_by_status(code: Option<&str>, status: u16) -> Verdict {
    match (code, status) {
        (_, 401 | 403) => Verdict::Misconfigured,
        (_, 413) | (Some(_), 400) => Verdict::Refused,
        (_, 429 | 503) => Verdict::Congested,
        _ => Verdict::Passing,
    }
}

/// Before anything was sent, or with no answer to it.
fn verdict_of_client(error: &(dyn StdError + 'static)) -> Verdict {
    let mut cause = Some(error);
    while let Some(error) = cause {
        match error.downcast_ref::<CredentialsError>() {
            Some(CredentialsError::CredentialsNotLoaded(_) | CredentialsError::InvalidConfiguration(_)) => {
                return Verdict::Misconfigured;
            }
            Some(_)
                if ["AccessDenied", "InvalidIdentityToken", "ExpiredToken"]
                    .iter()
                    .any(|code| chain(error).contains(code)) =>
            {
                return Verdict::Misconfigured;
            }
            _ => {}
        }
        cause = error.source();
    }
    Verdict::Passing
}

fn advise(words: &str) -> String {
    // The list that the library begins there is of its own names for the places it looked at.
    let words = words.trim_end_matches(" Attempted:");
    format!("{words}; give the process a role, a profile or AWS_ACCESS_KEY_ID, or write access_key_id")
}

/// The error and its causes, each once.
fn chain(error: &(dyn StdError + 'static)) -> String {
    let mut words = first_line(&error.to_string());
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = first_line(&error.to_string());
        if !words.ends_with(&next) {
            words = format!("{words}: {next}");
        }
        cause = error.source();
    }
    words
}

fn first_line(text: &str) -> String {
    text.trim_start().lines().next().unwrap_or_default().trim_end().chars().take(500).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entrys_code_decides_and_else_whose_fault_it_was() {
        let verdict = |code, sender_fault| Failure::of_entry(code, Some("words"), sender_fault).verdict;
        assert_eq!(verdict("InvalidMessageContents", true), Verdict::Refused);
        assert_eq!(verdict("InternalError", false), Verdict::Passing);
        assert_eq!(verdict("SomethingNew", false), Verdict::Passing);
        assert_eq!(verdict("RequestThrottled", true), Verdict::Congested);
        assert_eq!(verdict("KMS.ThrottlingException", true), Verdict::Congested);
        assert_eq!(verdict("KMS.AccessDeniedException", true), Verdict::Misconfigured);
        assert_eq!(verdict("KmsDisabled", false), Verdict::Misconfigured);
        assert_eq!(verdict("AWS.SimpleQueueService.NonExistentQueue", true), Verdict::Missing);
        assert_eq!(verdict("com.amazonaws.sqs#QueueDoesNotExist", true), Verdict::Missing);
    }

    #[test]
    fn what_the_service_quotes_of_the_request_is_left_out() {
        let words = "The signature does not match.\n\nThe Canonical String was\n'x-amz-security-token:s3cret'";
        let failure = Failure::of_entry("SignatureDoesNotMatch", Some(words), true);
        assert_eq!(failure.words, "SignatureDoesNotMatch (The signature does not match.)");
        assert_eq!(failure.verdict, Verdict::Misconfigured);
    }
}
