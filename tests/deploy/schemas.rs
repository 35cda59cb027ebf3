//! Every combination of values renders objects that Kubernetes' own schemas take, of the oldest supported release and the newest;
//! values that make no sense are refused with a sentence.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use catalog_bridge_services::{KubernetesVersion, deployment};
use serde_json::{Value, json};
use tokio::process::Command;

use crate::charts::{ours, render, run};

/// Values that switch every optional object on.
pub(crate) fn everything(mode: &str, replicas: u64) -> Value {
    json!({
        "mode": mode,
        "replicas": replicas,
        "sidecar": { "native": true, "backstageReplicas": replicas },
        "image": { "digest": format!("sha256:{}", "a".repeat(64)), "pullSecrets": [{ "name": "registry" }] },
        "envFrom": [{ "secretRef": { "name": "databases" } }],
        "env": [{ "name": "HOOK_SECRET", "valueFrom": { "secretKeyRef": { "name": "hook", "key": "secret" } } }],
        "extraVolumes": [{ "name": "authorities", "configMap": { "name": "authorities" } }],
        "extraVolumeMounts": [{ "name": "authorities", "mountPath": "/etc/authorities", "readOnly": true }],
        "service": { "annotations": { "example.com/team": "platform" } },
        "serviceAccount": { "annotations": { "eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/bridge" }, "automountServiceAccountToken": true },
        "podAnnotations": { "example.com/a": "b" },
        "podLabels": { "example.com/c": "d" },
        "nodeSelector": { "kubernetes.io/os": "linux" },
        "tolerations": [{ "key": "dedicated", "operator": "Exists", "effect": "NoSchedule" }],
        "affinity": { "nodeAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": { "nodeSelectorTerms": [{ "matchExpressions": [{ "key": "zone", "operator": "Exists" }] }] } } },
        "priorityClassName": "high",
        "networkPolicy": { "enabled": true, "from": [{ "podSelector": { "matchLabels": { "app": "search" } } }], "egress": [{ "to": [{ "ipBlock": { "cidr": "10.0.0.0/8" } }] }] },
        "serviceMonitor": { "enabled": true, "labels": { "release": "prometheus" } },
        "prometheusRule": { "enabled": true, "labels": { "release": "prometheus" } },
        "dashboard": { "enabled": true },
    })
}

/// `values` with `changes` laid over its top level.
pub(crate) fn with(mut values: Value, changes: Value) -> Value {
    let (Some(values_map), Value::Object(changes)) = (values.as_object_mut(), changes) else { return values };
    values_map.extend(changes);
    values
}

/// All that is judged: both modes, one and three replicas, every source of the config, every optional object on and off.
fn matrix() -> Vec<(String, Value)> {
    let off = json!({
        "podDisruptionBudget": { "enabled": false },
        "topologySpread": { "enabled": false },
        "serviceAccount": { "create": false },
    });
    let sqlite = json!({ "config": { "log": "sqlite:///var/lib/catalog-bridge/log.db" } });
    let mut cases = Vec::new();
    for mode in ["standalone", "sidecar"] {
        for replicas in [1, 3] {
            let plain = json!({ "mode": mode, "replicas": replicas, "sidecar": { "backstageReplicas": replicas } });
            let all = everything(mode, replicas);
            let mut add = |what: &str, values: Value| cases.push((format!("{mode}-{replicas}-{what}"), values));
            add("plain", plain.clone());
            add("off", with(plain.clone(), off.clone()));
            add("all", all.clone());
            add("secret", with(all.clone(), json!({ "existingSecret": "bridge-config" })));
            add("configmap", with(plain.clone(), json!({ "existingConfigMap": "bridge-config" })));
            if replicas == 1 {
                add("sqlite", with(plain, sqlite.clone()));
                let stored = json!({ "persistence": { "enabled": true, "storageClassName": "fast" } });
                add("sqlite-stored", with(with(all.clone(), sqlite.clone()), stored));
                let claimed = json!({ "persistence": { "enabled": true, "existingClaim": "log" } });
                add("sqlite-claimed", with(with(all, sqlite.clone()), claimed));
            }
        }
    }
    cases
}

/// Validates the files of a directory strictly against the schemas of one release.
async fn conform(directory: &Path, version: KubernetesVersion) -> Result<()> {
    let places = [deployment::schemas(version).await?, deployment::operator_schemas().await?];
    let mut kubeconform = Command::new(deployment::kubeconform().await?);
    kubeconform.args(["-strict", "-summary", "-n", "2"]);
    for place in places {
        let template = "{{ .ResourceKind }}{{ .KindSuffix }}.json";
        kubeconform.arg("-schema-location").arg(format!("{}/{template}", place.display()));
    }
    run(kubeconform.arg(directory)).await.map(drop).with_context(|| format!("Kubernetes {}", version.text()))
}

#[tokio::test]
async fn every_combination_of_values_conforms_to_an_old_and_a_new_kubernetes() -> Result<()> {
    let place = tempfile::tempdir()?;
    let cases = matrix();
    for (name, values) in &cases {
        let rendered = render(values).await.with_context(|| name.clone())?;
        ensure!(!rendered.objects.is_empty(), "{name} renders nothing");
        std::fs::write(place.path().join(format!("{name}.yaml")), &rendered.text)?;
    }

    for version in [KubernetesVersion::Old, KubernetesVersion::New] {
        conform(place.path(), version).await?;
    }

    eprintln!("{} combinations conform", cases.len());
    Ok(())
}

/// The judge itself: it must not take what Kubernetes refuses.
#[tokio::test]
async fn a_field_that_kubernetes_does_not_have_is_found() -> Result<()> {
    for wrong in [
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: { name: a }\nspec: { selector: {}, template: { spec: { containers: [{ name: a, imagePulPolicy: Always }] } } }",
        "apiVersion: v1\nkind: Service\nmetadata: { name: a }\nspec: { ports: [{ port: http }] }",
        "apiVersion: monitoring.coreos.com/v1\nkind: ServiceMonitor\nmetadata: { name: a }\nspec: { selector: {}, endpoints: [{ ports: bridge }] }",
    ] {
        let place = tempfile::tempdir()?;
        std::fs::write(place.path().join("wrong.yaml"), wrong)?;
        ensure!(conform(place.path(), KubernetesVersion::New).await.is_err(), "taken: {wrong}");
    }
    Ok(())
}

#[tokio::test]
async fn helm_lint_finds_nothing_to_say() -> Result<()> {
    for values in [json!({}), everything("sidecar", 3), everything("standalone", 3)] {
        let place = tempfile::tempdir()?;
        let file = place.path().join("values.json");
        std::fs::write(&file, values.to_string())?;
        let mut helm = Command::new(deployment::helm().await?);
        run(helm.args(["lint", "--strict"]).arg(ours()).arg("--values").arg(file)).await?;
    }
    Ok(())
}

#[tokio::test]
async fn what_makes_no_sense_is_refused_with_a_sentence() -> Result<()> {
    let sqlite = "sqlite:///var/lib/catalog-bridge/log.db";
    let cases = [
        (json!({ "repilcas": 2 }), "additional properties 'repilcas' not allowed"),
        (json!({ "replicas": "two" }), "got string, want integer"),
        (json!({ "mode": "daemonset" }), "value must be one of 'standalone', 'sidecar'"),
        (json!({ "terminationGracePeriodSeconds": 1 }), "minimum: got 1, want 15"),
        (
            json!({ "resources": { "requests": { "cpu": "1", "memory": "1Gi" } , "limits": null } }),
            "missing property 'limits'",
        ),
        (json!({ "replicas": 3, "config": { "log": sqlite } }), "set it to 1, or config.log to a PostgreSQL URL"),
        (
            json!({ "replicas": 2, "config": { "log": { "url": sqlite } } }),
            "replicas is 2 and the log is a SQLite file",
        ),
        (
            json!({ "mode": "sidecar", "sidecar": { "backstageReplicas": 2 }, "config": { "log": sqlite } }),
            "sidecar.backstageReplicas is 2 and the log is a SQLite file",
        ),
        (json!({ "existingSecret": "a", "existingConfigMap": "b" }), "set one of them"),
        (json!({ "config": { "log": "x", "http": { "listen": "0.0.0.0:9000" } } }), "choose the port by service.port"),
    ];
    for (values, sentence) in cases {
        let error = render(&values).await.err().with_context(|| format!("{values} is taken"))?.to_string();
        ensure!(error.contains(sentence), "{values} is refused otherwise: {error}");
    }
    Ok(())
}
