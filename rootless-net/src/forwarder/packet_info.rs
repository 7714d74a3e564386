//! Datagrams with the address of ours they came to, and leave from (`IP_PKTINFO`, ip(7);
//! `IPV6_PKTINFO`, ipv6(7)): a socket on all addresses must answer from the one it was asked on.

use std::cell::RefCell;
use std::io::{self, IoSlice, IoSliceMut};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::libc::{in_addr, in_pktinfo, in6_addr, in6_pktinfo};
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, sendmsg,
};

/// The largest datagram there is.
const LARGEST: usize = 65536;

thread_local! {
    /// One for all ports: nobody keeps a datagram in it while waiting.
    static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; LARGEST]);
    static CONTROL: RefCell<Vec<u8>> = RefCell::new(nix::cmsg_space!(in6_pktinfo, in_pktinfo));
}

/// Lends the thread's buffer, which holds any datagram.
pub(super) fn with_buffer<T>(body: impl FnOnce(&mut [u8]) -> T) -> T {
    BUFFER.with_borrow_mut(|buffer| body(buffer))
}

/// An address of the host that a client spoke to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Local {
    /// IPv4.
    V4(Ipv4Addr),
    /// IPv6, with the interface's index where the address means nothing without.
    V6(Ipv6Addr, u32),
}

/// Where a datagram came from, and where to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Ends {
    pub client: SocketAddr,
    pub local: Local,
}

/// Takes one datagram from a socket that has been asked for packet information.
pub(super) fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<(usize, Ends)> {
    CONTROL.with_borrow_mut(|control| {
        let mut parts = [IoSliceMut::new(buffer)];
        let flags = MsgFlags::MSG_DONTWAIT;
        let message =
            recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut parts, Some(control), flags)?;
        let client = message.address.as_ref().and_then(socket_address);
        let local = message.cmsgs()?.find_map(|control| match control {
            ControlMessageOwned::Ipv4PacketInfo(info) => Some(Local::V4(Ipv4Addr::from(
                info.ipi_spec_dst.s_addr.to_ne_bytes(),
            ))),
            ControlMessageOwned::Ipv6PacketInfo(info) => {
                let address = Ipv6Addr::from(info.ipi6_addr.s6_addr);
                let scope = if address.is_unicast_link_local() || address.is_multicast() {
                    info.ipi6_ifindex
                } else {
                    0
                };
                // What came to a group is answered from an address of that interface.
                let address = if address.is_multicast() {
                    Ipv6Addr::UNSPECIFIED
                } else {
                    address
                };
                Some(Local::V6(address, scope))
            }
            _ => None,
        });
        let bytes = message.bytes;
        match (client, local) {
            (Some(client), Some(local)) => Ok((bytes, Ends { client, local })),
            _ => Err(io::Error::other("a datagram without addresses")),
        }
    })
}

/// Answers `ends.client` from `ends.local`.
pub(super) fn send(socket: BorrowedFd<'_>, datagram: &[u8], ends: &Ends) -> io::Result<()> {
    let parts = [IoSlice::new(datagram)];
    let to = SockaddrStorage::from(ends.client);
    let (v4, v6);
    let control = match ends.local {
        Local::V4(address) => {
            v4 = in_pktinfo {
                ipi_ifindex: 0,
                ipi_spec_dst: in_addr {
                    s_addr: u32::from_ne_bytes(address.octets()),
                },
                ipi_addr: in_addr { s_addr: 0 },
            };
            ControlMessage::Ipv4PacketInfo(&v4)
        }
        Local::V6(address, scope) => {
            v6 = in6_pktinfo {
                ipi6_addr: in6_addr {
                    s6_addr: address.octets(),
                },
                ipi6_ifindex: scope,
            };
            ControlMessage::Ipv6PacketInfo(&v6)
        }
    };
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    sendmsg(socket.as_raw_fd(), &parts, &[control], flags, Some(&to))?;
    Ok(())
}

fn socket_address(storage: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = storage.as_sockaddr_in();
    let v6 = storage.as_sockaddr_in6();
    v4.map(|address| SocketAddrV4::from(*address).into())
        .or_else(|| v6.map(|address| SocketAddrV6::from(*address).into()))
}
