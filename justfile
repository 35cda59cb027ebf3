# Every task is one line of ordinary cargo, so all of it works without just.

# List the tasks
default:
    @just --list

# Show the product without any server
demo:
    cargo run --release -- demo

# Start PostgreSQL, Kafka and Backstage on loopback, print their addresses, stop them at Ctrl-C
up *services:
    cargo run -p catalog-bridge-services -- up {{services}}

# Everything that the README promises to pass
test:
    cargo test

# The long forms: more rounds, more seeds
test-all:
    CATALOG_BRIDGE_TEST=long cargo test --release

# All cells of the fault matrix (a part of test-all), and their table for docs/fault-matrix.md
faults:
    CATALOG_BRIDGE_TEST=long cargo test --release --test faults -- --nocapture

# The image without an engine, as root: its build stage, its binary in what the last stage holds (a part of test-all)
image:
    CATALOG_BRIDGE_TEST=long cargo test --test deploy image:: -- --nocapture

# What CI checks before the tests
lint:
    cargo fmt --all --check
    cargo clippy --workspace --all-targets -- -D warnings
    cargo deny check bans licenses sources

# Format and write the generated pages anew
fix:
    cargo fmt --all
    cargo run -- schema --docs > docs/configuration.md
    cargo run -- schema --metrics > docs/metrics.md

# Throughput and latency, release build
bench:
    cargo run --release -p catalog-bridge-bench
    cargo run --release -p catalog-bridge-bench --bin sinks
    cargo bench --bench chain
