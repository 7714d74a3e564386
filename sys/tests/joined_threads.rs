//! A process whose threads have been joined can be cloned at once. Without a harness, which would be a
//! thread of its own.

use selkie_sys::clone::{Side, exit_now, fork};

fn main() {
    for round in 0..5000 {
        std::thread::spawn(|| {}).join().expect("join a thread");
        match fork().unwrap_or_else(|error| panic!("round {round}: {error}")) {
            Side::Child => exit_now(0),
            Side::Parent { pid, .. } => {
                let options = rustix::process::WaitOptions::empty();
                rustix::process::waitpid(Some(pid), options).expect("wait for the child");
            }
        }
    }
    println!("test joined_threads ... ok");
}
