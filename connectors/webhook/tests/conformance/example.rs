//! The receiver that the README shows.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};
use catalog_bridge_api::{Message, Ordering};
use serde_json::json;

use crate::setup::{NEW_SECRET, SECRET, build, is_misconfigured, messages, section_with, session};

struct Example(Child);

impl Drop for Example {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn events(list: &[(u64, &str)]) -> Vec<Message> {
    list.iter()
        .map(|(offset, name)| {
            let mut message = messages(*offset..=*offset).remove(0);
            let event = json!({
                "source": "/catalog/7",
                "type": "io.backstage.catalog.entity.updated.v1",
                "subject": format!("component:default/{name}"),
                "sequence": format!("{offset:020}"),
            });
            message.body = event.to_string().into();
            message
        })
        .collect()
}

#[tokio::test]
async fn the_example_receiver_takes_each_event_once_and_only_when_signed() -> Result<()> {
    let mut command = Command::new("python3");
    command.args([concat!(env!("CARGO_MANIFEST_DIR"), "/examples/receiver.py"), "0"]);
    command.env("WEBHOOK_SECRET", format!("{NEW_SECRET} {SECRET}")).stdout(Stdio::piped());
    let mut example = Example(command.spawn().context("starting python3")?);
    let mut lines = BufReader::new(example.0.stdout.take().context("its output")?).lines();
    let first = lines.next().context("a first line")??;
    let port = first.strip_prefix("listening on ").context("its port")?;
    let by = |secret| {
        let change = json!({ "secret": secret, "max_in_flight": 1 });
        build(section_with(&format!("127.0.0.1:{port}"), change), Ordering::Entity)
    };
    let connector = by(SECRET)?;

    session(&*connector, events(&[(1, "a"), (2, "b"), (3, "a")])).await?.result?;
    session(&*connector, events(&[(2, "b"), (3, "a"), (4, "a"), (1, "a")])).await?.result?;
    let stranger = by("whsec_ZZZZAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=")?;
    let error = session(&*stranger, events(&[(5, "a")])).await?.error();
    session(&*by(NEW_SECRET)?, events(&[(6, "b")])).await?.result?;

    assert!(is_misconfigured(&error) && error.to_string().contains("401"), "{error}");
    drop(example);
    let printed = lines.collect::<Result<Vec<_>, _>>()?;
    let sequences: Vec<&str> = printed.iter().filter_map(|line| line.split(' ').next()).collect();
    assert_eq!(sequences, [1, 2, 3, 4, 6].map(|offset: u64| format!("{offset:020}")), "{printed:?}");
    Ok(())
}
