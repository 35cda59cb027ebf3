//! The long form: a real kube-apiserver takes what the chart renders.

use anyhow::{Context, Result, ensure};
use catalog_bridge_services::KubeApiServer;
use serde_json::json;

use crate::charts::{parent, parse, render, render_chart};
use crate::schemas::everything;
use crate::support::rounds;

/// Where the server keeps objects of a kind.
fn route(kind: &str) -> Result<(&'static str, &'static str)> {
    Ok(match kind {
        "ConfigMap" => ("api/v1", "configmaps"),
        "Service" => ("api/v1", "services"),
        "ServiceAccount" => ("api/v1", "serviceaccounts"),
        "PersistentVolumeClaim" => ("api/v1", "persistentvolumeclaims"),
        "Pod" => ("api/v1", "pods"),
        "Deployment" => ("apis/apps/v1", "deployments"),
        "NetworkPolicy" => ("apis/networking.k8s.io/v1", "networkpolicies"),
        "PodDisruptionBudget" => ("apis/policy/v1", "poddisruptionbudgets"),
        "ServiceMonitor" => ("apis/monitoring.coreos.com/v1", "servicemonitors"),
        "PrometheusRule" => ("apis/monitoring.coreos.com/v1", "prometheusrules"),
        _ => anyhow::bail!("the chart renders a {kind}, and nobody said where it lies"),
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_api_server_takes_every_object() -> Result<()> {
    if rounds(0, 1) == 0 {
        return Ok(());
    }
    let server = KubeApiServer::start().await?;
    let sidecar = render(&everything("sidecar", 3)).await?;
    let values = sidecar.named("ConfigMap", "bridge-catalog-bridge-sidecar")["data"]["backstage-values.yaml"].clone();
    let values = parse(values.as_str().context("a text")?)?.into_iter().next().context("values")?;
    let stored =
        json!({ "config": { "log": "sqlite:///var/lib/catalog-bridge/log.db" }, "persistence": { "enabled": true } });
    let all = [
        render(&json!({})).await?,
        render(&everything("standalone", 3)).await?,
        render(&stored).await?,
        sidecar,
        render_chart(&parent("backstage"), &values).await?,
    ];

    let mut taken = 0;
    for object in all.iter().flat_map(|rendered| &rendered.objects) {
        let (api, plural) = route(object["kind"].as_str().context("a kind")?)?;
        server.dry_run(api, plural, object).await?;
        taken += 1;
    }

    let wrong = json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": "a" }, "spec": { "prots": [] } });
    let error = server.dry_run("api/v1", "services", &wrong).await.err().context("a wrong field is taken")?;
    ensure!(error.to_string().contains("prots"), "{error}");
    eprintln!("{taken} objects are taken");
    Ok(())
}
