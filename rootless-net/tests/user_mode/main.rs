//! Real pasta and slirp4netns, old and new where both are there, between namespaces made for it.
//!
//! Programs are started by a process with one thread, so this runs without libtest's threads.

mod ground;
mod pasta;
mod slirp4netns;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Completion, Trial};

type Test = (&'static str, fn() -> Result<(), String>);

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    let must = std::env::var_os("SELKIE_TEST_MUST").is_some_and(|value| value == "1");
    let trials = [pasta::TESTS, slirp4netns::TESTS]
        .concat()
        .into_iter()
        .map(|(name, test): Test| {
            Trial::ignorable_test(name, move || match test() {
                Ok(()) => Ok(Completion::Completed),
                Err(reason) if must => Err(reason.into()),
                Err(reason) => Ok(Completion::ignored_with(reason)),
            })
        })
        .collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}
