//! One connection through the proxy: two pumps, one for each direction, and the reset that ends both.

use std::sync::{Arc, atomic::Ordering};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpStream,
        tcp::{ReadHalf, WriteHalf},
    },
    sync::{mpsc, watch},
    time::{Instant, sleep_until},
};

use super::{Direction, Faults, Shared};

const CHUNK_BYTES: usize = 16 * 1024;
/// Chunks under way because of latency; with more, the sender is held back.
const CHUNKS_MAX: usize = 256;

/// Serves a client until both sides have ended or the connections are reset.
pub(super) async fn run(mut client: TcpStream, target: String, shared: Arc<Shared>) {
    let mut resets = shared.resets.subscribe();
    let connected = tokio::select! {
        connected = TcpStream::connect(&target) => connected,
        _ = resets.changed() => {
            let _ = client.set_zero_linger();
            return;
        }
    };
    let Ok(mut server) = connected else {
        // As if the client had reached the absent server itself.
        let _ = client.set_zero_linger();
        return;
    };
    // Small messages pass at once.
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let is_reset = {
        let ((from_client, to_client), (from_server, to_server)) = (client.split(), server.split());
        let to_server = pump(Direction::ToServer, from_client, to_server, &shared);
        let to_client = pump(Direction::ToClient, from_server, to_client, &shared);
        tokio::select! {
            _ = resets.changed() => true,
            (to_server, to_client) = async { tokio::join!(to_server, to_client) } => to_server.is_err() || to_client.is_err(),
        }
    };
    if is_reset {
        let _ = (client.set_zero_linger(), server.set_zero_linger());
    }
}

/// Why a pump ends early: its side failed.
struct Broken;

async fn pump(
    direction: Direction,
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    shared: &Shared,
) -> Result<(), Broken> {
    let (sender, mut receiver) = mpsc::channel::<(Instant, Vec<u8>)>(CHUNKS_MAX);
    let reading = async {
        let mut faults = shared.faults.subscribe();
        loop {
            let mut chunk = vec![0; CHUNK_BYTES];
            let length = from.read(&mut chunk).await.map_err(|_| Broken)?;
            wait_until(&mut faults, |faults| !faults.is_frozen).await;
            if faults.borrow().is_dropped[direction as usize] {
                if length == 0 {
                    // The end of the stream is swallowed too.
                    wait_until(&mut faults, |faults| !faults.is_dropped[direction as usize]).await;
                    return Err(Broken);
                }
                continue;
            }
            if length == 0 {
                drop(sender);
                return Ok(());
            }
            chunk.truncate(length);
            let due = Instant::now() + faults.borrow().latency;
            sender.send((due, chunk)).await.map_err(|_| Broken)?;
        }
    };
    let writing = async {
        let mut faults = shared.faults.subscribe();
        while let Some((due, mut chunk)) = receiver.recv().await {
            sleep_until(due).await;
            wait_until(&mut faults, |faults| !faults.is_frozen).await;
            let is_last = spend_allowance(direction, &mut chunk, shared);
            to.write_all(&chunk).await.map_err(|_| Broken)?;
            shared.forwarded[direction as usize].fetch_add(chunk.len() as u64, Ordering::SeqCst);
            if is_last {
                shared.resets.send_modify(|count| *count += 1);
            }
        }
        to.shutdown().await.map_err(|_| Broken)
    };
    tokio::try_join!(reading, writing).map(drop)
}

/// Shortens the chunk to what may still pass; true when that was the end of the allowance.
fn spend_allowance(direction: Direction, chunk: &mut Vec<u8>, shared: &Shared) -> bool {
    // All connections of a proxy live on one thread, so nobody changes the allowance in between but a test.
    let allowance = &shared.allowance[direction as usize];
    let Ok(left) = usize::try_from(allowance.load(Ordering::SeqCst)) else { return false };
    if chunk.len() < left {
        allowance.store((left - chunk.len()) as i64, Ordering::SeqCst);
        return false;
    }
    chunk.truncate(left);
    allowance.store(-1, Ordering::SeqCst);
    true
}

async fn wait_until(faults: &mut watch::Receiver<Faults>, condition: impl Fn(&Faults) -> bool) {
    // The sender lives as long as this connection does.
    let _ = faults.wait_for(|faults| condition(faults)).await;
}
