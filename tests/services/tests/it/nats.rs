use std::io::{BufRead, BufReader};

use catalog_bridge_services::{Nats, NatsOptions};

/// The first line that a NATS server sends.
fn read_greeting(address: &str) -> String {
    let stream = std::net::TcpStream::connect(address).unwrap();
    BufReader::new(stream).lines().next().unwrap().unwrap()
}

#[tokio::test]
async fn a_cluster_survives_the_crash_of_all_its_servers() {
    let mut nats = Nats::start(NatsOptions { nodes: 3, sync_always: true, ..Default::default() }).await.unwrap();
    assert!(read_greeting(&nats.address(3)).contains("\"jetstream\":true"));

    nats.kill9().await.unwrap();
    assert!(std::net::TcpStream::connect(nats.address(1)).is_err());
    nats.start_again().await.unwrap();

    assert!(read_greeting(&nats.address(1)).starts_with("INFO "));
}
