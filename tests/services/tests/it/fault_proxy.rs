use std::time::Duration;

use catalog_bridge_services::{Direction, FaultProxy};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::{Instant, timeout},
};

/// A server that gives back what it gets.
async fn start_echo() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        loop {
            let (mut client, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let (mut from, mut to) = client.split();
                let _ = tokio::io::copy(&mut from, &mut to).await;
            });
        }
    });
    address
}

async fn exchange(client: &mut TcpStream) -> std::io::Result<()> {
    client.write_all(b"ping").await?;
    client.read_exact(&mut [0; 4]).await.map(drop)
}

async fn answers_not(client: &mut TcpStream) -> bool {
    timeout(Duration::from_millis(200), exchange(client)).await.is_err()
}

#[tokio::test]
async fn a_cut_resets_and_refuses_until_mended() {
    let proxy = FaultProxy::start(&start_echo().await).unwrap();
    let mut client = TcpStream::connect(proxy.address()).await.unwrap();
    exchange(&mut client).await.unwrap();

    proxy.cut().unwrap();
    assert!(exchange(&mut client).await.is_err());
    assert!(TcpStream::connect(proxy.address()).await.is_err());

    proxy.mend().unwrap();
    exchange(&mut TcpStream::connect(proxy.address()).await.unwrap()).await.unwrap();
    assert_eq!(proxy.accepted_count(), 2);
}

#[tokio::test]
async fn frozen_data_arrives_after_the_thaw() {
    let proxy = FaultProxy::start(&start_echo().await).unwrap();
    let mut client = TcpStream::connect(proxy.address()).await.unwrap();
    exchange(&mut client).await.unwrap();

    proxy.freeze().unwrap();
    assert!(answers_not(&mut client).await);
    proxy.thaw().unwrap();

    let mut held_back = [0; 4];
    client.read_exact(&mut held_back).await.unwrap();
    assert_eq!(&held_back, b"ping");
}

#[tokio::test]
async fn a_dropped_answer_has_reached_the_server() {
    let proxy = FaultProxy::start(&start_echo().await).unwrap();
    let mut client = TcpStream::connect(proxy.address()).await.unwrap();
    exchange(&mut client).await.unwrap();

    proxy.drop_data(Direction::ToClient).unwrap();
    assert!(answers_not(&mut client).await);
    assert_eq!(proxy.forwarded_bytes(Direction::ToServer), 8);
    assert_eq!(proxy.forwarded_bytes(Direction::ToClient), 4);

    proxy.heal().unwrap();
    assert!(exchange(&mut client).await.is_err(), "a connection that lost bytes must not go on");
    exchange(&mut TcpStream::connect(proxy.address()).await.unwrap()).await.unwrap();
}

#[tokio::test]
async fn a_stream_can_be_cut_in_the_middle() {
    let proxy = FaultProxy::start(&start_echo().await).unwrap();
    let mut client = TcpStream::connect(proxy.address()).await.unwrap();

    proxy.reset_after_bytes(Direction::ToServer, 6);
    exchange(&mut client).await.unwrap();
    assert!(exchange(&mut client).await.is_err());

    assert_eq!(proxy.forwarded_bytes(Direction::ToServer), 6);
}

#[tokio::test]
async fn latency_delays_both_directions() {
    let proxy = FaultProxy::start(&start_echo().await).unwrap();
    let mut client = TcpStream::connect(proxy.address()).await.unwrap();
    exchange(&mut client).await.unwrap();

    proxy.set_latency(Duration::from_millis(100)).unwrap();
    let start = Instant::now();
    exchange(&mut client).await.unwrap();

    assert!(start.elapsed() >= Duration::from_millis(200));
}
