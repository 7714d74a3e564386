//! Selkie as its users meet it: the real binary, run by real unprivileged users, on images made by
//! other tools. `scripts/test` prepares the ground and runs this; see `ground`.

mod chaos;
mod containers;
mod crowds;
mod formats;
mod ground;
mod hostile;
mod hosts;
mod identity;
mod images;
mod isolation;
mod login;
mod network_buffers;
mod network_faults;
mod network_isolation;
mod network_routes;
mod networks;
mod online;
mod options;
mod outgoing;
mod processes;
mod refusals;
mod self_healing;
mod slirp4netns;
mod spares;
mod terminals;
mod transports;
mod updates;
mod volumes;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};

use crate::ground::Ground;

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let ground: &'static Ground = match Ground::from_environment() {
        Ok(ground) => Box::leak(Box::new(ground)),
        Err(error) => {
            eprintln!("cannot run: {error:#}");
            return ExitCode::from(2);
        }
    };
    println!("seed {} (SELKIE_TEST_SEED repeats it)", ground.seed);
    let topics: [fn(&'static Ground) -> Vec<Trial>; 23] = [
        images::trials,
        identity::trials,
        isolation::trials,
        containers::trials,
        options::trials,
        volumes::trials,
        networks::trials,
        updates::trials,
        terminals::trials,
        formats::trials,
        transports::trials,
        hostile::trials,
        refusals::trials,
        self_healing::trials,
        spares::trials,
        crowds::trials,
        online::trials,
        network_isolation::trials,
        network_faults::trials,
        network_buffers::trials,
        network_routes::trials,
        outgoing::trials,
        slirp4netns::trials,
    ];
    let mut trials: Vec<Trial> = topics.into_iter().flat_map(|topic| topic(ground)).collect();
    trials.extend(chaos::trials(ground));
    let conclusion = libtest_mimic::run(&arguments, trials);
    ground.end();
    conclusion.exit_code()
}
