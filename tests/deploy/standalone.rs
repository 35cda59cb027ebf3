//! The bridge as a Deployment of its own.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::charts::{container, ours, render};
use crate::schemas::{everything, with};

fn sqlite(values: Value) -> Value {
    with(values, json!({ "config": { "log": "sqlite:///var/lib/catalog-bridge/log.db" } }))
}

/// With PostgreSQL a new pod is ready before an old one drains; a SQLite file has one daemon at a time.
#[tokio::test]
async fn a_rollout_drains_one_by_one_and_a_file_has_one_daemon() -> Result<()> {
    let rolled = render(&json!({ "replicas": 3 })).await?;
    let deployment = rolled.one("Deployment");
    ensure!(deployment["spec"]["strategy"]["rollingUpdate"] == json!({ "maxSurge": 1, "maxUnavailable": 0 }));
    let pod = &deployment["spec"]["template"]["spec"];
    ensure!(pod["terminationGracePeriodSeconds"].as_u64().is_some_and(|seconds| seconds >= 30));
    ensure!(pod["topologySpreadConstraints"][0]["topologyKey"] == "kubernetes.io/hostname");
    ensure!(rolled.one("PodDisruptionBudget")["spec"]["maxUnavailable"] == 1);

    let alone = render(&sqlite(json!({ "persistence": { "enabled": true } }))).await?;
    ensure!(alone.one("Deployment")["spec"]["strategy"] == json!({ "type": "Recreate" }));
    ensure!(alone.all("PodDisruptionBudget").is_empty(), "a budget for one pod would block a drain");
    let claim = alone.one("PersistentVolumeClaim");
    ensure!(claim["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep");
    Ok(())
}

#[tokio::test]
async fn the_pod_has_no_rights_that_it_does_not_need() -> Result<()> {
    for values in [json!({}), everything("standalone", 3)] {
        let rendered = render(&values).await?;
        for workload in [rendered.one("Deployment"), rendered.one("Pod")] {
            let pod = workload.pointer("/spec/template/spec").unwrap_or(&workload["spec"]);
            ensure!(pod["securityContext"]["runAsNonRoot"] == true);
            ensure!(pod["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault");
            for container in pod["containers"].as_array().context("containers")? {
                check_restricted(container)?;
            }
        }
    }
    Ok(())
}

/// Kubernetes' "restricted" profile, and a root file system that nobody writes to.
pub(crate) fn check_restricted(container: &Value) -> Result<()> {
    let context = &container["securityContext"];
    ensure!(context["allowPrivilegeEscalation"] == false, "{container:#}");
    ensure!(context["readOnlyRootFilesystem"] == true, "{container:#}");
    ensure!(context["runAsNonRoot"] == true && context["runAsUser"] == 65532, "{container:#}");
    ensure!(context["capabilities"]["drop"] == json!(["ALL"]), "{container:#}");
    ensure!(context["seccompProfile"]["type"] == "RuntimeDefault", "{container:#}");
    Ok(())
}

/// Argo CD and Flux see a difference only where somebody made one.
#[tokio::test]
async fn rendering_twice_gives_the_same_and_asks_no_cluster() -> Result<()> {
    let values = everything("standalone", 3);
    ensure!(render(&values).await?.text == render(&values).await?.text);

    for file in std::fs::read_dir(ours().join("templates"))?.flatten() {
        let text = std::fs::read_to_string(file.path())?;
        for word in ["lookup ", "randAlpha", "randNumeric", "uuidv4", "now ", "genCA", "genSelfSigned", "htpasswd"] {
            ensure!(!text.contains(word), "{} uses {word}", file.path().display());
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_changed_config_rolls_the_pods_and_the_same_does_not() -> Result<()> {
    let checksum = async |values: Value| -> Result<String> {
        let rendered = render(&values).await?;
        let annotation = &rendered.one("Deployment")["spec"]["template"]["metadata"]["annotations"]["checksum/config"];
        Ok(annotation.as_str().context("a checksum")?.to_owned())
    };
    let plain = checksum(json!({})).await?;
    ensure!(plain == checksum(json!({ "replicas": 2 })).await?);
    ensure!(plain != checksum(json!({ "config": { "log": "${OTHER}" } })).await?);
    Ok(())
}

/// The Service and the budget must not select the pod of `helm test`.
#[tokio::test]
async fn helm_test_dials_with_check_and_serves_nobody() -> Result<()> {
    let rendered = render(&json!({ "replicas": 2 })).await?;
    let check = rendered.one("Pod");
    ensure!(
        container(check, "check")["args"] == json!(["check", "--config", "/etc/catalog-bridge/catalog-bridge.yaml"])
    );
    ensure!(check["metadata"]["annotations"]["helm.sh/hook"] == "test");
    let selector = rendered.one("Service")["spec"]["selector"].as_object().context("a selector")?;
    ensure!(selector.iter().any(|(key, value)| check["metadata"]["labels"][key] != *value), "selected: {selector:?}");
    let pods = &rendered.one("Deployment")["spec"]["template"]["metadata"]["labels"];
    ensure!(selector.iter().all(|(key, value)| pods[key] == *value), "not selected: {pods}");
    Ok(())
}

#[tokio::test]
async fn a_secret_reaches_the_pod_and_no_config_map_or_annotation() -> Result<()> {
    let mark = "s3cret-mark";
    let rendered = render(&json!({
        "env": [{ "name": "LOG_DATABASE_URL", "value": format!("postgres://bridge:{mark}@db/log") }],
        "dashboard": { "enabled": true },
    }))
    .await?;
    ensure!(rendered.text.contains(mark), "the container gets it");
    for object in &rendered.objects {
        let template = &object["spec"]["template"]["metadata"];
        for place in [&object["data"], &object["metadata"], template] {
            ensure!(!place.to_string().contains(mark), "{place} shows a secret");
        }
    }

    for config in [
        json!({ "log": format!("postgres://bridge:{mark}@db/log") }),
        json!({ "log": { "host": "db", "password": mark } }),
        json!({ "log": "${L}", "http": { "tokens": [{ "name": "a", "token": mark }] } }),
        json!({ "log": "${L}", "sinks": { "k": { "kafka": { "sasl": { "password": mark } } } } }),
        json!({ "log": "${L}", "sinks": { "q": { "rabbitmq": { "url": format!("amqp://${{USER}}:{mark}@h") } } } }),
        json!({ "log": "${L}", "sinks": { "w": { "webhook": { "secret": mark } } } }),
        json!({ "log": "${L}", "sinks": { "w": { "webhook": { "secret": ["${S}", mark] } } } }),
    ] {
        let refused = render(&json!({ "config": config })).await;
        let error = refused.err().with_context(|| format!("{config} is taken"))?.to_string();
        ensure!(error.contains("would lie in a ConfigMap") && !error.contains(mark), "{error}");
    }
    let taken = json!({ "config": {
        "log": "postgres://bridge:${PASSWORD}@db/log",
        "http": { "tokens": [{ "name": "a", "token": "file:/run/token" }] },
    } });
    render(&taken).await.map(drop)
}

/// Every key that the config calls a secret is one that the chart looks at; URLs are looked at for a password.
#[test]
fn the_chart_knows_every_secret_of_the_config() -> Result<()> {
    let page = catalog_bridge::config::reference::markdown();
    let template = std::fs::read_to_string(ours().join("templates/_helpers.tpl"))?;
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `")?.split_once("` | secret"));
    let keys: Vec<_> = rows.map(|(key, _)| key).filter(|key| !["log", "url", "listen_url"].contains(key)).collect();
    ensure!(keys.len() >= 6, "{keys:?}");
    for key in keys {
        ensure!(template.contains(&format!("\"{key}\"")), "{key} may lie in clear text in a ConfigMap");
    }
    Ok(())
}
