//! The operator's hand: one file per command.
//!
//! Invariants: exit codes are 0 (done), 1 (failed) and 2 (wrong use or config); what a program may read goes to the standard
//! output, everything else to the standard error; every list has `--output json`. Commands that act ask the running
//! daemon on its operator's listener, so that there is one writer. Knows nothing of how the rooms work.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::config::{Config, ConfigError};

mod capture;
mod check;
mod client;
mod demo;
mod log;
mod output;
mod redact;
mod run;
mod schema;
mod sinks;
mod source;
mod status;
mod tail;
mod triggers;

/// A change feed for Backstage's software catalog: one event table, REST, and ordered delivery to brokers.
#[derive(Debug, Parser)]
#[command(name = "catalog-bridge", version, propagate_version = true, max_term_width = 110)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// What every command takes.
#[derive(Debug, Args)]
struct Global {
    /// The config file.
    #[arg(
        long,
        short,
        global = true,
        env = "CATALOG_BRIDGE_CONFIG",
        default_value = "catalog-bridge.yaml",
        value_name = "FILE"
    )]
    config: PathBuf,
    /// The form of what is printed.
    #[arg(long, short, global = true, value_enum, default_value_t = Output::Text, value_name = "FORM")]
    output: Output,
    /// The running daemon's operator's listener; default: `http.admin` of the config.
    #[arg(long, global = true, env = "CATALOG_BRIDGE_ADMIN", value_name = "URL")]
    admin: Option<String>,
    /// A file with a token that allows it; default: a fitting one of the config.
    #[arg(long, global = true, env = "CATALOG_BRIDGE_TOKEN_FILE", value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// The least level of log lines, before the config's.
    #[arg(long, global = true, env = "CATALOG_BRIDGE_LOG_LEVEL", value_name = "LEVEL")]
    log_level: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    Text,
    Json,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs the daemon until SIGTERM or SIGINT; a second signal ends it at once.
    Run(run::Run),
    /// Shows it all on this machine, without a server: example files, an embedded log, REST, events as they come.
    Demo(demo::Demo),
    /// Dials everything that the config names, and says what it finds; changes nothing.
    Check(check::Check),
    /// Prints the config file's JSON Schema.
    Schema(schema::Schema),
    /// Prints events as they come.
    Tail(tail::Tail),
    /// What the running daemon does, and the commands that lead out of trouble.
    Status,
    /// Looks after sources.
    #[command(subcommand)]
    Source(source::Source),
    /// Looks after sinks; each command but `preview` takes effect on every replica.
    #[command(subcommand)]
    Sinks(sinks::Sinks),
    /// Looks after the event log.
    #[command(subcommand)]
    Log(log::Log),
    /// Removes everything that the log holds of an entity but its ref; offsets stay. What was delivered stays where it is.
    Redact(redact::Redact),
}

/// A command that was called in a way that cannot work: exit code 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct WrongUse(String);

/// Runs the command that the arguments name.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(2) } else { ExitCode::SUCCESS };
        }
    };
    match start(cli) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("{}", describe(&error));
            exit_code(&error)
        }
    }
}

fn start(cli: Cli) -> Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("starting")?;
    let code = runtime.block_on(execute(cli));
    // What is still blocked in a system call must not hold the end up.
    runtime.shutdown_background();
    code
}

async fn execute(cli: Cli) -> Result<ExitCode> {
    let Cli { global, command } = cli;
    match command {
        Command::Run(run) => run.run(&global).await?,
        Command::Demo(demo) => demo.run(&global).await?,
        Command::Check(check) => return check.run(&global).await,
        Command::Schema(schema) => schema.run()?,
        Command::Tail(tail) => tail.run(&global).await?,
        Command::Status => status::run(&global).await?,
        Command::Source(source) => source.run(&global).await?,
        Command::Sinks(sinks) => sinks.run(&global).await?,
        Command::Log(log) => log.run(&global).await?,
        Command::Redact(redact) => redact.run(&global).await?,
    }
    Ok(ExitCode::SUCCESS)
}

impl Global {
    fn load(&self) -> Result<Config> {
        let mut config = crate::config::load(&self.config)?;
        if let Some(level) = &self.log_level {
            config.logging.level = crate::telemetry::logging::Settings::parse_level(level)
                .map_err(|message| WrongUse(format!("--log-level: {message}")))?;
        }
        Ok(config)
    }
}

/// The causes of an error in one line; the config's refusals as they are, one a line.
fn describe(error: &anyhow::Error) -> String {
    if let Some(refused) = error.downcast_ref::<ConfigError>() {
        return refused.to_string();
    }
    let mut text = String::from("error");
    let mut last = String::new();
    for cause in error.chain() {
        let cause = cause.to_string();
        // An error that shows its source itself would tell it twice.
        if !last.contains(&cause) {
            text = format!("{text}: {cause}");
            last = cause;
        }
    }
    text
}

fn exit_code(error: &anyhow::Error) -> ExitCode {
    // 400: the daemon says that an argument means nothing.
    let is_wrong_use = error.chain().any(|cause| {
        cause.is::<ConfigError>()
            || cause.is::<WrongUse>()
            || cause.downcast_ref::<client::Refused>().is_some_and(|refused| refused.status.as_u16() == 400)
    });
    ExitCode::from(if is_wrong_use { 2 } else { 1 })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_arguments_are_well_defined() {
        Cli::command().debug_assert();
    }

    /// Every state says which command leads out of it; what is printed must be what is taken.
    #[test]
    fn the_commands_that_status_prints_are_taken() {
        let texts = [include_str!("../delivery/report.rs"), include_str!("../source/report.rs")];
        let mut found = 0;
        for line in texts.iter().flat_map(|text| text.lines()).filter(|line| !line.trim_start().starts_with("//")) {
            let Some((_, rest)) = line.split_once("\"catalog-bridge ") else { continue };
            let command = rest.split('"').next().unwrap_or_default();
            let command = command.replace("{offset}", "7").replace("{sink}", "orders").replace("{}", "orders");
            let arguments = ["catalog-bridge"].into_iter().chain(command.split_whitespace());
            found += 1;
            if let Err(error) = Cli::try_parse_from(arguments) {
                panic!("status prints \"catalog-bridge {command}\": {error}");
            }
        }
        assert!(found >= 5, "only {found} commands were found; where do they stand now?");
    }

    #[test]
    fn an_error_is_told_once_with_its_causes() {
        let error = anyhow::anyhow!("connection refused").context("no daemon answers").context("no daemon answers");

        assert_eq!(describe(&error), "error: no daemon answers: connection refused");
    }
}
