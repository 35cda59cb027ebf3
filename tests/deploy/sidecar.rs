//! The bridge in Backstage's pod: nothing of ours may take Backstage down.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tokio::process::Command;

use crate::charts::{Rendered, container, parent, parse, render, render_chart};
use crate::schemas::everything;
use crate::standalone::check_restricted;
use crate::support::{BINARY, free_port, wait_until};

/// The values that our chart gives for Backstage's.
async fn backstage_values(values: &Value) -> Result<Value> {
    let ours = render(values).await?;
    let text = ours.named("ConfigMap", "bridge-catalog-bridge-sidecar")["data"]["backstage-values.yaml"].clone();
    parse(text.as_str().context("a text")?)?.into_iter().next().context("values")
}

/// Backstage's chart with those values.
async fn backstage(values: &Value) -> Result<Rendered> {
    render_chart(&parent("backstage"), &backstage_values(values).await?).await
}

fn modest(native: bool) -> Value {
    json!({
        "mode": "sidecar",
        "sidecar": { "native": native },
        "envFrom": [{ "secretRef": { "name": "databases" } }],
        "env": [{ "name": "TOKEN", "valueFrom": { "secretKeyRef": { "name": "tokens", "key": "a" } } }],
    })
}

/// Our container may be wrong, restart or hang: Backstage's stays in its Service and is not restarted.
fn check_harmless(pod: &Value) -> Result<()> {
    let bridge = container(pod, "catalog-bridge");
    ensure!(bridge["readinessProbe"].is_null() && bridge["startupProbe"].is_null(), "{bridge:#}");
    ensure!(bridge["livenessProbe"]["httpGet"]["path"] == "/healthz", "liveness is our own progress");
    let probed = bridge["livenessProbe"]["httpGet"]["port"].clone();
    let ports = bridge["ports"].as_array().context("ports")?;
    let port = ports.iter().find(|port| port["name"] == probed).context("the probe's port")?;
    let stay = json!(["run", "--stay", format!("0.0.0.0:{}", port["containerPort"])]);
    let arguments = bridge["args"].as_array().context("arguments")?;
    ensure!(arguments.starts_with(stay.as_array().context("a list")?), "{arguments:?}");
    for part in ["requests", "limits"] {
        ensure!(bridge["resources"][part]["memory"].is_string(), "{part} are set");
    }
    check_restricted(bridge)?;
    ensure!(container(pod, "backstage-backend")["readinessProbe"]["httpGet"]["port"] == "backend", "theirs is theirs");
    ensure!(pod["spec"]["template"]["spec"]["shareProcessNamespace"].is_null());

    // What is not there must not keep the pod from starting.
    for source in bridge["envFrom"].as_array().into_iter().flatten() {
        ensure!(source["secretRef"]["optional"] == true, "{source}");
    }
    for variable in bridge["env"].as_array().into_iter().flatten() {
        ensure!(variable["valueFrom"]["secretKeyRef"]["optional"] == true, "{variable}");
    }
    let volumes = pod["spec"]["template"]["spec"]["volumes"].as_array().context("volumes")?;
    for source in volumes.iter().flat_map(|volume| [&volume["configMap"], &volume["secret"]]) {
        ensure!(source.is_null() || source["optional"] == true, "{source}");
    }
    let mounts = bridge["volumeMounts"].as_array().context("mounts")?;
    for mount in mounts {
        ensure!(volumes.iter().any(|volume| volume["name"] == mount["name"]), "nothing to mount: {mount}");
    }
    Ok(())
}

#[tokio::test]
async fn a_sidecar_cannot_take_backstage_down() -> Result<()> {
    for native in [false, true] {
        let rendered = backstage(&modest(native)).await?;
        let pod = rendered.one("Deployment");
        check_harmless(pod)?;
        let lists = &pod["spec"]["template"]["spec"];
        let (ours, other) = if native { ("initContainers", "containers") } else { ("containers", "initContainers") };
        let is_in =
            |list: &str| lists[list].as_array().is_some_and(|all| all.iter().any(|c| c["name"] == "catalog-bridge"));
        ensure!(is_in(ours) && !is_in(other), "native: {native}");
        let policy = &container(pod, "catalog-bridge")["restartPolicy"];
        ensure!(*policy == if native { json!("Always") } else { Value::Null });
    }
    Ok(())
}

#[tokio::test]
async fn readers_and_cloud_roles_come_with_the_values() -> Result<()> {
    let rendered = backstage(&everything("sidecar", 3)).await?;

    check_harmless(rendered.one("Deployment"))?;
    let ports = rendered.one("Service")["spec"]["ports"].as_array().context("ports")?;
    ensure!(
        ports.iter().any(|port| port["name"] == "bridge" && port["port"] == 8219 && port["targetPort"] == "bridge")
    );
    let rule = &rendered.one("NetworkPolicy")["spec"]["ingress"][0];
    ensure!(rule["ports"][0]["port"] == 8219 && rule["from"][0]["podSelector"]["matchLabels"]["app"] == "search");
    let account = rendered.one("ServiceAccount");
    ensure!(account["metadata"]["annotations"]["eks.amazonaws.com/role-arn"] == "arn:aws:iam::1:role/bridge");
    Ok(())
}

/// Backstage's own container sees neither our config nor our log.
#[tokio::test]
async fn backstage_mounts_nothing_of_ours_but_an_empty_volume() -> Result<()> {
    let mut values = modest(false);
    values["existingSecret"] = json!("bridge-config");
    let rendered = backstage(&values).await?;

    let theirs = container(rendered.one("Deployment"), "backstage-backend")["volumeMounts"].clone();

    ensure!(
        theirs
            == json!([{ "name": "catalog-bridge-temporary", "mountPath": "/var/run/catalog-bridge", "readOnly": true }])
    );
    Ok(())
}

#[tokio::test]
async fn a_changed_config_rolls_backstages_pods() -> Result<()> {
    let annotation = async |config: Value| -> Result<Value> {
        let rendered = backstage(&json!({ "mode": "sidecar", "config": config })).await?;
        let annotations = &rendered.one("Deployment")["spec"]["template"]["metadata"]["annotations"];
        Ok(annotations["checksum/catalog-bridge"].clone())
    };
    let first = annotation(json!({ "log": "${A}" })).await?;
    ensure!(first.is_string() && first == annotation(json!({ "log": "${A}" })).await?);
    ensure!(first != annotation(json!({ "log": "${B}" })).await?);
    Ok(())
}

#[tokio::test]
async fn an_environment_in_clear_text_is_refused() -> Result<()> {
    let values =
        json!({ "mode": "sidecar", "env": [{ "name": "LOG_DATABASE_URL", "value": "postgres://u:mark@h/d" }] });
    let error = render(&values).await.err().context("it is taken")?.to_string();
    ensure!(error.contains("LOG_DATABASE_URL in clear text") && !error.contains("mark"), "{error}");
    Ok(())
}

/// The library templates, for a chart that owns the pod.
#[tokio::test]
async fn a_chart_of_ones_own_includes_the_templates() -> Result<()> {
    let place = tempfile::tempdir()?;
    let chart = place.path().join("own");
    std::fs::create_dir_all(chart.join("templates"))?;
    for file in ["Chart.yaml", "templates/deployment.yaml"] {
        std::fs::copy(parent("own").join(file), chart.join(file))?;
    }
    std::fs::create_dir(chart.join("charts"))?;
    std::os::unix::fs::symlink(crate::charts::ours(), chart.join("charts/catalog-bridge"))?;

    let values =
        json!({ "catalog-bridge": { "mode": "sidecar", "envFrom": [{ "secretRef": { "name": "databases" } }] } });
    let rendered = render_chart(&chart, &values).await?;

    let pod = rendered.one("Deployment");
    let bridge = container(pod, "catalog-bridge");
    ensure!(bridge["readinessProbe"].is_null() && bridge["envFrom"][0]["secretRef"]["optional"] == true);
    let config = &pod["spec"]["template"]["spec"]["volumes"][0]["configMap"]["name"];
    ensure!(rendered.all("ConfigMap").iter().any(|map| map["metadata"]["name"] == *config), "{config} is rendered too");
    Ok(())
}

/// What `--stay` is for: a wrong config, and then a right one, in one process that never ends by itself.
#[tokio::test]
async fn a_daemon_that_stays_answers_its_probe_and_runs_once_its_config_is_right() -> Result<()> {
    let place = tempfile::tempdir()?;
    let (config, log) = (place.path().join("catalog-bridge.yaml"), place.path().join("log"));
    let (http, admin) = (free_port()?, free_port()?);
    let right = format!(
        "http: {{ listen: 127.0.0.1:{http}, admin: 127.0.0.1:{admin} }}\nlog: sqlite://{}/log.db\nsources: {{ push: {{ ingest: {{}} }} }}\n",
        place.path().display(),
    );
    std::fs::write(&config, format!("{right}sinkz: {{}}\n"))?;
    let mut daemon = Command::new(BINARY)
        .args(["run", "--stay", &format!("127.0.0.1:{http}"), "--config"])
        .arg(&config)
        .stderr(std::fs::File::create(&log)?)
        .kill_on_drop(true)
        .spawn()?;
    let client = reqwest::Client::new();
    let get = async |path: &str| -> Result<(u16, String)> {
        let reply = client.get(format!("http://127.0.0.1:{http}/{path}")).send().await?;
        Ok((reply.status().as_u16(), reply.text().await?))
    };
    let answers = async |path: &str, status: u16| Ok(get(path).await.is_ok_and(|reply| reply.0 == status));

    wait_until("the probe is answered without a daemon", async || answers("readyz", 503).await).await?;
    wait_until("the refusal is logged", async || Ok(std::fs::read_to_string(&log)?.contains("sinkz"))).await?;
    // Between two tries nobody listens for a moment.
    wait_until("the probe says that it is alive", async || answers("healthz", 200).await).await?;
    let is_told = async |value: u8| {
        let line = format!("catalog_bridge_daemon_running {value}");
        Ok(get("metrics").await.is_ok_and(|(_, text)| text.lines().any(|found| found == line)))
    };
    wait_until("metrics say that no daemon runs", async || is_told(0).await).await?;
    wait_until("readers are refused, and not told why", async || {
        Ok(get("api/catalog/events").await.is_ok_and(|(status, text)| status == 503 && !text.contains("sinkz")))
    })
    .await?;
    ensure!(daemon.try_wait()?.is_none(), "it lives");

    std::fs::write(&config, right)?;

    wait_until("the same process serves", async || answers("readyz", 200).await).await?;
    wait_until("metrics say that it runs", async || is_told(1).await).await?;
    let pid = daemon.id().context("it lives")?.to_string();
    std::process::Command::new("kill").args(["-TERM", &pid]).status()?;
    let status = tokio::time::timeout(std::time::Duration::from_secs(60), daemon.wait()).await??;
    ensure!(status.success(), "SIGTERM ends it in order: {status}");
    Ok(())
}
