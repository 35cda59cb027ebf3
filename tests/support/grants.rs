//! The bridge's role in a catalog's database, with exactly the rights that `source grants --print` names.

use anyhow::{Context, Result, ensure};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, raw_sql};

/// The role that the bridge uses.
pub const ROLE: &str = "bridge_reader";
const PASSWORD: &str = "reader-secret";

/// Takes everything from everybody, then gives the role what the command prints, as a DBA would. `owner_url` must be of a
/// superuser; `options` are further words of the command. Returns the URL for the bridge's config.
pub async fn grant(owner_url: &str, schema: &str, options: &[&str]) -> Result<String> {
    let mut url = url::Url::parse(owner_url)?;
    let database = url.path().trim_start_matches('/').to_owned();
    url.set_username(ROLE).and_then(|()| url.set_password(Some(PASSWORD))).ok().context("a URL with a user")?;
    let url = String::from(url);
    let mut connection = PgConnection::connect(owner_url).await?;
    // Roles belong to the whole server: another test may make it at the same moment.
    let prepared = format!(
        "do $$ begin create role {ROLE} login password '{PASSWORD}';
         exception when duplicate_object or unique_violation then null; end $$;
         revoke all on database \"{database}\" from public;
         revoke all on schema \"{schema}\" from public;"
    );
    connection.execute(raw_sql(AssertSqlSafe(prepared))).await.context("making the bridge's role")?;
    let statements = statements(&url, schema, options)?;
    connection.execute(raw_sql(AssertSqlSafe(statements.clone()))).await.with_context(|| statements)?;
    Ok(url)
}

/// What the command prints.
fn statements(url: &str, schema: &str, options: &[&str]) -> Result<String> {
    let directory = tempfile::tempdir()?;
    let config = directory.path().join("catalog-bridge.yaml");
    let text = format!(
        "log: sqlite://{}/log.db\nsources: {{ backstage: {{ backstage-db: {{ url: \"{url}\", schema: {schema} }} }} }}\n",
        directory.path().display()
    );
    std::fs::write(&config, text)?;
    let config = config.display().to_string();
    let words = [&["source", "grants", "--print", "--config", &config], options].concat();
    let output = super::cli(&words)?;
    ensure!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}
