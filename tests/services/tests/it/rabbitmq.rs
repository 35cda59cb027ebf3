use catalog_bridge_services::{RabbitMq, RabbitMqOptions, RabbitMqVersion};

async fn answers(rabbit: &RabbitMq, number: usize) -> bool {
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let request = client.get(format!("{}/api/overview", rabbit.management_url(number)));
    request.basic_auth("guest", Some("guest")).send().await.is_ok_and(|answer| answer.status().is_success())
}

#[tokio::test]
async fn a_cluster_of_three_survives_the_crash_of_a_node() {
    let mut rabbit = RabbitMq::start(RabbitMqOptions { nodes: 3, ..Default::default() }).await.unwrap();
    let status = rabbit.control(1, &["cluster_status"]).await.unwrap();
    assert!(["a@localhost", "b@localhost", "c@localhost"].iter().all(|node| status.contains(node)), "{status}");

    rabbit.node(2).kill9().await.unwrap();
    assert!(!answers(&rabbit, 2).await);
    rabbit.node(2).start_again().await.unwrap();

    assert!(answers(&rabbit, 2).await);
}

#[tokio::test]
async fn the_old_release_starts_again_after_a_crash() {
    let options = RabbitMqOptions { version: RabbitMqVersion::V3, ..Default::default() };
    let mut rabbit = RabbitMq::start(options).await.unwrap();

    rabbit.kill9().await.unwrap();
    rabbit.start_again().await.unwrap();

    assert!(answers(&rabbit, 1).await);
}
