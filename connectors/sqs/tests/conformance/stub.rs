//! An HTTP server in front of the real one: it passes requests on, or answers some of them as the real service would and the stand-in
//! never does (throttling, failed entries between stored ones, rights, keys).

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// A request that came.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    /// Such as `SendMessageBatch`.
    pub(crate) action: String,
    pub(crate) body: Value,
}

impl Call {
    pub(crate) fn is_send(&self) -> bool {
        self.action == "SendMessageBatch"
    }

    /// Of each entry, as JSON.
    pub(crate) fn entries(&self) -> &[Value] {
        self.body["Entries"].as_array().map_or(&[], Vec::as_slice)
    }
}

/// What the stub does with a request.
#[derive(Debug, Clone)]
pub(crate) enum Reply {
    /// The real server answers.
    Pass,
    /// Nothing is done; this is the answer.
    Answer(Value),
    /// Nothing is done; the answer is this error.
    Error { status: u16, code: &'static str, message: &'static str },
    /// Not the service's own words: what a proxy between says.
    Foreign { status: u16, text: &'static str },
    /// The entries at these places are not stored and failed so; the others are passed on.
    Entries { failed: Vec<usize>, code: &'static str, message: &'static str, sender_fault: bool },
    /// The real server does it, and the answer is lost with the connection.
    LoseAnswer,
}

type Script = Box<dyn FnMut(&Call) -> Reply + Send>;

pub(crate) struct Stub {
    address: String,
    shared: Arc<Shared>,
    _serving: JoinSet<()>,
}

struct Shared {
    target: String,
    script: Mutex<Script>,
    calls: Mutex<Vec<Call>>,
    under_way: AtomicUsize,
    most_under_way: AtomicUsize,
    http: reqwest::Client,
}

impl Stub {
    /// Before a server at `http://host:port`; at first it passes everything on.
    pub(crate) async fn start(target: &str) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?.to_string();
        let shared = Arc::new(Shared {
            target: target.to_owned(),
            script: Mutex::new(Box::new(|_| Reply::Pass)),
            calls: Mutex::default(),
            under_way: AtomicUsize::new(0),
            most_under_way: AtomicUsize::new(0),
            http: reqwest::Client::builder().no_proxy().build()?,
        });
        let mut serving = JoinSet::new();
        let of_task = Arc::clone(&shared);
        serving.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                let shared = Arc::clone(&of_task);
                connections.spawn(async move { shared.serve(client).await });
                while connections.try_join_next().is_some() {}
            }
        });
        Ok(Stub { address, shared, _serving: serving })
    }

    /// `host:port`
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Answers by this from now on.
    pub(crate) fn script(&self, script: impl FnMut(&Call) -> Reply + Send + 'static) {
        *self.shared.script.lock().expect("unpoisoned") = Box::new(script);
    }

    /// Everything that came so far.
    pub(crate) fn calls(&self) -> Vec<Call> {
        self.shared.calls.lock().expect("unpoisoned").clone()
    }

    /// The most requests that were under way at once.
    pub(crate) fn most_under_way(&self) -> usize {
        self.shared.most_under_way.load(Ordering::SeqCst)
    }
}

impl Shared {
    /// One connection, request by request; an error ends it.
    async fn serve(&self, mut client: TcpStream) -> Result<()> {
        loop {
            let Some((call, headers)) = read_request(&mut client).await? else { return Ok(()) };
            let under_way = self.under_way.fetch_add(1, Ordering::SeqCst) + 1;
            self.most_under_way.fetch_max(under_way, Ordering::SeqCst);
            let answer = self.answer(call, &headers).await;
            self.under_way.fetch_sub(1, Ordering::SeqCst);
            let Some((status, kind, body)) = answer? else { return Ok(()) };
            let head = format!(
                "HTTP/1.1 {status} S\r\ncontent-type: {kind}\r\ncontent-length: {}\r\nx-amzn-requestid: stub\r\n\r\n",
                body.len()
            );
            client.write_all(&[head.as_bytes(), &body].concat()).await?;
        }
    }

    async fn answer(&self, call: Call, headers: &[(String, String)]) -> Result<Option<(u16, &str, Vec<u8>)>> {
        const JSON: &str = "application/x-amz-json-1.0";
        let reply = (self.script.lock().expect("unpoisoned"))(&call);
        self.calls.lock().expect("unpoisoned").push(call.clone());
        Ok(match reply {
            Reply::Pass => {
                let (status, body) = self.pass(&call.body, headers).await?;
                Some((status, JSON, body))
            }
            Reply::LoseAnswer => {
                self.pass(&call.body, headers).await?;
                None
            }
            Reply::Answer(body) => Some((200, JSON, body.to_string().into_bytes())),
            Reply::Error { status, code, message } => {
                let body = json!({ "__type": format!("com.amazonaws.sqs#{code}"), "message": message });
                Some((status, JSON, body.to_string().into_bytes()))
            }
            Reply::Foreign { status, text } => Some((status, "text/html", text.as_bytes().to_vec())),
            Reply::Entries { failed, code, message, sender_fault } => {
                let mut rest = call.body.clone();
                let mut refused = Vec::new();
                let mut passed = Vec::new();
                for (place, entry) in call.entries().iter().enumerate() {
                    if failed.contains(&place) {
                        let id = &entry["Id"];
                        refused
                            .push(json!({ "Id": id, "Code": code, "Message": message, "SenderFault": sender_fault }));
                    } else {
                        passed.push(entry.clone());
                    }
                }
                let mut body = json!({ "Successful": [], "Failed": [] });
                if !passed.is_empty() {
                    rest["Entries"] = Value::Array(passed);
                    let (status, answered) = self.pass(&rest, headers).await?;
                    ensure!(status == 200, "the server answered {status}");
                    body = serde_json::from_slice(&answered)?;
                }
                body["Failed"] = Value::Array(refused);
                Some((200, JSON, body.to_string().into_bytes()))
            }
        })
    }

    async fn pass(&self, body: &Value, headers: &[(String, String)]) -> Result<(u16, Vec<u8>)> {
        let mut request = self.http.post(&self.target).body(body.to_string());
        for (name, value) in headers {
            if ["content-type", "x-amz-target", "authorization", "x-amz-date"].contains(&name.as_str()) {
                request = request.header(name, value);
            }
        }
        let answer = request.send().await?;
        Ok((answer.status().as_u16(), answer.bytes().await?.to_vec()))
    }
}

/// `None` when the client closed the connection between two requests.
async fn read_request(client: &mut TcpStream) -> Result<Option<(Call, Vec<(String, String)>)>> {
    let mut read = Vec::new();
    let end = loop {
        if let Some(end) = read.windows(4).position(|four| four == b"\r\n\r\n") {
            break end;
        }
        if client.read_buf(&mut read).await? == 0 {
            return Ok(None);
        }
    };
    let head = String::from_utf8(read[..end].to_vec())?;
    let headers: Vec<(String, String)> = head
        .lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_lowercase(), value.trim().to_owned()))
        .collect();
    let header = |name: &str| headers.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str());
    let length: usize = header("content-length").context("a length")?.parse()?;
    let action = header("x-amz-target").and_then(|target| target.split('.').nth(1)).unwrap_or_default().to_owned();
    let mut body = read.split_off(end + 4);
    while body.len() < length {
        ensure!(client.read_buf(&mut body).await? > 0, "the body was cut");
    }
    Ok(Some((Call { action, body: serde_json::from_slice(&body)? }, headers)))
}
