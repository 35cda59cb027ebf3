//! `catalog-bridge-services install|up [NAME…]`: the servers of the tests, for a person.

use std::env;

use anyhow::{Result, bail};
use catalog_bridge_services::{
    Backstage, BackstageOptions, BackstageVersion, ElasticMq, Kafka, KafkaOptions, KubeApiServer, KubernetesVersion,
    Nats, NatsOptions, PgBouncer, PgBouncerOptions, Postgres, PostgresOptions, PostgresVersion, RabbitMq,
    RabbitMqOptions, RabbitMqVersion, deployment,
};

const USAGE: &str = "usage: catalog-bridge-services install|up [NAME…]
  install  fills the cache (CATALOG_BRIDGE_CACHE); without a name, all
  up       starts servers on loopback, prints their addresses, stops them at Ctrl-C; without a name: postgres kafka backstage
names: postgres kafka backstage backstage-old pgbouncer nats elasticmq rabbitmq
       deployment (what judges the files of deploy/) kube-apiserver (for the long form of the tests)";

const NAMES: &[&str] = &[
    "postgres",
    "kafka",
    "backstage",
    "backstage-old",
    "pgbouncer",
    "nats",
    "elasticmq",
    "rabbitmq",
    "deployment",
    "kube-apiserver",
];
const NAMES_BY_DEFAULT: &[&str] = &["postgres", "kafka", "backstage"];

#[tokio::main]
async fn main() -> Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let Some((command, names)) = arguments.split_first() else { bail!("{USAGE}") };
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    if let Some(unknown) = names.iter().find(|name| !NAMES.contains(name)) {
        bail!("there is no server {unknown:?}\n{USAGE}");
    }
    match command.as_str() {
        "install" => install(if names.is_empty() { NAMES } else { &names }).await,
        "up" => up(if names.is_empty() { NAMES_BY_DEFAULT } else { &names }).await,
        _ => bail!("{USAGE}"),
    }
}

async fn install(names: &[&str]) -> Result<()> {
    for name in names {
        match *name {
            "postgres" => {
                for version in PostgresVersion::ALL {
                    Postgres::install(version).await?;
                }
            }
            "kafka" => Kafka::install().await?,
            "backstage" => drop(Backstage::install(BackstageVersion::New).await?),
            "backstage-old" => drop(Backstage::install(BackstageVersion::Old).await?),
            "nats" => drop(Nats::install().await?),
            "deployment" => deployment().await?,
            "kube-apiserver" => drop(KubeApiServer::install().await?),
            "elasticmq" => drop(ElasticMq::install().await?),
            "rabbitmq" => {
                for version in [RabbitMqVersion::V4, RabbitMqVersion::V3] {
                    RabbitMq::install(version).await?;
                }
            }
            _ => drop(PgBouncer::install().await?),
        }
    }
    Ok(())
}

async fn deployment() -> Result<()> {
    for version in [KubernetesVersion::Old, KubernetesVersion::New] {
        deployment::schemas(version).await?;
    }
    deployment::operator_schemas().await?;
    deployment::promtool().await?;
    deployment::kubeconform().await?;
    deployment::actionlint().await?;
    deployment::compose().await?;
    deployment::helm().await.map(drop)
}

/// Holds the servers until Ctrl-C; whatever way this process then ends, its supervisor stops them.
async fn up(names: &[&str]) -> Result<()> {
    let is_wanted = |name: &str| names.contains(&name);
    let mut postgres = None;
    let mut others: Vec<Box<dyn Send>> = Vec::new();
    if is_wanted("postgres") || is_wanted("pgbouncer") || is_wanted("backstage") || is_wanted("backstage-old") {
        let started = Postgres::start(PostgresOptions::default()).await?;
        println!("postgres {}", started.url("postgres"));
        postgres = Some(started);
    }
    if let Some(postgres) = postgres.as_ref().filter(|_| is_wanted("pgbouncer")) {
        let pooler = PgBouncer::start(postgres, PgBouncerOptions::default()).await?;
        println!("pgbouncer {}", pooler.url("postgres"));
        others.push(Box::new(pooler));
    }
    if is_wanted("kafka") {
        let kafka = Kafka::start(KafkaOptions::default()).await?;
        println!("kafka {}", kafka.bootstrap());
        others.push(Box::new(kafka));
    }
    if is_wanted("nats") {
        let nats = Nats::start(NatsOptions::default()).await?;
        println!("nats {}", nats.url());
        others.push(Box::new(nats));
    }
    if is_wanted("elasticmq") {
        let server = ElasticMq::start().await?;
        println!("elasticmq {}", server.endpoint());
        others.push(Box::new(server));
    }
    if is_wanted("rabbitmq") {
        let rabbit = RabbitMq::start(RabbitMqOptions::default()).await?;
        println!("rabbitmq {} management {}", rabbit.url(1), rabbit.management_url(1));
        others.push(Box::new(rabbit));
    }
    for (name, version) in [("backstage", BackstageVersion::New), ("backstage-old", BackstageVersion::Old)] {
        if let Some(postgres) = postgres.as_ref().filter(|_| is_wanted(name)) {
            let backstage = Backstage::start(postgres, BackstageOptions { version, ..Default::default() }).await?;
            println!(
                "{name} {} token {} control {} database {} schema {}",
                backstage.url(),
                backstage.token(),
                backstage.control_url("/mutate"),
                backstage.database_url(),
                backstage.schema(),
            );
            others.push(Box::new(backstage));
        }
    }
    println!("ready; Ctrl-C stops them");
    tokio::signal::ctrl_c().await?;
    Ok(())
}
