//! `redact`: forgets an entity's content.

use anyhow::Result;
use catalog_bridge_api::EntityRef;
use clap::Args;

use super::client::Client;
use super::output::{print, print_json};
use super::{Global, Output, WrongUse};

#[derive(Debug, Args)]
pub(super) struct Redact {
    /// The entity, such as `component:default/website`.
    entity_ref: String,
}

impl Redact {
    pub(super) async fn run(&self, global: &Global) -> Result<()> {
        let entity_ref = EntityRef::parse(&self.entity_ref).map_err(|error| WrongUse(error.to_string()))?;
        let query = [("entityRef", entity_ref.as_str().to_owned())];
        let reply = Client::operators(global)?.post("/redact", &query).await?;
        if global.output == Output::Json {
            return print_json(&reply);
        }
        let events = reply.get("redactedEvents").map_or_else(|| "?".to_owned(), ToString::to_string);
        print(&format!("{entity_ref}: {events} events redacted; what was delivered before stays where it is"))
    }
}
