//! `catalog-bridge-services install|up [NAME…]`: the servers of the tests, for a person.

use std::env;

use anyhow::{Result, bail};
use catalog_bridge_services::{Kafka, KafkaOptions, Postgres, PostgresOptions, PostgresVersion};

const USAGE: &str = "usage: catalog-bridge-services install|up [NAME…]
  install  fills the cache (CATALOG_BRIDGE_CACHE)
  up       starts servers on loopback, prints their addresses, stops them at Ctrl-C
names: postgres, kafka; without a name, all";

const NAMES: &[&str] = &["postgres", "kafka"];

#[tokio::main]
async fn main() -> Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let Some((command, names)) = arguments.split_first() else { bail!("{USAGE}") };
    if let Some(unknown) = names.iter().find(|name| !NAMES.contains(&name.as_str())) {
        bail!("there is no server {unknown:?}\n{USAGE}");
    }
    let is_wanted = |name: &str| names.is_empty() || names.iter().any(|wanted| wanted == name);
    match command.as_str() {
        "install" => install(is_wanted).await,
        "up" => up(is_wanted).await,
        _ => bail!("{USAGE}"),
    }
}

async fn install(is_wanted: impl Fn(&str) -> bool) -> Result<()> {
    if is_wanted("postgres") {
        for version in [PostgresVersion::V14, PostgresVersion::V17, PostgresVersion::V18] {
            Postgres::install(version).await?;
        }
    }
    if is_wanted("kafka") {
        Kafka::install().await?;
    }
    Ok(())
}

/// Holds the servers until Ctrl-C; whatever way this process then ends, its supervisor stops them.
async fn up(is_wanted: impl Fn(&str) -> bool) -> Result<()> {
    let mut _postgres = None;
    if is_wanted("postgres") {
        let postgres = Postgres::start(PostgresOptions::default()).await?;
        println!("postgres {}", postgres.url("postgres"));
        _postgres = Some(postgres);
    }
    let mut _kafka = None;
    if is_wanted("kafka") {
        let kafka = Kafka::start(KafkaOptions::default()).await?;
        println!("kafka {}", kafka.bootstrap());
        _kafka = Some(kafka);
    }
    println!("ready; Ctrl-C stops them");
    tokio::signal::ctrl_c().await?;
    Ok(())
}
