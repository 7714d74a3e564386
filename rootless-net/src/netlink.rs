//! Links, addresses, routes and rules, by rtnetlink(7).
//!
//! A [`Netlink`] speaks to the network namespace its socket was made in, wherever its owner is now.
//! Requests go out in batches, one `send` for all: the kernel works through them in order and
//! acknowledges each one. Errors say which request failed.

mod request;

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkMessage};
use netlink_packet_route::route::{RouteAttribute, RouteHeader, RouteMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use rustix::io::Errno;
use selkie_sys::errno::{Attempt, SysError, SysResult};
use selkie_sys::namespace;

pub use request::Request;
pub(crate) use request::default_destination;

/// Longest datagram the kernel sends in answer to a dump.
const ANSWER_SIZE: usize = 64 * 1024;

/// A conversation with the routing side of one network namespace.
#[derive(Debug)]
pub struct Netlink {
    socket: Socket,
    sequence: u32,
}

impl Netlink {
    /// With the namespace the calling thread is in.
    pub fn open() -> SysResult<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE).attempt(|| "make a netlink socket")?;
        socket.bind_auto().attempt(|| "bind a netlink socket")?;
        socket
            .connect(&SocketAddr::new(0, 0))
            .attempt(|| "connect a netlink socket to the kernel")?;
        // An error's answer need not carry the whole request back. Old kernels do without.
        let _ = socket.set_cap_ack(true);
        Ok(Self {
            socket,
            sequence: 0,
        })
    }

    /// With `network_namespace`, by a thread that visits it: the caller stays where it is, and need
    /// not be able to come back.
    pub fn open_in(network_namespace: BorrowedFd<'_>) -> SysResult<Self> {
        in_namespace(network_namespace, Self::open)
    }

    /// Sends all requests and waits until all are answered.
    ///
    /// # Errors
    /// The first one that failed with an errno it does not tolerate; the others have been carried out
    /// where they could be.
    pub fn batch(&mut self, requests: Vec<Request>) -> SysResult<()> {
        let first = self.sequence.wrapping_add(1);
        let mut bytes = Vec::with_capacity(requests.len() * 128);
        let mut expected = Vec::with_capacity(requests.len());
        for Request {
            attempt,
            message,
            flags,
            tolerated,
        } in requests
        {
            self.append(&mut bytes, message, flags | NLM_F_ACK);
            expected.push((attempt, tolerated));
        }
        if expected.is_empty() {
            return Ok(());
        }
        self.send(&bytes)?;
        let mut failed = None;
        let mut left = expected.len();
        let mut buffer = Vec::with_capacity(4096);
        while left > 0 {
            for (sequence, payload) in self.receive(&mut buffer)? {
                let place = sequence.wrapping_sub(first) as usize;
                let (Some((attempt, tolerated)), NetlinkPayload::Error(answer)) =
                    (expected.get_mut(place), payload)
                else {
                    continue;
                };
                left -= 1;
                let errno = answer
                    .code
                    .map(|code| Errno::from_raw_os_error(code.get().abs()));
                match errno {
                    Some(errno) if !tolerated.contains(&errno) && failed.is_none() => {
                        failed = Some(SysError::new(std::mem::take(attempt), errno));
                    }
                    _ => {}
                }
            }
        }
        failed.map_or(Ok(()), Err)
    }

    /// Index of the link with this name.
    pub fn index_of(&mut self, name: &str) -> SysResult<Option<u32>> {
        let mut message = LinkMessage::default();
        message
            .attributes
            .push(LinkAttribute::IfName(name.to_owned()));
        let mut bytes = Vec::with_capacity(64);
        let sequence = self.append(&mut bytes, RouteNetlinkMessage::GetLink(message), 0);
        self.send(&bytes)?;
        let mut buffer = Vec::with_capacity(4096);
        loop {
            for (answered, payload) in self.receive(&mut buffer)? {
                match payload {
                    _ if answered != sequence => {}
                    NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) => {
                        return Ok(Some(link.header.index));
                    }
                    NetlinkPayload::Error(answer) => {
                        let raw = answer.code.map_or(0, |code| code.get().abs());
                        return match Errno::from_raw_os_error(raw) {
                            Errno::NODEV => Ok(None),
                            errno => Err(SysError::new(format!("look up the link {name}"), errno)),
                        };
                    }
                    _ => {}
                }
            }
        }
    }

    /// Whether the main table has a default route, per family (IPv4, IPv6).
    pub fn default_routes(&mut self) -> SysResult<(bool, bool)> {
        let mut found = (false, false);
        self.dump(
            RouteNetlinkMessage::GetRoute(RouteMessage::default()),
            |message| {
                if let RouteNetlinkMessage::NewRoute(route) = message
                    && route.header.table == RouteHeader::RT_TABLE_MAIN
                    && route.header.destination_prefix_length == 0
                    && route.attributes.iter().any(|attribute| {
                        matches!(
                            attribute,
                            RouteAttribute::Oif(_) | RouteAttribute::MultiPath(_)
                        )
                    })
                {
                    match route.header.address_family {
                        netlink_packet_route::AddressFamily::Inet => found.0 = true,
                        netlink_packet_route::AddressFamily::Inet6 => found.1 = true,
                        _ => {}
                    }
                }
            },
        )?;
        Ok(found)
    }

    fn dump(
        &mut self,
        message: RouteNetlinkMessage,
        mut each: impl FnMut(RouteNetlinkMessage),
    ) -> SysResult<()> {
        let mut bytes = Vec::with_capacity(64);
        let sequence = self.append(&mut bytes, message, NLM_F_DUMP);
        self.send(&bytes)?;
        let mut buffer = Vec::with_capacity(ANSWER_SIZE);
        loop {
            for (answered, payload) in self.receive(&mut buffer)? {
                match payload {
                    _ if answered != sequence => {}
                    NetlinkPayload::InnerMessage(message) => each(message),
                    NetlinkPayload::Error(answer) => {
                        let raw = answer.code.map_or(0, |code| code.get().abs());
                        return Err(SysError::new("list routes", Errno::from_raw_os_error(raw)));
                    }
                    NetlinkPayload::Done(_) => return Ok(()),
                    _ => {}
                }
            }
        }
    }

    /// Appends one message and gives its sequence number.
    fn append(&mut self, bytes: &mut Vec<u8>, message: RouteNetlinkMessage, flags: u16) -> u32 {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::from(message));
        message.finalize();
        // Each message of a batch begins at a multiple of four.
        let start = bytes.len().next_multiple_of(4);
        bytes.resize(start + message.buffer_len(), 0);
        message.serialize(&mut bytes[start..]);
        self.sequence
    }

    fn send(&self, bytes: &[u8]) -> SysResult<()> {
        self.socket
            .send(bytes, 0)
            .attempt(|| "send requests to the kernel's routing side")?;
        Ok(())
    }

    /// The messages of one datagram, with the sequence number each one answers.
    fn receive(
        &self,
        buffer: &mut Vec<u8>,
    ) -> SysResult<Vec<(u32, NetlinkPayload<RouteNetlinkMessage>)>> {
        const TRUNCATED: &str = "read the kernel's answer about links and routes";
        buffer.clear();
        buffer.reserve(ANSWER_SIZE);
        loop {
            match self.socket.recv(buffer, 0) {
                Ok(_) => break,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error).attempt(|| TRUNCATED),
            }
        }
        let mut messages = Vec::new();
        let mut rest = buffer.as_slice();
        while rest.len() >= 16 {
            let length = u32::from_ne_bytes([rest[0], rest[1], rest[2], rest[3]]) as usize;
            if length < 16 || length > rest.len() {
                break;
            }
            // A message of a kind this crate does not know is none of ours.
            if let Ok(message) = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&rest[..length])
            {
                let (header, payload) = message.into_parts();
                messages.push((header.sequence_number, payload));
            }
            rest = &rest[length.next_multiple_of(4).min(rest.len())..];
        }
        if messages.is_empty() {
            return Err(SysError::new(TRUNCATED, Errno::BADMSG));
        }
        Ok(messages)
    }
}

/// Notices that routes or addresses of the namespace it was made in have changed.
#[derive(Debug)]
pub struct RouteChanges(Socket);

impl RouteChanges {
    /// Listens from now on, in the namespace the calling thread is in.
    pub fn watch() -> SysResult<Self> {
        /// `RTMGRP_IPV4_IFADDR | RTMGRP_IPV4_ROUTE | RTMGRP_IPV6_IFADDR | RTMGRP_IPV6_ROUTE`.
        const GROUPS: u32 = 0x10 | 0x40 | 0x100 | 0x400;
        let mut socket = Socket::new(NETLINK_ROUTE).attempt(|| "make a netlink socket")?;
        socket
            .bind(&SocketAddr::new(0, GROUPS))
            .attempt(|| "listen for changes of routes")?;
        socket
            .set_non_blocking(true)
            .attempt(|| "listen for changes of routes")?;
        Ok(Self(socket))
    }

    /// Takes what has come; true when something had. An overrun is a change too.
    pub fn drain(&self) -> bool {
        let mut any = false;
        let mut buffer = Vec::with_capacity(ANSWER_SIZE);
        loop {
            buffer.clear();
            match self.0.recv(&mut buffer, 0) {
                Ok(_) => any = true,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return any,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(_) => return true,
            }
        }
    }
}

impl AsFd for RouteChanges {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Runs `work` on a thread that is in `network_namespace`.
///
/// # Errors
/// The namespace cannot be entered (`EPERM`: its owner is not below the caller's user namespace);
/// whatever `work` fails with.
pub fn in_namespace<T: Send>(
    network_namespace: BorrowedFd<'_>,
    work: impl FnOnce() -> SysResult<T> + Send,
) -> SysResult<T> {
    let enter = || {
        namespace::join_by_fd(network_namespace).map_err(|error| {
            SysError::new(
                format!(
                    "enter the network namespace behind descriptor {}",
                    network_namespace.as_raw_fd()
                ),
                error.errno,
            )
        })?;
        work()
    };
    std::thread::scope(|scope| {
        std::thread::Builder::new()
            .spawn_scoped(scope, enter)
            .attempt(|| "start a thread")?
            .join()
            .unwrap_or_else(|_| {
                Err(SysError::new(
                    "work in a network namespace",
                    Errno::CANCELED,
                ))
            })
    })
}
