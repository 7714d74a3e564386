//! Joins the login's pause namespace and runs a command in it: `join RUNTIME_DIR COMMAND...`.
//! With no command it says what it joined and how long that took.

use std::os::unix::process::CommandExt as _;
use std::process::ExitCode;
use std::time::Instant;

use selkie_userns::pause::{PauseRequest, join};

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let Some(runtime_dir) = arguments.next() else {
        eprintln!("usage: join RUNTIME_DIR [COMMAND...]");
        return ExitCode::from(125);
    };
    let request = PauseRequest {
        runtime_dir: runtime_dir.into(),
        find_survivors: |_| Vec::new(),
        survivors_dir: std::path::PathBuf::new(),
    };
    let begin = Instant::now();
    let joined = match join(&request) {
        Ok(joined) => joined,
        Err(error) => {
            eprintln!("Error: {error}");
            return ExitCode::from(125);
        }
    };
    let took = begin.elapsed();
    match arguments.next() {
        None => {
            println!("{joined:?}\njoined in {took:?}");
            ExitCode::SUCCESS
        }
        Some(program) => {
            let error = std::process::Command::new(&program).args(arguments).exec();
            eprintln!("Error: cannot run {program:?}: {error}");
            ExitCode::from(127)
        }
    }
}
