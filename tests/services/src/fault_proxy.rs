//! A TCP proxy on loopback that harms the connections through it, while the server behind stays well.
//!
//! It runs on a thread and a runtime of its own, so it serves any test, and a test that blocks does not stop it.
//! Every change holds when its call returns.
//!
//! Bytes that were dropped leave a gap in the stream. So whatever ends a drop also resets the connections.

mod connection;

use std::{
    net::{Ipv4Addr, TcpListener as StdListener},
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering},
        mpsc as std_mpsc,
    },
    thread,
    time::Duration,
};

use anyhow::{Context, Result, anyhow};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{mpsc, watch},
    task::JoinSet,
};

use crate::port::Port;

/// A direction of the bytes through the proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// What clients send.
    ToServer,
    /// What the server answers.
    ToClient,
}

/// The faults in force, read by every connection.
#[derive(Clone, Debug, Default)]
struct Faults {
    is_frozen: bool,
    is_dropped: [bool; 2],
    latency: Duration,
}

/// What the proxy's connections share.
#[derive(Debug)]
struct Shared {
    faults: watch::Sender<Faults>,
    /// Its value counts the resets; a connection ends when it changes.
    resets: watch::Sender<u64>,
    /// How many bytes may still pass in each direction before everything is cut; negative for no limit.
    allowance: [AtomicI64; 2],
    accepted: AtomicU64,
    forwarded: [AtomicU64; 2],
}

enum Change {
    Target(String),
    Faults(Box<dyn FnOnce(&mut Faults) + Send>),
    Reset,
    Cut,
    Mend,
}

type Answer = std_mpsc::Sender<Result<()>>;

/// A proxy before one server. Dropped, it ends with all its connections.
#[derive(Debug)]
pub struct FaultProxy {
    port: Port,
    changes: mpsc::UnboundedSender<(Change, Answer)>,
    shared: Arc<Shared>,
}

impl FaultProxy {
    /// Starts a proxy before `target` (`host:port`).
    pub fn start(target: &str) -> Result<Self> {
        let proxy = Self::reserve()?;
        proxy.forward_to(target)?;
        Ok(proxy)
    }

    /// Starts a proxy whose target is not known yet, for servers that must be told the proxy's address first.
    pub fn reserve() -> Result<Self> {
        let port = Port::reserve()?;
        let listener = StdListener::bind((Ipv4Addr::LOCALHOST, port.number())).context("binding a proxy's port")?;
        listener.set_nonblocking(true).context("making a proxy's port non-blocking")?;
        let shared = Arc::new(Shared {
            faults: watch::Sender::new(Faults::default()),
            resets: watch::Sender::new(0),
            allowance: [AtomicI64::new(-1), AtomicI64::new(-1)],
            accepted: AtomicU64::new(0),
            forwarded: [AtomicU64::new(0), AtomicU64::new(0)],
        });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.context("building a proxy's runtime")?;
        let (changes, received) = mpsc::unbounded_channel();
        let (number, of_thread) = (port.number(), Arc::clone(&shared));
        thread::spawn(move || runtime.block_on(serve(number, listener, received, of_thread)));
        Ok(Self { port, changes, shared })
    }

    /// What clients connect to: `127.0.0.1:PORT`, the same for the life of this value.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port.number())
    }

    /// Forwards new connections to this server.
    pub fn forward_to(&self, target: &str) -> Result<()> {
        self.change(Change::Target(target.to_owned()))
    }

    /// Resets all connections and refuses new ones, as when the server is gone.
    pub fn cut(&self) -> Result<()> {
        self.change(Change::Cut)
    }

    /// Ends a [`cut`](Self::cut): connections are accepted again.
    pub fn mend(&self) -> Result<()> {
        self.change(Change::Mend)
    }

    /// Resets the connections there are; new ones are accepted.
    pub fn reset_connections(&self) -> Result<()> {
        self.change(Change::Reset)
    }

    /// Holds all data back in both directions; connections stay open and new ones are accepted.
    pub fn freeze(&self) -> Result<()> {
        self.change_faults(|faults| faults.is_frozen = true)
    }

    /// Ends a [`freeze`](Self::freeze): what was held back arrives, nothing is lost.
    pub fn thaw(&self) -> Result<()> {
        self.change_faults(|faults| faults.is_frozen = false)
    }

    /// Swallows what is sent in one direction, the end of the stream too: a half-open connection. With
    /// [`Direction::ToClient`] the server does what it is asked and its answer is lost.
    pub fn drop_data(&self, direction: Direction) -> Result<()> {
        self.change_faults(move |faults| faults.is_dropped[direction as usize] = true)
    }

    /// Delays everything in both directions by this much, without limiting the rate.
    pub fn set_latency(&self, latency: Duration) -> Result<()> {
        self.change_faults(move |faults| faults.latency = latency)
    }

    /// Lets this many more bytes pass in one direction, then resets all connections, once: a message cut in the middle.
    pub fn reset_after_bytes(&self, direction: Direction, bytes: u32) {
        self.shared.allowance[direction as usize].store(i64::from(bytes), Ordering::SeqCst);
    }

    /// Ends every fault. Connections that lost bytes are reset.
    pub fn heal(&self) -> Result<()> {
        for allowance in &self.shared.allowance {
            allowance.store(-1, Ordering::SeqCst);
        }
        let has_dropped = self.shared.faults.borrow().is_dropped.contains(&true);
        if has_dropped {
            self.reset_connections()?;
        }
        self.change_faults(|faults| *faults = Faults::default())?;
        self.mend()
    }

    /// How many connections were accepted so far; it grows when a client reconnects.
    pub fn accepted_count(&self) -> u64 {
        self.shared.accepted.load(Ordering::SeqCst)
    }

    /// How many bytes were passed on so far in one direction.
    pub fn forwarded_bytes(&self, direction: Direction) -> u64 {
        self.shared.forwarded[direction as usize].load(Ordering::SeqCst)
    }

    fn change_faults(&self, change: impl FnOnce(&mut Faults) + Send + 'static) -> Result<()> {
        self.change(Change::Faults(Box::new(change)))
    }

    /// Waits for the proxy's thread, which answers within moments.
    fn change(&self, change: Change) -> Result<()> {
        let (answer, answered) = std_mpsc::channel();
        let gone = || anyhow!("the proxy at {} has ended", self.address());
        self.changes.send((change, answer)).map_err(|_| gone())?;
        answered.recv().map_err(|_| gone())?
    }
}

async fn serve(
    port: u16,
    listener: StdListener,
    mut changes: mpsc::UnboundedReceiver<(Change, Answer)>,
    shared: Arc<Shared>,
) {
    let mut listener = TcpListener::from_std(listener).ok();
    let mut target: Option<String> = None;
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            received = changes.recv() => {
                let Some((change, answer)) = received else { return };
                let outcome = match change {
                    Change::Target(new) => {
                        target = Some(new);
                        Ok(())
                    }
                    Change::Faults(change) => {
                        shared.faults.send_modify(change);
                        Ok(())
                    }
                    Change::Reset => {
                        reset(&shared, &mut connections).await;
                        Ok(())
                    }
                    Change::Cut => {
                        listener = None;
                        reset(&shared, &mut connections).await;
                        Ok(())
                    }
                    Change::Mend if listener.is_some() => Ok(()),
                    Change::Mend => match TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await {
                        Ok(bound) => {
                            listener = Some(bound);
                            Ok(())
                        }
                        Err(error) => Err(error).with_context(|| format!("binding a proxy's port {port} again")),
                    },
                };
                // Nobody waits any more when the caller has been dropped.
                let _ = answer.send(outcome);
            }
            Some(client) = accept(listener.as_ref()) => {
                shared.accepted.fetch_add(1, Ordering::SeqCst);
                if let Some(target) = target.clone() {
                    connections.spawn(connection::run(client, target, Arc::clone(&shared)));
                }
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

/// The next client; none when the proxy is cut.
async fn accept(listener: Option<&TcpListener>) -> Option<TcpStream> {
    let listener = listener?;
    loop {
        // An error here is a client that has gone already.
        if let Ok((client, _)) = listener.accept().await {
            return Some(client);
        }
    }
}

async fn reset(shared: &Shared, connections: &mut JoinSet<()>) {
    shared.resets.send_modify(|count| *count += 1);
    while connections.join_next().await.is_some() {}
}
