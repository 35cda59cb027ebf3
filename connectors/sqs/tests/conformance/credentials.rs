//! The usual chain of credentials, which reads the environment: each case is this test binary again, in an environment of its own.

use std::process::{Command, Output};

use anyhow::{Context, Result};
use catalog_bridge_api::ConnectorError;

use crate::server::{build, client, create, fresh, section, shared};
use crate::session::{messages, run};

const ENDPOINT: &str = "CATALOG_BRIDGE_TEST_SQS_ENDPOINT";
const QUEUE: &str = "CATALOG_BRIDGE_TEST_SQS_QUEUE";

/// What runs in the child: the sink without credentials and region in its section.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "runs in an environment of its own"]
async fn sink_by_the_chain() -> Result<()> {
    let mut section = section(&std::env::var(ENDPOINT)?, &std::env::var(QUEUE)?);
    for key in ["access_key_id", "secret_access_key", "region"] {
        section.as_object_mut().context("an object")?.remove(key);
    }
    let connector = build(section)?;
    match run(&*connector, messages(3)).await?.result {
        Ok(()) => println!("DELIVERED"),
        Err(error @ ConnectorError::Misconfigured { .. }) => println!("MISCONFIGURED {error}"),
        Err(error) => println!("OTHERWISE {error}"),
    }
    Ok(())
}

async fn child(environment: &[(&str, &str)]) -> Result<String> {
    let endpoint = shared().await?.endpoint();
    let queue = fresh("chain");
    create(&client(&endpoint), &queue, &[]).await?;
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["--exact", "credentials::sink_by_the_chain", "--ignored", "--nocapture"]);
    for (name, _) in std::env::vars() {
        if name.starts_with("AWS_") {
            command.env_remove(name);
        }
    }
    command.env("HOME", "/nonexistent").env("AWS_EC2_METADATA_DISABLED", "true");
    command.env(ENDPOINT, endpoint).env(QUEUE, queue).envs(environment.iter().copied());
    let output: Output = tokio::task::spawn_blocking(move || command.output()).await??;
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    text.lines().find_map(verdict).map(str::to_owned).context(text.clone())
}

/// The child's verdict, somewhere in what the test harness prints around it.
fn verdict(line: &str) -> Option<&str> {
    let at = ["DELIVERED", "MISCONFIGURED", "OTHERWISE"].iter().find_map(|word| line.find(word))?;
    Some(&line[at..])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_environments_credentials_are_taken() -> Result<()> {
    let keys = [("AWS_ACCESS_KEY_ID", "k"), ("AWS_SECRET_ACCESS_KEY", "s3cret"), ("AWS_REGION", "eu-west-1")];

    assert_eq!(child(&keys).await?, "DELIVERED");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_credentials_and_no_region_are_for_the_operator() -> Result<()> {
    let verdict = child(&[("AWS_REGION", "eu-west-1")]).await?;
    assert!(verdict.starts_with("MISCONFIGURED"), "{verdict}");
    assert!(verdict.contains("no credentials found") && verdict.contains("write access_key_id"), "{verdict}");

    let verdict = child(&[("AWS_ACCESS_KEY_ID", "k"), ("AWS_SECRET_ACCESS_KEY", "s3cret")]).await?;
    assert!(verdict.starts_with("MISCONFIGURED") && verdict.contains("write region"), "{verdict}");
    assert!(!verdict.contains("s3cret"), "{verdict}");
    Ok(())
}
