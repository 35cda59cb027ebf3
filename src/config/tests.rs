use super::*;

/// The file of DESIGN section 8, without the connectors that do not exist yet.
const EXAMPLE: &str = include_str!("tests/example.yaml");

fn environment(name: &str) -> Option<String> {
    match name {
        "CATALOG_DATABASE_URL" => Some("postgres://bridge:hunter2@catalog/backstage_plugin_catalog".to_owned()),
        "SECRET" => Some("hunter2".to_owned()),
        "SHORT" => Some("q7".to_owned()),
        "NUMBER" => Some("12".to_owned()),
        "YES" => Some("true".to_owned()),
        _ => None,
    }
}

fn refused(text: &str) -> String {
    match parse(text, &environment) {
        Ok(_) => panic!("must be refused:\n{text}"),
        Err(refusals) => refusals.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"),
    }
}

#[track_caller]
fn check(text: &str, expected: &str) {
    assert_eq!(refused(text), expected, "{text}");
}

fn accepted(text: &str) -> Config {
    parse(text, &environment).unwrap_or_else(|refusals| panic!("{refusals:?}"))
}

#[test]
fn the_example_of_the_design_is_read_as_it_stands() {
    let config = accepted(EXAMPLE);

    let crate::store::Backend::Postgres(postgres) = &config.store.backend else { panic!("a PostgreSQL log") };
    assert_eq!(postgres.url.open().expect("inline"), "postgres://bridge@db/catalog_bridge");
    assert_eq!(config.retention.bytes, 5 << 30);
    assert_eq!(config.http.listen, "0.0.0.0:8219");
    let crate::http::Auth::Tokens(tokens) = &config.http.auth else { panic!("tokens") };
    assert_eq!(tokens[0].filter.as_ref().map(ToString::to_string).as_deref(), Some("kind=component"));
    assert_eq!(config.sources[0].kind.protocol(), "backstage-db");
    let protocols: Vec<_> = config.sinks.iter().map(|sink| (sink.name.as_str(), sink.protocol)).collect();
    assert_eq!(protocols, [("audit", "file"), ("platform", "kafka")]);
    let filter = config.sinks[1].view.filter.as_ref().map(ToString::to_string);
    assert_eq!(filter.as_deref(), Some("kind=component"));
}

#[test]
fn the_smallest_file_has_a_log() {
    let config = accepted("log: sqlite:///tmp/log.db\n");

    assert_eq!((config.http.listen.as_str(), config.http.admin.as_deref()), ("127.0.0.1:8219", Some("127.0.0.1:8220")));
    check("", "1: log: this key is missing");
    check("http: {}\n", "1: log: this key is missing");
}

#[test]
fn unknown_keys_are_named_with_their_line_and_the_nearest_key() {
    check("log: sqlite:log.db\nhttpp: {}\n", "2: httpp: unknown key; did you mean \"http\"?");
    check(
        "log:\n  url: sqlite:log.db\n  retention:\n    ages: 30d\n",
        "4: log.retention.ages: unknown key; did you mean \"age\"?",
    );
    check(
        "log: sqlite:log.db\nhttp:\n  tokens:\n    - name: a\n      tokn: file:/x\n",
        "5: http.tokens[0].tokn: unknown key; did you mean \"token\"?",
    );
    check(
        "log: sqlite:log.db\nsources:\n  a:\n    backstage_db: {}\n",
        "4: sources.a.backstage_db: unknown key; did you mean \"backstage-db\"?",
    );
    check(
        "log: sqlite:log.db\nsinks:\n  a:\n    stdout: {}\n    encodign: json\n",
        "5: sinks.a.encodign: unknown key; did you mean \"encoding\"?",
    );
    check(
        "log: sqlite:log.db\nsinks:\n  a:\n    kafka:\n      brokres: [b:9092]\n      topic: t\n",
        "5: sinks.a.kafka.brokres: unknown key; did you mean \"brokers\"?",
    );
    check(
        "log: sqlite:log.db\nsinks:\n  a:\n    kafka:\n      brokers: [b:9092]\n      topic: t\n      tls: { cafile: x }\n",
        "7: sinks.a.kafka.tls.cafile: unknown key; did you mean \"ca_file\"?",
    );
}

#[test]
fn everything_wrong_is_told_at_once_in_the_order_of_the_file() {
    check(
        "lgo: x\nhttp: { listen: 1 }\nsinks:\n  a: { kafka: { topic: t }, start: soon }\n",
        "1: lgo: unknown key; did you mean \"log\"?\n\
         2: http.listen: expected text, found a number; put it in quotes\n\
         4: sinks.a.kafka.brokers: this key is missing\n\
         4: sinks.a.start: unknown value \"soon\"; known here: snapshot, earliest, latest",
    );
}

#[test]
fn keys_that_stand_twice_and_broken_yaml_are_refused() {
    check("log: sqlite:a.db\nhttp: {}\nlog: sqlite:b.db\n", "3: log: the key stands here twice; remove one of the two");
    assert!(
        refused("log: [\n").starts_with("2: this is no YAML") || refused("log: [\n").starts_with("1: this is no YAML")
    );
    check("- a\n", "1: expected a section of keys, found a list");
}

#[test]
fn values_that_mean_nothing_are_refused_where_they_stand() {
    let log = "log: sqlite:log.db\n";
    for (text, expected) in [
        (
            "http:\n  listen: 0.0.0.0:8219\n",
            "3: http.listen: without tokens only a loopback address (127.0.0.1) is served",
        ),
        ("http:\n  admin: 0.0.0.0:8220\n", "3: http.admin: elsewhere than on loopback this needs a token"),
        ("http:\n  listen: here\n", "3: http.listen: this is no address"),
        ("http:\n  auth: tokens\n", "3: http.auth: asks for tokens, and none is configured"),
        ("http:\n  base_path: api\n", "3: http.base_path: \"api\" is no base path"),
        ("http:\n  public_url: example.com\n", "3: http.public_url: this is no address"),
        (
            "http:\n  tokens: [{ name: a, token: file:/t, scopes: [write] }]\n",
            "3: http.tokens[0].scopes[0]: unknown value \"write\"",
        ),
        ("http:\n  tokens: [{ name: a, token: short }]\n", "3: http.tokens[0].token: is shorter than 16"),
        ("http:\n  tokens: [{ name: a, token: file:/t, filter: [] }]\n", "3: http.tokens[0].filter: an empty filter"),
        ("sources:\n  Bad_Name: { ingest: {} }\n", "3: sources.Bad_Name: \"Bad_Name\" is no name"),
        ("sources:\n  a: {}\n", "3: sources.a: names no source"),
        ("sources:\n  a: { ingest: {}, files: { path: x } }\n", "3: sources.a: names more than one source"),
        ("sources:\n  a: { backstage-db: {} }\n", "3: sources.a.backstage-db: names no database"),
        (
            "sources:\n  a: { files: { path: x, rescan_interval: 10 } }\n",
            "3: sources.a.files.rescan_interval: 10 has no unit",
        ),
        ("sinks:\n  a: {}\n", "3: sinks.a: names no connector"),
        ("sinks:\n  a: { stdout: {}, file: { path: x } }\n", "3: sinks.a."),
        ("sinks:\n  a: { stdout: {}, filter: '=x' }\n", "3: sinks.a.filter: \"=x\" is no condition"),
        ("sinks:\n  a: { stdout: {}, start: -1 }\n", "3: sinks.a.start: must be at least 0"),
        ("sinks:\n  a: { stdout: {}, omit: [spec..x] }\n", "3: sinks.a.omit[0]: this is no path"),
        ("sinks:\n  a: { stdout: {}, changes: '' }\n", "3: sinks.a.changes: write all, content"),
        ("telemetry:\n  log_level: loud\n", "3: telemetry.log_level: this is no level"),
    ] {
        let refusals = refused(&format!("{log}{text}"));
        assert!(refusals.starts_with(expected), "{text}: {refusals}");
    }
    check(
        "log: mysql://x\n",
        "1: log: this is no log; write postgres://user@host/database, or sqlite:///var/lib/catalog-bridge/log.db",
    );
    check("log: { url: sqlite:log.db, schema: x }\n", "1: log.schema: only a PostgreSQL log has this; remove it");
    check("log: \"sqlite::memory:\"\n", "1: log: names no file; write sqlite:///var/lib/catalog-bridge/log.db");
}

#[test]
fn two_sinks_may_not_write_to_one_file() {
    let refusals =
        refused("log: sqlite:l.db\nsinks:\n  a: { file: { path: /tmp/x } }\n  b: { file: { path: /tmp/x } }\n");

    assert!(refusals.starts_with("4: sinks.b.file: writes to"), "{refusals}");
    assert!(refusals.contains("as sink \"a\" does"), "{refusals}");
}

#[test]
fn variables_fill_texts_numbers_and_booleans_where_they_are_asked_for() {
    let config = accepted(
        "log: { host: h, database: d, password: \"${NUMBER}\", connections_max: \"${NUMBER}\" }\n\
         sinks: { a: { file: { path: \"/tmp/${NUMBER}\" }, ensure: \"${YES}\", start: \"${NUMBER}\" } }\n",
    );

    let crate::store::Backend::Postgres(postgres) = config.store.backend else { panic!("a PostgreSQL log") };
    assert_eq!(postgres.connections_max, 12);
    assert_eq!(postgres.password.and_then(|password| password.open().ok()).as_deref(), Some("12"));
    assert_eq!(config.sinks[0].start, crate::store::Start::At(12.into()));
    check("log: ${GONE}\n", "1: log: the environment variable GONE is not set; set it, or write ${GONE:-default}");
}

#[test]
fn no_refusal_shows_a_secret() {
    for text in [
        "log: \"${SECRET}\"\n",
        "log: mysql://u:hunter2@h/d\n",
        "log: { url: \"mysql://${SECRET}\" }\n",
        "log: { host: h, database: d, port: \"${SECRET}\" }\n",
        "log: { host: h, database: d, password: [hunter2] }\n",
        "log: { host: h, database: d, password: hunter2, passwort: hunter2 }\n",
        "log: { host: h, database: d, sslmode: \"${SECRET}\" }\n",
        "log: sqlite:l.db\nhttp: { tokens: [{ name: hunter2, token: hunter2 }], auth: none, base_path: \"${SECRET}\" }\n",
        "log: sqlite:l.db\nhttp: { listen: \"${SECRET}\" }\n",
        "log: sqlite:l.db\nsources: { a: { backstage-db: { url: \"mysql://u:hunter2@h/d\" } } }\n",
        "log: sqlite:l.db\nsources: { a: { backstage-db: { url: hunter2, removal_guard: \"${SECRET}\" } } }\n",
        "log: sqlite:l.db\nsinks: { a: { stdout: {}, filter: \"=${SECRET}\", start: \"${SECRET}\" } }\n",
        "log: sqlite:l.db\nsinks: { a: { stdout: { format: \"${SECRET}\" } } }\n",
        "log: sqlite:l.db\nsinks: { a: { kafka: { brokers: [b], topic: t, sasl: { mechanism: plian, username: u, password: hunter2 } } } }\n",
        "log: sqlite:l.db\npassword: \"hunter2\n",
        "log: sqlite:l.db\nx: {password: hunter2\n",
        "log: hunter2: hunter2\n",
    ] {
        let refusals = refused(text);
        assert!(!refusals.contains("hunter2"), "{text}: {refusals}");
    }
    assert!(!refused("log: sqlite:l.db\nhttp: { base_path: \"${SHORT}\" }\n").contains("q7"));
}

#[test]
fn no_debug_output_shows_a_secret() {
    let config = accepted(
        "log: { host: h, database: d, user: u, password: hunter2 }\n\
         http: { tokens: [{ name: a, token: hunter2hunter2hunter2 }] }\n\
         sources: { a: { backstage-db: { url: \"postgres://u:hunter2@h/d\" } } }\n",
    );

    let shown = format!("{:?} {:?} {:?}", config.store, config.http, config.sources);

    assert!(!shown.contains("hunter2"), "{shown}");
}

#[test]
fn the_schema_knows_every_connector() {
    let schema = reference::json_schema();

    for kind in crate::sinks::CONNECTORS {
        assert!(schema["$defs"]["SinkSection"]["properties"].get(kind.name()).is_some(), "{}", kind.name());
    }
    let page = reference::markdown();
    for part in ["## `log.retention`", "## `sinks.<name>.kafka.sasl`", "| `age` | period |", "| `password` | secret |"]
    {
        assert!(page.contains(part), "{part} is missing:\n{page}");
    }
}
