use catalog_bridge_services::{Backstage, BackstageOptions, BackstageVersion, Division, shared};
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};

fn component(name: &str) -> Value {
    json!({
        "kind": "Component",
        "metadata": { "name": name },
        "spec": { "type": "service", "lifecycle": "production", "owner": "guests" },
    })
}

async fn read_refs(backstage: &Backstage) -> Vec<String> {
    let mut connection = PgConnection::connect(backstage.database_url()).await.unwrap();
    let query = format!(
        "select entity_ref from {}.final_entities where final_entity is not null order by 1",
        backstage.schema()
    );
    sqlx::query_scalar(sqlx::AssertSqlSafe(query)).fetch_all(&mut connection).await.unwrap()
}

async fn changes_reach_the_database(options: BackstageOptions) {
    let postgres = shared::postgres().await.unwrap();
    let mut backstage = Backstage::start(postgres, options).await.unwrap();

    backstage.mutate_full(&[component("a"), component("b")]).await.unwrap();
    backstage.wait_idle().await.unwrap();
    assert_eq!(read_refs(&backstage).await, ["component:default/a", "component:default/b"]);

    backstage.mutate_delta(&[component("c")], &["component:default/a"]).await.unwrap();
    backstage.wait_idle().await.unwrap();
    assert_eq!(read_refs(&backstage).await, ["component:default/b", "component:default/c"]);

    let yaml = "{apiVersion: backstage.io/v1alpha1, kind: Component, metadata: {name: d}, \
                spec: {type: service, lifecycle: production, owner: guests}}";
    let target = backstage.put_file("d.yaml", yaml).await.unwrap();
    backstage.register_location(&target).await.unwrap();
    backstage.wait_idle().await.unwrap();
    assert!(read_refs(&backstage).await.contains(&"component:default/d".to_owned()));

    backstage.server().kill9().await.unwrap();
    backstage.start_again().await.unwrap();
    backstage.delete_location(&target).await.unwrap();
    backstage.wait_idle().await.unwrap();
    assert!(!read_refs(&backstage).await.contains(&"component:default/d".to_owned()));
}

#[tokio::test]
async fn changes_reach_the_database_of_the_new_release() {
    changes_reach_the_database(BackstageOptions::default()).await;
}

#[tokio::test]
async fn changes_reach_the_schema_of_the_old_release() {
    let options = BackstageOptions { version: BackstageVersion::Old, division: Division::Schema, ..Default::default() };
    changes_reach_the_database(options).await;
}
