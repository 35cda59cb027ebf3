use catalog_bridge_services::{PgBouncer, PgBouncerOptions, shared};
use sqlx::{Connection, PgConnection, postgres::PgConnectOptions};

#[tokio::test]
async fn transactions_pass_and_session_state_does_not() {
    let postgres = shared::postgres().await.unwrap();
    let mut pooler = PgBouncer::start(postgres, PgBouncerOptions { pool_size: 1, ..Default::default() }).await.unwrap();
    // PgBouncer refuses this start-up parameter, which sqlx sends by default.
    let options: PgConnectOptions = pooler.url("postgres").parse().unwrap();
    let options = options.extra_float_digits(None);
    let mut first = PgConnection::connect_with(&options).await.unwrap();
    let mut second = PgConnection::connect_with(&options).await.unwrap();

    let process = "select pg_backend_pid()";
    let one: i32 = sqlx::query_scalar(process).persistent(false).fetch_one(&mut first).await.unwrap();
    let other: i32 = sqlx::query_scalar(process).persistent(false).fetch_one(&mut second).await.unwrap();
    assert_eq!(one, other, "both clients share the one server connection");

    pooler.server().kill9().await.unwrap();
    pooler.server().start_again().await.unwrap();
    assert!(PgConnection::connect_with(&options).await.is_ok());
}
