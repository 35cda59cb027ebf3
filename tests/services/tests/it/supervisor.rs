use std::{
    fs,
    io::{BufRead, BufReader},
    net::TcpStream,
    path::PathBuf,
    process::{Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

/// Guards the crate's first invariant: no server outlives the process that started it.
#[test]
fn nothing_is_left_of_a_test_run_that_was_killed() {
    let directory = tempfile::Builder::new().prefix("supervised-").tempdir().unwrap();
    // PostgreSQL runs as nobody when we are root, and must be let in.
    fs::set_permissions(directory.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let mut run = Command::new(env!("CARGO_BIN_EXE_catalog-bridge-services"))
        .args(["up", "postgres"])
        .env("TMPDIR", directory.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(run.stdout.take().unwrap()).lines().map(Result::unwrap);
    let line = lines.find(|line| line.starts_with("postgres ")).unwrap();
    let address = line.split(['@', '/']).find(|part| part.starts_with("127.0.0.1:")).unwrap();
    assert!(TcpStream::connect(address).is_ok());
    assert_eq!(run_directories(&directory).len(), 1);

    run.kill().unwrap();
    run.wait().unwrap();

    let start = Instant::now();
    while TcpStream::connect(address).is_ok() || !run_directories(&directory).is_empty() {
        assert!(start.elapsed() < Duration::from_secs(30), "the server or its directory is still there");
        sleep(Duration::from_millis(50));
    }
}

fn run_directories(parent: &tempfile::TempDir) -> Vec<PathBuf> {
    let entries = fs::read_dir(parent.path()).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.to_string_lossy().contains("catalog-bridge-run-")).collect()
}
