//! A real kube-apiserver on etcd, without nodes: it judges objects as a cluster does, by dry run.
//!
//! Built from Kubernetes' own Go module, which takes minutes: only the long form of the tests asks for it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use tokio::process::Command as InstallCommand;

use crate::{
    cache::{self, run},
    debian, go, kubernetes,
    port::Port,
    process::StopSignal,
    server::{Readiness, Server, ServerSettings},
    supervisor::Supervisor,
};

const VERSION: kubernetes::KubernetesVersion = kubernetes::KubernetesVersion::New;

/// Whoever brings it may do everything; it never leaves loopback.
const TOKEN: &str = "tests-admin-token";

/// An API server on loopback. Dropped, it is stopped.
#[derive(Debug)]
pub struct KubeApiServer {
    url: String,
    client: reqwest::Client,
    _ports: [Port; 3],
    // In this order: the API server ends before what it rests on.
    _server: Server,
    _etcd: Server,
}

impl KubeApiServer {
    /// Builds it if it is not cached yet: five minutes on two cores.
    pub async fn install() -> Result<PathBuf> {
        let version = VERSION.text();
        let built = cache::installed(&format!("kube-apiserver-{version}"), async |directory| {
            let source = directory.join("source");
            let module = go::module("k8s.io/kubernetes", version, directory).await?;
            run(InstallCommand::new("cp").arg("-r").arg(&module).arg(&source)).await?;
            run(InstallCommand::new("chmod").args(["-R", "u+w"]).arg(&source)).await?;
            for left_over in ["go.work", "go.work.sum"] {
                let _ = fs::remove_file(source.join(left_over));
            }
            let _ = fs::remove_dir_all(source.join("vendor"));
            replace_staging(&source, version).await?;
            let number = version.trim_start_matches("v1.");
            let minor = number.split('.').next().unwrap_or_default();
            let set = "-X k8s.io/component-base/version";
            let flags = format!("-s -w {set}.gitVersion={version} {set}.gitMajor=1 {set}.gitMinor={minor}");
            let mut build = go(&source);
            build.args(["build", "-trimpath", "-ldflags", &flags, "-o"]).arg(directory.join("kube-apiserver"));
            run(build.arg("./cmd/kube-apiserver")).await?;
            fs::remove_dir_all(&source).with_context(|| format!("removing {}", source.display()))
        })
        .await?;
        Ok(built.join("kube-apiserver"))
    }

    /// Starts one of its own, with the definitions of the Prometheus operator.
    pub async fn start() -> Result<Self> {
        let (program, etcd) = (Self::install().await?, install_etcd().await?);
        let directory = Supervisor::get()?.create_directory("kube-apiserver")?;
        let ports = [Port::reserve()?, Port::reserve()?, Port::reserve()?];
        let [secure, store, peers] = [0, 1, 2].map(|index| ports[index].number());
        let etcd = start_etcd(&etcd, &directory.join("etcd"), store, peers).await?;

        let key = directory.join("account.key");
        run(InstallCommand::new("openssl").args(["genrsa", "-out"]).arg(&key).arg("2048")).await?;
        let public = directory.join("account.pub");
        run(InstallCommand::new("openssl").args(["rsa", "-pubout", "-in"]).arg(&key).arg("-out").arg(&public)).await?;
        let tokens = directory.join("tokens.csv");
        fs::write(&tokens, format!("{TOKEN},admin,admin,system:masters\n")).context("writing the token")?;
        let mut command = Command::new(program);
        command.args(["--bind-address=127.0.0.1", "--advertise-address=127.0.0.1", "--endpoint-reconciler-type=none"]);
        command.args(["--service-cluster-ip-range=10.0.0.0/24", "--authorization-mode=RBAC"]);
        command.args(["--service-account-issuer=https://kubernetes.default.svc"]);
        command.args(["--disable-admission-plugins=ServiceAccount"]);
        command.arg(format!("--etcd-servers=http://127.0.0.1:{store}")).arg(format!("--secure-port={secure}"));
        let files = [
            ("cert-dir", &directory.join("certificates")),
            ("service-account-signing-key-file", &key),
            ("service-account-key-file", &public),
            ("token-auth-file", &tokens),
        ];
        for (name, path) in files {
            command.arg(format!("--{name}={}", path.display()));
        }
        let mut server = Server::new(ServerSettings {
            name: format!("kube-apiserver at 127.0.0.1:{secure}"),
            command,
            directory,
            account: None,
            readiness: Readiness::Port(secure),
            start_limit: Duration::from_secs(180),
            stop_signal: StopSignal::Terminate,
        });
        server.start_again().await?;
        // Its certificate is made at the start, and nobody else listens on a reserved port.
        let client = reqwest::Client::builder().danger_accept_invalid_certs(true).timeout(Duration::from_secs(60));
        let url = format!("https://127.0.0.1:{secure}");
        let started = Self { url, client: client.build()?, _ports: ports, _server: server, _etcd: etcd };
        started.wait_until_ready().await?;
        started.define_operator_kinds().await?;
        Ok(started)
    }

    /// Asks the server what it would do with an object: a server-side apply as a strict dry run, so that a wrong field is an
    /// error. `plural` is the kind's name in paths, `api` such as `api/v1` or `apis/apps/v1`.
    pub async fn dry_run(&self, api: &str, plural: &str, object: &Value) -> Result<()> {
        let name = object["metadata"]["name"].as_str().context("an object has a name")?;
        let path =
            format!("{api}/namespaces/default/{plural}/{name}?dryRun=All&fieldManager=tests&fieldValidation=Strict");
        let mut object = object.clone();
        object["metadata"]["namespace"] = json!("default");
        let request = self.client.patch(format!("{}/{path}", self.url)).bearer_auth(TOKEN);
        let request = request.header("content-type", "application/apply-patch+yaml").body(object.to_string());
        let reply = request.send().await.with_context(|| format!("asking for {path}"))?;
        let (status, text) = (reply.status(), reply.text().await?);
        ensure!(status.is_success(), "the server refuses {plural} {name}: {status} {text}");
        Ok(())
    }

    async fn wait_until_ready(&self) -> Result<()> {
        let begin = Instant::now();
        loop {
            let reply = self.client.get(format!("{}/readyz", self.url)).bearer_auth(TOKEN).send().await;
            if reply.is_ok_and(|reply| reply.status().is_success()) {
                return Ok(());
            }
            if begin.elapsed() > Duration::from_secs(180) {
                bail!("{} is not ready after 180 s; {}", self.url, self._server.log_tail());
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    async fn define_operator_kinds(&self) -> Result<()> {
        let place = tempfile::tempdir()?;
        for plural in kubernetes::operator_kinds() {
            let definition = kubernetes::operator_definition(plural, place.path()).await?;
            let url = format!("{}/apis/apiextensions.k8s.io/v1/customresourcedefinitions", self.url);
            let reply = self.client.post(url).bearer_auth(TOKEN).json(&definition).send().await?;
            ensure!(reply.status().is_success(), "defining {plural}: {}", reply.text().await?);
            let served = format!("{}/apis/monitoring.coreos.com/v1/{plural}", self.url);
            let begin = Instant::now();
            while !self.client.get(&served).bearer_auth(TOKEN).send().await?.status().is_success() {
                ensure!(begin.elapsed() < Duration::from_secs(120), "{plural} are not served after 120 s");
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
        Ok(())
    }
}

/// The module leaves out its nested modules (`staging/`); they are published under versions of their own.
async fn replace_staging(source: &Path, version: &str) -> Result<()> {
    let module: Value = serde_json::from_str(&run(go(source).args(["mod", "edit", "-json"])).await?)?;
    let published = version.replacen("v1", "v0", 1);
    let mut edit = go(source);
    edit.args(["mod", "edit"]);
    for replaced in module["Replace"].as_array().into_iter().flatten() {
        let (Some(old), Some(new)) = (replaced["Old"]["Path"].as_str(), replaced["New"]["Path"].as_str()) else {
            continue;
        };
        if new.starts_with("./staging") {
            edit.arg(format!("-replace={old}={old}@{published}"));
        }
    }
    run(&mut edit).await.map(drop)
}

fn go(directory: &Path) -> InstallCommand {
    let mut command = go::go(directory);
    command.env("GOFLAGS", "-mod=mod").env("GOWORK", "off");
    command
}

async fn install_etcd() -> Result<PathBuf> {
    let suite = debian::host_suite()?;
    let unpacked = cache::installed(&format!("etcd-{suite}"), async |directory| {
        debian::unpack(&suite, &["etcd-server"], |_| false, directory).await
    })
    .await?;
    Ok(unpacked.join("usr/bin/etcd"))
}

async fn start_etcd(program: &Path, directory: &Path, clients: u16, peers: u16) -> Result<Server> {
    fs::create_dir_all(directory).with_context(|| format!("creating {}", directory.display()))?;
    let (clients_url, peers_url) = (format!("http://127.0.0.1:{clients}"), format!("http://127.0.0.1:{peers}"));
    let mut command = Command::new(program);
    command.args(["--name", "tests", "--data-dir"]).arg(directory.join("data"));
    command.args(["--listen-client-urls", &clients_url, "--advertise-client-urls", &clients_url]);
    command.args(["--listen-peer-urls", &peers_url, "--initial-advertise-peer-urls", &peers_url]);
    command.args(["--initial-cluster", &format!("tests={peers_url}")]);
    let mut etcd = Server::new(ServerSettings {
        name: format!("etcd at 127.0.0.1:{clients}"),
        command,
        directory: directory.to_owned(),
        account: None,
        readiness: Readiness::Http(clients, "/health"),
        start_limit: Duration::from_secs(60),
        stop_signal: StopSignal::Terminate,
    });
    etcd.start_again().await?;
    Ok(etcd)
}
