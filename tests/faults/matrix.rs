//! The table of cells, the choice of a run, and the lanes in which they run.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use futures::StreamExt;
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, SliceRandom};

use crate::cell::{self, Outcome};
use crate::destination::{self, Destination};
use crate::fault::Fault;

/// A kind of sink.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Kind {
    Kafka,
    KafkaTransactional,
    RabbitMq,
    Nats,
    Sqs,
    Webhook,
    File,
}

/// The log's store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum StoreKind {
    Sqlite,
    Postgres,
}

/// One cell of the matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Cell {
    pub(crate) kind: Kind,
    /// Of the broker.
    pub(crate) nodes: usize,
    pub(crate) store: StoreKind,
    pub(crate) fault: Fault,
}

/// What a broker is started for: cells of one site run one after the other, on the same servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Site {
    Kafka(usize),
    RabbitMq(usize),
    Nats(usize),
    Sqs,
    Webhook,
    File,
}

/// Every kind of sink, how many nodes it is tried on, and which faults do not exist there.
const TABLE: &[(Kind, &[usize], &[Fault])] = &[
    (Kind::Kafka, &[1, 3], &[]),
    (Kind::KafkaTransactional, &[1, 3], &[]),
    (Kind::RabbitMq, &[1, 3], &[]),
    (Kind::Nats, &[1, 3], &[]),
    // The stand-in keeps everything in memory: killed, it loses what the service never does.
    (Kind::Sqs, &[1], &[Fault::BrokerKilled]),
    // A receiver's death is the same to its clients as a cut.
    (Kind::Webhook, &[1], &[Fault::BrokerKilled]),
    // No broker and no connection.
    (
        Kind::File,
        &[1],
        &[Fault::BrokerKilled, Fault::BrokerFrozen, Fault::Cut, Fault::AnswersLost, Fault::Refusing, Fault::Removed],
    ),
];

/// Sites whose cells run at the same time: most of a cell's time is waiting.
const LANES: usize = 3;
/// One cell may take so long.
const CELL_LIMIT: Duration = Duration::from_secs(600);

impl Cell {
    /// The servers that it needs.
    pub(crate) fn site(&self) -> Site {
        match self.kind {
            Kind::Kafka | Kind::KafkaTransactional => Site::Kafka(self.nodes),
            Kind::RabbitMq => Site::RabbitMq(self.nodes),
            Kind::Nats => Site::Nats(self.nodes),
            Kind::Sqs => Site::Sqs,
            Kind::Webhook => Site::Webhook,
            Kind::File => Site::File,
        }
    }

    /// The row of the table.
    pub(crate) fn row(&self) -> String {
        let kind = match self.kind {
            Kind::Kafka => "Kafka idempotent",
            Kind::KafkaTransactional => "Kafka transactional",
            Kind::RabbitMq => "RabbitMQ quorum queue",
            Kind::Nats => "NATS JetStream",
            Kind::Sqs => "SQS FIFO (ElasticMQ)",
            Kind::Webhook => "webhook",
            Kind::File => "file",
        };
        let nodes = if TABLE.iter().any(|(kind, nodes, _)| *kind == self.kind && nodes.len() > 1) {
            format!(" ×{}", self.nodes)
        } else {
            String::new()
        };
        let store = match self.store {
            StoreKind::Sqlite => "SQLite",
            StoreKind::Postgres => "PostgreSQL",
        };
        format!("{kind}{nodes}, {store}")
    }
}

impl fmt::Display for Cell {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}, {}", self.row(), self.fault)
    }
}

/// All cells, in the table's order.
pub(crate) fn all() -> Vec<Cell> {
    let mut cells = Vec::new();
    for (kind, nodes, absent) in TABLE {
        for nodes in *nodes {
            for store in [StoreKind::Sqlite, StoreKind::Postgres] {
                for fault in Fault::ALL.into_iter().filter(|fault| !absent.contains(fault)) {
                    cells.push(Cell { kind: *kind, nodes: *nodes, store, fault });
                }
            }
        }
    }
    cells
}

/// The cells of this run.
pub(crate) fn chosen(seed: u64) -> Vec<Cell> {
    let cells = all();
    if let Ok(part) = std::env::var("CATALOG_BRIDGE_CELLS") {
        return cells.into_iter().filter(|cell| cell.to_string().contains(&part)).collect();
    }
    let is_long = crate::support::rounds(0, 1) > 0;
    if is_long { cells } else { short(&cells, seed) }
}

/// Every fault once, dealt out over the kinds of sink on one node, so that each kind comes up too; and one cell of a cluster.
fn short(cells: &[Cell], seed: u64) -> Vec<Cell> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut kinds: Vec<Kind> = TABLE.iter().map(|(kind, _, _)| *kind).collect();
    kinds.shuffle(&mut random);
    let mut faults = Fault::ALL.to_vec();
    faults.shuffle(&mut random);
    let mut used: BTreeMap<Kind, usize> = kinds.iter().map(|kind| (*kind, 0)).collect();
    let mut chosen = Vec::new();
    // The faults with the fewest kinds first, so that every kind is left something.
    faults.sort_by_key(|fault| cells.iter().filter(|cell| cell.fault == *fault).count());
    for fault in faults {
        let candidates: Vec<&Cell> = cells.iter().filter(|cell| cell.fault == fault && cell.nodes == 1).collect();
        let Some(least) = candidates.iter().map(|cell| used[&cell.kind]).min() else { continue };
        let least_used: Vec<&&Cell> = candidates.iter().filter(|cell| used[&cell.kind] == least).collect();
        if let Some(cell) = least_used.choose(&mut random) {
            *used.entry(cell.kind).or_default() += 1;
            chosen.push(***cell);
        }
    }
    let unused = kinds.iter().filter(|kind| used[kind] == 0);
    let of_unused = unused.filter_map(|kind| {
        cells
            .iter()
            .filter(|cell| cell.kind == *kind && cell.nodes == 1)
            .collect::<Vec<_>>()
            .choose(&mut random)
            .copied()
    });
    let of_unused: Vec<Cell> = of_unused.copied().collect();
    chosen.extend(of_unused);
    let clusters: Vec<&Cell> = cells.iter().filter(|cell| cell.nodes == 3 && cell.fault.stops_delivery()).collect();
    chosen.extend(clusters.choose(&mut random).map(|cell| **cell));
    chosen
}

/// Runs the cells: sites beside one another, the cells of one site in turn.
pub(crate) async fn run(cells: &[Cell], seed: u64) -> BTreeMap<Cell, Result<Outcome>> {
    let mut sites: BTreeMap<Site, Vec<Cell>> = BTreeMap::new();
    for cell in cells {
        sites.entry(cell.site()).or_default().push(*cell);
    }
    // The longest first, so that no lane is left alone with it.
    let mut sites: Vec<_> = sites.into_iter().collect();
    sites.sort_by_key(|(_, cells)| std::cmp::Reverse(cells.len()));
    let lanes = sites.into_iter().map(|(site, cells)| run_site(site, cells, seed));
    let outcomes: Vec<_> = futures::stream::iter(lanes).buffer_unordered(LANES).collect().await;
    outcomes.into_iter().flatten().collect()
}

async fn run_site(site: Site, cells: Vec<Cell>, seed: u64) -> Vec<(Cell, Result<Outcome>)> {
    let mut outcomes = Vec::new();
    let mut destination: Option<Box<dyn Destination>> = None;
    for cell in cells {
        let begin = Instant::now();
        let running = async {
            let destination = match &mut destination {
                Some(destination) => destination,
                none => none.insert(destination::start(site).await.with_context(|| format!("starting {site:?}"))?),
            };
            cell::run(&cell, destination.as_mut(), seed).await
        };
        let outcome = match tokio::time::timeout(CELL_LIMIT, running).await {
            Ok(outcome) => outcome,
            Err(_) => Err(anyhow!("not over after {CELL_LIMIT:?}")),
        };
        let told = outcome.as_ref().map_or_else(|error| format!("FAILED: {error:#}"), ToString::to_string);
        eprintln!("{cell}: {told} ({:.0} s)", begin.elapsed().as_secs_f64());
        if outcome.is_err() {
            // Nobody knows in which state a failed cell leaves its servers.
            destination = None;
        }
        outcomes.push((cell, outcome));
    }
    outcomes
}
