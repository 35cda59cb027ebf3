//! ElasticMQ, a server that speaks Amazon SQS: the released jars, resolved by Maven.
//!
//! It keeps everything in memory: unlike the real service it forgets its queues when it ends. For outages freeze it, or
//! put a fault proxy before it. Its deduplication and order within a group are as in the real service; its sequence numbers
//! and some error codes are not.

use std::{fs, path::PathBuf, process::Command, time::Duration};

use anyhow::{Context, Result};

use crate::{
    cache, maven,
    port::Port,
    process::StopSignal,
    server::{Readiness, Server, ServerSettings},
    supervisor::Supervisor,
};

/// An ElasticMQ on loopback. Dropped, it is stopped.
#[derive(Debug)]
pub struct ElasticMq {
    port: Port,
    server: Server,
}

impl ElasticMq {
    /// Installs ElasticMQ if it is not cached yet.
    pub async fn install() -> Result<PathBuf> {
        cache::installed("elasticmq-1.7.1", async |directory| {
            maven::copy_dependencies(include_str!("../elasticmq/pom.xml"), directory).await
        })
        .await
    }

    /// Starts a server of its own for one test.
    pub async fn start() -> Result<Self> {
        let jars = Self::install().await?;
        let directory = Supervisor::get()?.create_directory("elasticmq")?;
        let port = Port::reserve()?;
        let config = directory.join("elasticmq.conf");
        let text = format!(
            "\
include classpath(\"reference.conf\")
node-address {{ protocol = http, host = \"127.0.0.1\", port = {0}, context-path = \"\" }}
rest-sqs {{ enabled = true, bind-hostname = \"127.0.0.1\", bind-port = {0}, sqs-limits = strict }}
rest-stats {{ enabled = false }}
generate-node-address = false
queues-storage.enabled = false
messages-storage.enabled = false
aws {{ region = us-east-1, accountId = 000000000000 }}
pekko.http.server.parsing.illegal-header-warnings = off
",
            port.number(),
        );
        fs::write(&config, text).with_context(|| format!("writing {}", config.display()))?;
        let mut command = Command::new("java");
        command.args(["-Xmx384m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]);
        command.arg(format!("-Dconfig.file={}", config.display()));
        command.args(["-cp", &format!("{}/*", jars.display()), "org.elasticmq.server.Main"]);
        let mut server = Server::new(ServerSettings {
            name: format!("ElasticMQ at 127.0.0.1:{}", port.number()),
            command,
            directory,
            account: None,
            readiness: Readiness::Port(port.number()),
            start_limit: Duration::from_secs(90),
            stop_signal: StopSignal::Terminate,
        });
        server.start_again().await?;
        Ok(Self { port, server })
    }

    /// The endpoint for SQS clients: region `us-east-1`, any credentials.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port.number())
    }

    /// The address to which a proxy forwards.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port.number())
    }

    /// The server as a process, to stop, kill, freeze or start it.
    pub fn server(&mut self) -> &mut Server {
        &mut self.server
    }
}
