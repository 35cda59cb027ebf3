use catalog_bridge_services::{Collation, Postgres, PostgresOptions, PostgresVersion, shared};
use sqlx::{Connection, PgConnection};

async fn read_text(url: &str, query: &'static str) -> String {
    let mut connection = PgConnection::connect(url).await.unwrap();
    sqlx::query_scalar(query).fetch_one(&mut connection).await.unwrap()
}

#[tokio::test]
async fn committed_rows_survive_a_crash_of_the_server() {
    let mut postgres = Postgres::start(PostgresOptions::default()).await.unwrap();
    let url = postgres.create_database("kept").await.unwrap();
    postgres.execute("kept", "create table t (v text); insert into t values ('here')").await.unwrap();

    postgres.kill9().await.unwrap();
    assert!(PgConnection::connect(&url).await.is_err());
    postgres.start_again().await.unwrap();

    assert_eq!(read_text(&url, "select v from t").await, "here");
}

#[tokio::test]
async fn an_older_copy_of_the_data_can_be_restored() {
    let mut postgres = Postgres::start(PostgresOptions::default()).await.unwrap();
    let url = postgres.create_database("kept").await.unwrap();
    let copies = tempfile::tempdir().unwrap();
    let copy = copies.path().join("copy");

    postgres.execute("kept", "create table t as select 'old' as v").await.unwrap();
    postgres.stop().await.unwrap();
    postgres.copy_data_to(&copy).await.unwrap();
    postgres.start_again().await.unwrap();
    postgres.execute("kept", "update t set v = 'new'").await.unwrap();
    let twin = Postgres::start(PostgresOptions { data_from: Some(copy.clone()), ..Default::default() }).await.unwrap();
    assert_eq!(read_text(&url, "select v from t").await, "new");
    assert_eq!(read_text(&twin.url("kept"), "select v from t").await, "old");

    postgres.stop().await.unwrap();
    postgres.replace_data_by(&copy).await.unwrap();
    postgres.start_again().await.unwrap();
    assert_eq!(read_text(&url, "select v from t").await, "old");
}

#[tokio::test]
async fn a_paused_server_answers_after_resume() {
    let mut postgres = Postgres::start(PostgresOptions::default()).await.unwrap();
    let url = postgres.url("postgres");
    let mut connection = PgConnection::connect(&url).await.unwrap();

    postgres.pause().unwrap();
    let query = sqlx::query("select 1").execute(&mut connection);
    assert!(tokio::time::timeout(std::time::Duration::from_millis(300), query).await.is_err());
    postgres.resume().unwrap();

    assert_eq!(read_text(&url, "select 'answered'").await, "answered");
}

#[tokio::test]
async fn a_database_may_sort_as_english_readers_do() {
    let postgres = shared::postgres().await.unwrap();
    let by_bytes = shared::fresh_database("bytes").await.unwrap();
    let english = postgres.create_database_with("english", Collation::English).await.unwrap();

    let query = "select string_agg(v, ' ' order by v) from (values ('a'), ('B'), ('c')) as t(v)";
    assert_eq!(read_text(&by_bytes, query).await, "B a c");
    assert_eq!(read_text(&english, query).await, "a B c");
}

#[tokio::test]
async fn oldest_and_newest_releases_start() {
    for (version, expected) in [(PostgresVersion::V14, "14."), (PostgresVersion::V18, "18.")] {
        let settings = vec![("max_prepared_transactions".to_owned(), "5".to_owned())];
        let postgres = Postgres::start(PostgresOptions { version, settings, ..Default::default() }).await.unwrap();
        let url = postgres.url("postgres");
        assert!(read_text(&url, "show server_version").await.starts_with(expected));
        assert_eq!(read_text(&url, "show max_prepared_transactions").await, "5");
    }
}

#[tokio::test]
async fn clients_may_check_the_certificate_of_the_server() {
    let postgres = Postgres::start(PostgresOptions { tls: true, ..Default::default() }).await.unwrap();

    let query = "select version from pg_stat_ssl where pid = pg_backend_pid()";
    assert!(read_text(&postgres.tls_url("postgres"), query).await.starts_with("TLS"));
}
