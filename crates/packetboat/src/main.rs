//! The Packetboat binary: one program for every role, and the command line tool to look after it.
//!
//! `settings` reads the configuration file and the environment; each file of `roles` builds what one
//! role runs, and `services` runs it until the process is told to stop. `check`, `queue`, `domain`, `trace`, `probe`
//! and `crds` are the commands for people.

mod check;
mod command;
mod crds;
mod domain_command;
mod probe_command;
mod queue_command;
mod report;
mod roles;
mod services;
mod settings;
mod start;
mod trace_command;

use std::process::ExitCode;

use clap::Parser;

use command::{Arguments, Command};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    // Several libraries build rustls without a provider of their own; they all use this one. It is in
    // place already only when this were called twice.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let outcome = match Arguments::parse().command {
        Command::All(file) => start::role(settings::Role::All, &file.config),
        Command::Edge(file) => start::role(settings::Role::Edge, &file.config),
        Command::Verifier(file) => start::role(settings::Role::Verifier, &file.config),
        Command::Delivery(file) => start::role(settings::Role::Delivery, &file.config),
        Command::Operator(file) => start::role(settings::Role::Operator, &file.config),
        Command::MtaSts(file) => start::role(settings::Role::MtaSts, &file.config),
        Command::Check(arguments) => check::run(&arguments),
        Command::Queue(arguments) => queue_command::run(&arguments),
        Command::Domain(arguments) => domain_command::run(&arguments),
        Command::Trace(arguments) => trace_command::run(&arguments),
        Command::Probe(arguments) => probe_command::run(&arguments),
        Command::Crds(arguments) => crds::run(&arguments),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report::print(&error);
            ExitCode::FAILURE
        }
    }
}
