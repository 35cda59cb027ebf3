use catalog_bridge_services::{Kafka, KafkaOptions, shared};

#[tokio::test]
async fn topics_survive_a_crash_of_the_broker() {
    let mut kafka = Kafka::start(KafkaOptions::default()).await.unwrap();
    kafka.create_topic("kept", 2, &["cleanup.policy=compact"]).await.unwrap();

    kafka.kill9().await.unwrap();
    kafka.start_again().await.unwrap();

    let refusal = kafka.create_topic("kept", 2, &[]).await.unwrap_err();
    assert!(format!("{refusal:#}").contains("already exists"), "{refusal:#}");
}

#[tokio::test]
async fn the_shared_broker_is_one() {
    let kafka = shared::kafka().await.unwrap();

    assert_eq!(shared::kafka().await.unwrap().bootstrap(), kafka.bootstrap());
    assert_eq!(kafka.bootstrap(), kafka.address(1));
}

#[tokio::test]
async fn two_of_three_nodes_are_a_quorum() {
    let mut kafka = Kafka::start(KafkaOptions { nodes: 3, ..Default::default() }).await.unwrap();
    assert_eq!(kafka.bootstrap().split(',').count(), 3);

    kafka.node(2).kill9().await.unwrap();
    kafka.create_topic("kept", 1, &[]).await.unwrap();
    kafka.node(2).start_again().await.unwrap();

    let refusal = kafka.create_topic("kept", 1, &[]).await.unwrap_err();
    assert!(format!("{refusal:#}").contains("already exists"), "{refusal:#}");
}
