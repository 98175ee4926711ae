//! The `firelet` binary: parses the command line, runs the command, turns its error into an exit code.

mod aws;
mod cli;
mod client;
mod command;
mod config;
mod isolation;
mod secrets;
mod serve;

use std::process::ExitCode;

use clap::Parser;

use cli::{Cli, Command};

fn main() -> ExitCode {
    // Before any thread is there: this process may have been started to supervise sandboxes, or to be a machine.
    sandbox::run_if_helper();
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&anyhow::Error::new(error).context("could not start the async runtime")),
    };
    match runtime.block_on(run(cli.command)) {
        Ok(code) => code,
        Err(error) => fail(&error),
    }
}

async fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Serve(options) => serve::command(options).await,
        Command::Invoke(options) => command::invoke::run(options).await,
        Command::Logs(options) => command::logs::run(options).await,
        Command::Functions(options) => command::functions::run(options).await,
        Command::Keys(options) => command::keys::run(options),
        Command::Runtimes(options) => command::runtimes::run(&options).await,
        Command::Doctor(options) => command::doctor::run(&options),
        Command::Dev(options) => command::dev::run(options).await,
        Command::Simulate(options) => command::simulate::run(&options),
    }
}

fn fail(error: &anyhow::Error) -> ExitCode {
    eprintln!("firelet: {error:#}");
    ExitCode::FAILURE
}
