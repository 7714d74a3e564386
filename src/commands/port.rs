//! `selkie port`.

use clap::{ArgMatches, Command};
use selkie_engine::Engine;
use selkie_engine::container::Container;
use selkie_engine::options::{PortMapping, Protocol};

use super::targets;
use crate::cli::CommandSpec;
use crate::cli::flag::{Flags, positionals, switch};
use crate::create_options::ports;
use crate::error::{CliError, Result};
use crate::session::Session;

/// The command.
pub const PORT: CommandSpec = CommandSpec {
    name: "port",
    aliases: &[],
    about: "List published ports",
    examples: "Examples:
  selkie port web
  selkie port web 80/tcp
  selkie port --all",
    flags,
    run,
};

fn flags(command: Command) -> Command {
    command
        .override_usage("selkie port [OPTIONS] CONTAINER [PORT[/PROTOCOL]]")
        .arg(positionals(
            "names",
            "CONTAINER [PORT]",
            "Container, and one of its ports",
        ))
        .arg(switch("all", "Of all containers").short('a'))
        .arg(switch("latest", "Of the container created last").short('l'))
}

fn run(session: &Session, matches: &ArgMatches) -> Result<u8> {
    let mut names = matches.texts("names");
    let (all, latest) = (matches.on("all"), matches.on("latest"));
    if all && latest {
        return Err(CliError::new("--all and --latest exclude each other"));
    }
    if all && !names.is_empty() {
        return Err(CliError::new("--all excludes names and ports"));
    }
    let engine = session.open_engine()?;
    if all {
        return list_all(&engine);
    }
    if latest {
        names.insert(0, targets::latest(&engine)?.called);
    }
    let (name, wanted) = match names.as_slice() {
        [name] => (name, None),
        [name, port] => {
            let wanted = ports::port_and_protocol(port).map_err(CliError::new)?;
            (name, Some(wanted))
        }
        [] => {
            return Err(CliError::new(
                "you must supply a running container name or id",
            ));
        }
        _ => return Err(CliError::new("a container and at most one port are wanted")),
    };
    let container = engine.container(&engine.find_container(name)?)?;
    let mappings = &container.config.options.ports;
    match wanted {
        None => super::print(&lines(mappings, ""))?,
        Some((port, protocol)) => {
            let found = ends(mappings, port, protocol);
            if found.is_empty() {
                return Err(CliError::new(format!(
                    "failed to find published port \"{port}/{protocol}\" of container {}",
                    container.name
                )));
            }
            super::print(&found)?;
        }
    }
    Ok(0)
}

fn list_all(engine: &Engine) -> Result<u8> {
    let of = |container: &Container| {
        let prefix = format!("{}\t", container.id.short());
        lines(&container.config.options.ports, &prefix)
    };
    let texts: Vec<String> = engine.containers()?.iter().map(of).collect();
    super::print(&texts.concat())?;
    Ok(0)
}

/// `80/tcp -> 0.0.0.0:8080`, a line for each port.
fn lines(mappings: &[PortMapping], prefix: &str) -> String {
    let mut text = String::new();
    for mapping in mappings {
        for (host, container) in mapping.pairs() {
            let end = end(mapping, host);
            text.push_str(&format!(
                "{prefix}{container}/{} -> {end}\n",
                mapping.protocol
            ));
        }
    }
    text
}

/// Where one port is published, a line for each.
fn ends(mappings: &[PortMapping], port: u16, protocol: Protocol) -> String {
    let of_protocol = mappings
        .iter()
        .filter(|mapping| mapping.protocol == protocol);
    of_protocol
        .flat_map(|mapping| {
            mapping
                .pairs()
                .filter(|(_, container)| *container == port)
                .map(|(host, _)| end(mapping, host) + "\n")
        })
        .collect()
}

fn end(mapping: &PortMapping, port: u16) -> String {
    match mapping.host_ip {
        None => format!("0.0.0.0:{port}"),
        Some(address) => std::net::SocketAddr::new(address, port).to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_for_each_port() {
        let mappings = ports::published(&[
            "8080-8081:80-81".into(),
            "[::1]:9090:80".into(),
            "53:53/udp".into(),
        ])
        .unwrap();
        assert_eq!(
            lines(&mappings, ""),
            "80/tcp -> 0.0.0.0:8080\n81/tcp -> 0.0.0.0:8081\n80/tcp -> [::1]:9090\n53/udp -> 0.0.0.0:53\n"
        );
        assert_eq!(
            ends(&mappings, 80, Protocol::Tcp),
            "0.0.0.0:8080\n[::1]:9090\n"
        );
        assert_eq!(ends(&mappings, 80, Protocol::Udp), "");
    }
}
