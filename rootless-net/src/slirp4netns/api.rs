//! Published ports of a slirp4netns that runs: JSON over its API socket, one request a connection.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Shutdown};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use selkie_sys::errno::Attempt as _;
use serde::{Deserialize, Serialize};

use crate::port_mapping::{PortMapping, Protocol};

/// It answers from its one loop, so only a hang takes this long.
const PATIENCE: Duration = Duration::from_secs(10);
const MOST_REPLY: u64 = 64 * 1024;

/// Why a port is not published.
#[derive(Debug, Clone, thiserror::Error)]
pub enum PublishError {
    /// It only listens on IPv4 addresses.
    #[error(
        "publish {0} with slirp4netns: it publishes on IPv4 addresses only; use --network pasta or a \
         user network"
    )]
    Family(IpAddr),
    /// Its own answer: the port is in use, needs a privilege, or the address is not the host's.
    #[error("publish {address}:{port}/{protocol} with slirp4netns: {said}")]
    Refused {
        /// Of the host.
        address: Ipv4Addr,
        /// Of the host.
        port: u16,
        /// TCP or UDP.
        protocol: Protocol,
        /// What it said.
        said: String,
    },
    /// The answer makes no sense.
    #[error("publish ports with slirp4netns: an odd answer: {0:?}")]
    Odd(String),
    /// The socket does not work.
    #[error(transparent)]
    System(#[from] selkie_sys::SysError),
}

#[derive(Serialize)]
struct Request<'a> {
    execute: &'static str,
    arguments: HostForward<'a>,
}

#[derive(Serialize)]
struct HostForward<'a> {
    proto: &'a str,
    host_addr: Ipv4Addr,
    host_port: u16,
    guest_addr: Ipv4Addr,
    guest_port: u16,
}

#[derive(Deserialize)]
struct Reply {
    error: Option<ReplyError>,
    #[serde(rename = "return")]
    value: Option<serde_json::Value>,
}

#[derive(Deserialize)]
struct ReplyError {
    desc: String,
}

/// Leads every port of `ports` to the container at `container`.
///
/// # Errors
/// The first port that cannot be published; those before it are.
pub fn publish(
    api_socket: &Path,
    ports: &[PortMapping],
    container: Ipv4Addr,
) -> Result<(), PublishError> {
    for port in ports {
        let host_addr = match port.host_ip {
            None => Ipv4Addr::UNSPECIFIED,
            Some(IpAddr::V4(address)) => address,
            Some(address) => return Err(PublishError::Family(address)),
        };
        for (host_port, guest_port) in port.pairs() {
            let request = Request {
                execute: "add_hostfwd",
                arguments: HostForward {
                    proto: port.protocol.as_str(),
                    host_addr,
                    host_port,
                    guest_addr: container,
                    guest_port,
                },
            };
            if let Some(said) = refusal(&ask(api_socket, &request)?)? {
                return Err(PublishError::Refused {
                    address: host_addr,
                    port: host_port,
                    protocol: port.protocol,
                    said,
                });
            }
        }
    }
    Ok(())
}

fn ask(api_socket: &Path, request: &Request<'_>) -> Result<String, PublishError> {
    let name = || format!("ask slirp4netns at {}", api_socket.display());
    let body = serde_json::to_vec(request).map_err(|error| PublishError::Odd(error.to_string()))?;
    let mut stream = UnixStream::connect(api_socket).attempt(name)?;
    stream.set_read_timeout(Some(PATIENCE)).attempt(name)?;
    stream.set_write_timeout(Some(PATIENCE)).attempt(name)?;
    stream.write_all(&body).attempt(name)?;
    stream.shutdown(Shutdown::Write).attempt(name)?;
    let mut reply = String::new();
    let mut bounded = stream.take(MOST_REPLY);
    bounded.read_to_string(&mut reply).attempt(name)?;
    Ok(reply)
}

/// Why the answer is no, if it is.
fn refusal(reply: &str) -> Result<Option<String>, PublishError> {
    let odd = || PublishError::Odd(reply.trim().to_owned());
    let parsed: Reply = serde_json::from_str(reply).map_err(|_| odd())?;
    match (parsed.error, parsed.value) {
        (Some(error), _) => Ok(Some(error.desc)),
        (None, Some(_)) => Ok(None),
        (None, None) => Err(odd()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers() {
        assert_eq!(refusal("{\"return\":{\"id\":1}}\n").unwrap(), None);
        let no = "{\"error\":{\"desc\":\"bad request: add_hostfwd: slirp_add_hostfwd failed\"}}";
        let said = refusal(no).unwrap().unwrap();
        assert!(said.contains("failed"));
        for odd in ["", "{}", "nonsense", "{\"error\":1}"] {
            assert!(matches!(refusal(odd), Err(PublishError::Odd(_))), "{odd}");
        }
    }
}
