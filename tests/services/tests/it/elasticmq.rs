use catalog_bridge_services::ElasticMq;

#[tokio::test]
async fn a_queue_can_be_created_again_after_a_crash() {
    let mut server = ElasticMq::start().await.unwrap();
    let url = format!("{}/?Action=CreateQueue&QueueName=orders", server.endpoint());
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    assert!(client.get(&url).send().await.unwrap().status().is_success());

    server.server().kill9().await.unwrap();
    server.server().start_again().await.unwrap();

    assert!(client.get(&url).send().await.unwrap().status().is_success());
}
