//! Every way to install: releases of PostgreSQL, TLS, a pooler, prefixes, several backends at once, and no right too many.

use anyhow::{Context, Result, ensure};
use catalog_bridge_api::{EventType, Offset};
use catalog_bridge_history::{Truth, check_dense, check_well_formed, live_state};
use catalog_bridge_services::{
    BackstageOptions, Division, PgBouncer, PgBouncerOptions, Postgres, PostgresOptions, PostgresVersion,
};
use sqlx::{AssertSqlSafe, Connection, PgConnection};

use crate::servers;
use crate::support::catalog::Catalog;
use crate::support::{Daemon, Place, catalog_database, cli, component, grants};
use crate::watched::Watched;

fn config(place: &Place, source: &str) -> String {
    format!(
        "log: sqlite://{}/log.db\nsources: {{ backstage: {{ backstage-db: {{ {source} }} }} }}\n",
        place.path().display()
    )
}

/// Adds, changes and removes, and waits for each to arrive.
async fn follow(catalog: &Catalog, daemon: &Daemon) -> Result<()> {
    let arrives = async |count: usize| {
        daemon.wait_until("the event", async || Ok(daemon.events(Offset::ZERO).await?.len() == count)).await
    };
    catalog.put_one("a", 1).await?;
    arrives(1).await?;
    catalog.put_one("a", 2).await?;
    arrives(2).await?;
    catalog.remove_one("a").await?;
    arrives(3).await?;
    let events = daemon.events(Offset::ZERO).await?;
    check_well_formed(&events)?;
    ensure!(events[2].event_type == EventType::Removed, "{events:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_supported_postgres_is_captured_with_the_printed_grants() -> Result<()> {
    for version in PostgresVersion::ALL {
        let catalog = Catalog::create(&servers::postgres(version).await?.fresh_database("catalog").await?).await?;
        let place = Place::new()?;
        let daemon = place.start(&config(&place, &format!("url: \"{}\"", catalog.bridge_url()))).await?;
        follow(&catalog, &daemon).await.with_context(|| format!("{version:?}"))?;
        ensure!(daemon.source("backstage").await?["detail"]["capture"] == "generations", "{version:?}");
        daemon.stop().await?;
    }
    Ok(())
}

/// The server's certificate is of a private authority: named, it is believed; not named, nothing is read.
#[tokio::test(flavor = "multi_thread")]
async fn tls_is_verified_by_a_private_authority() -> Result<()> {
    let server = Postgres::start(PostgresOptions { tls: true, ..Default::default() }).await?;
    let catalog = Catalog::create(&server.fresh_database("catalog").await?).await?;
    let url = url::Url::parse(catalog.bridge_url())?;
    let tls = server.tls_url(url.path().trim_start_matches('/'));
    let (_, query) = tls.split_once('?').context("TLS parameters")?;
    let authority = query.rsplit('=').next().context("sslrootcert")?;
    let place = Place::new()?;
    let fields = format!(
        "host: {}, port: {}, database: {}, user: {}, password: {}, sslmode: verify-full, sslrootcert: {authority}",
        url.host_str().context("a host")?,
        url.port().context("a port")?,
        url.path().trim_start_matches('/'),
        url.username(),
        url.password().context("a password")?,
    );

    let by_fields = place.start(&config(&place, &fields)).await?;
    follow(&catalog, &by_fields).await.context("by fields")?;
    let unencrypted: i64 = sqlx::query_scalar(
        "select count(*) from pg_stat_activity join pg_stat_ssl using (pid)
         where application_name = 'catalog-bridge' and datname = current_database() and not ssl",
    )
    .fetch_one(&mut catalog.connect().await?)
    .await?;
    ensure!(unencrypted == 0, "{unencrypted} connections without TLS");
    by_fields.stop().await?;

    let other = Place::new()?;
    let by_url = other.start(&config(&other, &format!("url: \"{url}?{query}\""))).await?;
    by_url.wait_until("the source runs", async || Ok(by_url.source("backstage").await?["state"] == "running")).await?;
    by_url.stop().await?;

    let stranger = Place::new()?;
    let unknown = stranger.start(&config(&stranger, &format!("url: \"{url}?sslmode=verify-full\""))).await?;
    unknown
        .wait_until("the certificate is refused", async || {
            let source = unknown.source("backstage").await?;
            Ok(source["error"].as_str().or(source["reason"].as_str()).is_some_and(|text| text.contains("certificate")))
        })
        .await?;
    Ok(())
}

/// One server connection for all: whatever would outlive a transaction would meet another client.
#[tokio::test(flavor = "multi_thread")]
async fn a_pooler_in_transaction_mode_may_stand_before_the_catalog() -> Result<()> {
    let server = servers::postgres(PostgresVersion::V17).await?;
    let catalog = Catalog::create(&server.fresh_database("catalog").await?).await?;
    let options = PgBouncerOptions { pool_size: 1, role: grants::ROLE.to_owned(), ..Default::default() };
    let pooler = PgBouncer::start(server, options).await?;
    let database = url::Url::parse(catalog.bridge_url())?.path().trim_start_matches('/').to_owned();
    let pooled = pooler.url(&database).replace("postgres@", &format!("{}@", grants::ROLE));
    let mut daemons = Vec::new();
    for capture in ["generations", "reconcile"] {
        let place = Place::new()?;
        let source = format!("url: \"{pooled}\", capture: {capture}, reconcile_only_interval: 100ms");
        let daemon = place.start(&config(&place, &source)).await?;
        daemons.push((place, daemon));
    }

    for version in 0..20 {
        catalog.put_one(&format!("e{}", version % 5), version).await?;
    }
    catalog.remove_one("e3").await?;

    let truth = catalog.truth().await?;
    for (_, daemon) in &daemons {
        daemon
            .wait_until("log = truth", async || {
                Ok(live_state(Truth::new(), &daemon.events(Offset::ZERO).await?)? == truth)
            })
            .await?;
        check_well_formed(&daemon.events(Offset::ZERO).await?)?;
    }
    Ok(())
}

/// Two backends of one installation, its schemas prefixed, write at once.
#[tokio::test(flavor = "multi_thread")]
async fn several_backends_with_prefixed_schemas_write_at_once() -> Result<()> {
    let options = BackstageOptions { division: Division::PrefixedSchema, ..Default::default() };
    let watched = Watched::start(options, &["auto", "reconcile"]).await?;
    let other = watched.backstage.start_replica().await?;
    let put = async |backstage: &catalog_bridge_services::Backstage, stem: &str, version: u64| -> Result<()> {
        for some in 0..4 {
            let all: Vec<_> =
                (0..10).map(|number| component(&format!("{stem}{}", some * 10 + number), version)).collect();
            backstage.mutate_delta(&all, &[]).await?;
        }
        Ok(())
    };

    tokio::try_join!(put(&watched.backstage, "x", 1), put(&other, "y", 1))?;
    tokio::try_join!(put(&watched.backstage, "y", 2), put(&other, "x", 2))?;
    let gone = ["component:default/x1", "component:default/y1"];
    tokio::try_join!(watched.backstage.mutate_delta(&[], &gone[..1]), other.mutate_delta(&[], &gone[1..]))?;
    watched.wait_for("78 entities", |truth| truth.len() == 78).await?;
    watched
        .wait_for("all are of the second version", |truth| {
            truth.values().all(|entity| entity["metadata"]["annotations"]["example.com/version"] == "2")
        })
        .await?;
    watched.settle("what two backends wrote").await?;

    for watcher in &watched.watchers {
        let events = watcher.daemon.events(Offset::ZERO).await?;
        check_dense(Offset::ZERO, &events)?;
        check_well_formed(&events)?;
    }
    Ok(())
}

/// Each of the printed statements is needed, and what misses is named with the command that prints it.
#[tokio::test(flavor = "multi_thread")]
async fn each_printed_grant_is_needed() -> Result<()> {
    let url = catalog_database().await?;
    let catalog = Catalog::create(&url).await?;
    let database = url::Url::parse(&url)?.path().trim_start_matches('/').to_owned();
    let place = Place::new()?;
    let path = place.config().display().to_string();
    std::fs::write(
        place.config(),
        config(&place, &format!("url: \"{}\", capture: generations", catalog.bridge_url())),
    )?;
    let check = || cli(&["check", "--config", &path]);
    ensure!(check()?.status.success(), "with all rights: {}", String::from_utf8_lossy(&check()?.stderr));
    let mut connection = PgConnection::connect(&url).await?;
    let role = grants::ROLE;

    for (right, place) in [
        ("connect", format!("database \"{database}\"")),
        ("usage", "schema public".to_owned()),
        ("select", "public.final_entities".to_owned()),
        ("select", "public.catalog_generation_counter".to_owned()),
    ] {
        sqlx::query(AssertSqlSafe(format!("revoke {right} on {place} from {role}"))).execute(&mut connection).await?;
        let output = check()?;
        let told = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        ensure!(!output.status.success(), "without {right} on {place}: {told}");
        sqlx::query(AssertSqlSafe(format!("grant {right} on {place} to {role}"))).execute(&mut connection).await?;
    }
    let others: Vec<String> = sqlx::query_scalar(
        "select distinct table_name || ' ' || privilege_type from information_schema.role_table_grants where grantee = $1 order by 1",
    )
    .bind(role)
    .fetch_all(&mut connection)
    .await?;
    ensure!(others == ["catalog_generation_counter SELECT", "final_entities SELECT"], "{others:?}");
    Ok(())
}
