//! Certificates for loopback, made new for each server by the `openssl` program.

use std::{path::Path, process::Command};

use anyhow::{Context, Result};

use crate::process::run_tool;

/// Makes `ca.pem`, and for `server` and `client` each a `.key`, a `.crt` and a `.pem` of both with the authority.
pub async fn make(directory: &Path) -> Result<()> {
    const SCRIPT: &str = r#"set -e
openssl req -x509 -newkey rsa:2048 -nodes -days 30 -subj /CN=test-ca -keyout ca.key -out ca.pem
echo 'subjectAltName=IP:127.0.0.1,DNS:localhost' > names
for who in server client; do
  openssl req -newkey rsa:2048 -nodes -subj /CN=$who -keyout $who.key -out $who.csr
  openssl x509 -req -in $who.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 30 -out $who.crt -extfile names
  cat $who.key $who.crt ca.pem > $who.pem
done"#;
    let mut command = Command::new("/bin/sh");
    command.args(["-c", SCRIPT]).current_dir(directory);
    run_tool(command, None).await.map(drop).context("making certificates; is openssl installed?")
}
