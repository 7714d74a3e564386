//! Choosing numbers: subnets of networks, addresses and MAC addresses of containers. Pure: what is
//! taken already is told by the caller.
//!
//! A subnet's *pool* are the addresses containers may have: all but the network's own (for IPv6 the
//! routers' anycast address), the broadcast address and the gateway. `--ip-range` narrows what they
//! are given by themselves, not what they may ask for.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::network::{MacAddress, Subnet};

/// What the default network is given when nothing is in its way.
pub const DEFAULT_SUBNET: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(10, 88, 0, 0), 16);

/// Where subnets of user networks (/24) are taken from, in this order.
const POOLS_V4: [(Ipv4Addr, Ipv4Addr); 4] = [
    (
        Ipv4Addr::new(10, 89, 0, 0),
        Ipv4Addr::new(10, 255, 255, 255),
    ),
    (
        Ipv4Addr::new(172, 16, 0, 0),
        Ipv4Addr::new(172, 31, 255, 255),
    ),
    (
        Ipv4Addr::new(192, 168, 0, 0),
        Ipv4Addr::new(192, 168, 255, 255),
    ),
    (Ipv4Addr::new(10, 0, 0, 0), Ipv4Addr::new(10, 87, 255, 255)),
];

/// Why numbers do not fit together.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// Too few addresses for a gateway and a container.
    #[error(
        "subnet {0} is too small: it has no room for a gateway and a container (at most /30, or /126 for IPv6)"
    )]
    TooSmall(IpNet),
    /// Loopback, multicast and the like.
    #[error("subnet {0} cannot be a network's: it is {1}")]
    Special(IpNet, &'static str),
    /// Two networks cannot have one address.
    #[error("subnet {0} is already used by {1}")]
    Taken(IpNet, String),
    /// Of a gateway, a range or a container.
    #[error("{what} {address} is not in subnet {subnet}")]
    Outside {
        /// What the address is for.
        what: &'static str,
        /// The address.
        address: IpAddr,
        /// The subnet.
        subnet: IpNet,
    },
    /// The network's own address, broadcast, or the gateway.
    #[error("{what} {address} cannot be used: it is the {role} of subnet {subnet}")]
    Reserved {
        /// What the address is for.
        what: &'static str,
        /// The address.
        address: IpAddr,
        /// What it is already.
        role: &'static str,
        /// The subnet.
        subnet: IpNet,
    },
    /// First after last.
    #[error("range {0}-{1} ends before it begins")]
    Backwards(IpAddr, IpAddr),
    /// Nothing left to choose.
    #[error("no private IPv4 subnet is free: give one with --subnet")]
    Exhausted,
}

/// The part of every error that says what went wrong.
type Result<T> = std::result::Result<T, AddressError>;

/// A subnet as somebody asks for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubnetRequest {
    /// The network; host bits do not count.
    pub subnet: IpNet,
    /// Default: the first address.
    pub gateway: Option<IpAddr>,
    /// First and last address of `--ip-range`.
    pub lease_range: Option<(IpAddr, IpAddr)>,
}

/// Checks a subnet that was asked for and fills in its gateway.
///
/// # Errors
/// The numbers do not fit together, or the network cannot be a container network.
pub fn subnet(request: &SubnetRequest) -> Result<Subnet> {
    let subnet = request.subnet.trunc();
    if subnet.prefix_len() > subnet.max_prefix_len() - 2 {
        return Err(AddressError::TooSmall(subnet));
    }
    if let Some(why) = special(&subnet) {
        return Err(AddressError::Special(subnet, why));
    }
    let gateway = match request.gateway {
        None => from_number(&subnet, number(subnet.network()) + 1),
        Some(gateway) => {
            check_inside("gateway", gateway, &subnet)?;
            gateway
        }
    };
    let lease_range = match request.lease_range {
        None => None,
        Some((first, last)) => {
            for address in [first, last] {
                if !subnet.contains(&address) {
                    return Err(AddressError::Outside {
                        what: "address range",
                        address,
                        subnet,
                    });
                }
            }
            if first > last {
                return Err(AddressError::Backwards(first, last));
            }
            Some((first, last))
        }
    };
    Ok(Subnet {
        subnet,
        gateway,
        lease_range,
    })
}

/// The range that a CIDR of `--ip-range` means: its first usable address to its last.
pub fn range_of(net: &IpNet) -> (IpAddr, IpAddr) {
    let net = net.trunc();
    let (first, last) = (number(net.network()), number(net.broadcast()));
    (from_number(&net, (first + 1).min(last)), net.broadcast())
}

/// What keeps a network from being a container network.
fn special(net: &IpNet) -> Option<&'static str> {
    let kinds: [(&str, &'static str); 7] = [
        ("0.0.0.0/8", "no network at all"),
        ("127.0.0.0/8", "the loopback network"),
        (
            "169.254.0.0/16",
            "the link-local network, where the host's own address for containers is",
        ),
        ("224.0.0.0/3", "for multicast and reserved"),
        ("::/64", "the loopback network"),
        ("fe80::/10", "the link-local network"),
        ("ff00::/8", "for multicast"),
    ];
    kinds
        .iter()
        .find(|(kind, _)| kind.parse::<IpNet>().is_ok_and(|kind| overlap(&kind, net)))
        .map(|(_, why)| *why)
}

/// Whether two networks share an address.
pub fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(b) || b.contains(a)
}

/// A free /24 for a user network, or a smaller one when a pool has no whole /24 left.
///
/// # Errors
/// [`AddressError::Exhausted`].
pub fn free_subnet_v4(used: &[IpNet]) -> Result<Ipv4Net> {
    for (first, last) in POOLS_V4 {
        if let Some(net) = free_in(first, last, 24, used) {
            return Ok(net);
        }
    }
    Err(AddressError::Exhausted)
}

/// The default network's subnet: [`DEFAULT_SUBNET`] if nothing is in its way, else the largest of /16,
/// /20 and /24 that is free.
///
/// # Errors
/// [`AddressError::Exhausted`].
pub fn default_subnet_v4(used: &[IpNet]) -> Result<Ipv4Net> {
    if is_free(&DEFAULT_SUBNET, used) {
        return Ok(DEFAULT_SUBNET);
    }
    // Away from where user networks begin.
    let upper_quarter = (Ipv4Addr::new(10, 192, 0, 0), POOLS_V4[0].1);
    for prefix in [16, 20, 24] {
        for (first, last) in std::iter::once(upper_quarter).chain(POOLS_V4) {
            if let Some(net) = free_in(first, last, prefix, used) {
                return Ok(net);
            }
        }
    }
    Err(AddressError::Exhausted)
}

fn is_free(net: &Ipv4Net, used: &[IpNet]) -> bool {
    !used.iter().any(|used| overlap(&IpNet::V4(*net), used))
}

/// The first free network with `prefix` bits between two addresses. Jumps over what is in use.
fn free_in(first: Ipv4Addr, last: Ipv4Addr, prefix: u8, used: &[IpNet]) -> Option<Ipv4Net> {
    let size = 1u64 << (32 - prefix);
    let last = u64::from(u32::from(last));
    let mut start = u64::from(u32::from(first));
    while start + size - 1 <= last {
        let net = Ipv4Net::new(Ipv4Addr::from(u32::try_from(start).ok()?), prefix).ok()?;
        let in_the_way = used.iter().find_map(|used| match used {
            IpNet::V4(used) if overlap(&IpNet::V4(*used), &IpNet::V4(net)) => Some(used),
            _ => None,
        });
        match in_the_way {
            None => return Some(net),
            Some(used) => {
                let end = u64::from(u32::from(used.broadcast())) + 1;
                start = end.next_multiple_of(size).max(start + size);
            }
        }
    }
    None
}

/// A unique local /64 (RFC 4193) out of seven random bytes: `fd`, 40 bits of global ID, 16 bits of
/// subnet. `None` when one in use has it.
pub fn unique_local_subnet(random: [u8; 7], used: &[IpNet]) -> Option<Ipv6Net> {
    let mut bytes = [0u8; 16];
    bytes[0] = 0xfd;
    bytes[1..8].copy_from_slice(&random);
    let net = Ipv6Net::new(Ipv6Addr::from(bytes), 64).ok()?;
    (!used.iter().any(|used| overlap(&IpNet::V6(net), used))).then_some(net)
}

/// Checks an address that a container asks for (`--ip`).
///
/// # Errors
/// It is not in the subnet, or has another meaning there.
pub fn check_static(subnet: &Subnet, address: IpAddr) -> Result<()> {
    const WHAT: &str = "address";
    check_inside(WHAT, address, &subnet.subnet)?;
    if address == subnet.gateway {
        return Err(AddressError::Reserved {
            what: WHAT,
            address,
            role: "gateway",
            subnet: subnet.subnet,
        });
    }
    Ok(())
}

fn check_inside(what: &'static str, address: IpAddr, subnet: &IpNet) -> Result<()> {
    if !subnet.contains(&address) {
        return Err(AddressError::Outside {
            what,
            address,
            subnet: *subnet,
        });
    }
    let role = if address == subnet.network() {
        "network's own address"
    } else if address.is_ipv4() && address == subnet.broadcast() {
        "broadcast address"
    } else {
        return Ok(());
    };
    Err(AddressError::Reserved {
        what,
        address,
        role,
        subnet: *subnet,
    })
}

/// First and last number of what containers are given by themselves; empty when the first is larger.
fn pool(subnet: &Subnet) -> (u128, u128) {
    let net = &subnet.subnet;
    let mut first = number(net.network()) + 1;
    let mut last = number(net.broadcast());
    if matches!(net, IpNet::V4(_)) {
        last -= 1;
    }
    if let Some((from, to)) = subnet.lease_range {
        first = first.max(number(from));
        last = last.min(number(to));
    }
    (first, last)
}

/// The lowest address that `is_taken` has nothing against. Asks about no more addresses than there
/// are taken ones, plus two.
pub fn lowest_free(subnet: &Subnet, is_taken: impl Fn(IpAddr) -> bool) -> Option<IpAddr> {
    let (first, last) = pool(subnet);
    (first..=last)
        .map(|number| from_number(&subnet.subnet, number))
        .find(|address| *address != subnet.gateway && !is_taken(*address))
}

/// The address to try at `attempt` for a container whose ID is `seed`: spread over the pool, another
/// one at every attempt. `None` when the pool is empty.
pub fn probe(subnet: &Subnet, seed: u64, attempt: u32) -> Option<IpAddr> {
    let (first, last) = pool(subnet);
    let size = last.checked_sub(first)?.saturating_add(1);
    // The gateway's turn goes to the one after it.
    let at = |step: u64| {
        let offset = u128::from(seed).wrapping_add(u128::from(step)) % size;
        from_number(&subnet.subnet, first + offset)
    };
    // An odd step far from 1: neighbours of a taken address are likely taken as well.
    let step = u64::from(attempt) * 7919;
    [at(step), at(step + 1)]
        .into_iter()
        .find(|address| *address != subnet.gateway)
}

/// The address of `other` (a larger subnet) that has the host part of `address` in `subnet`.
pub fn counterpart(subnet: &Subnet, address: IpAddr, other: &Subnet) -> Option<IpAddr> {
    let host = number(address).checked_sub(number(subnet.subnet.network()))?;
    let (first, last) = pool(other);
    let wanted = number(other.subnet.network()).checked_add(host)?;
    let found = from_number(&other.subnet, wanted);
    ((first..=last).contains(&wanted) && found != other.gateway).then_some(found)
}

/// A container's seed for [`probe`]: the beginning of its ID, which is random.
pub fn seed(container: &str) -> u64 {
    let digits = container.get(..16).unwrap_or(container);
    u64::from_str_radix(digits, 16).unwrap_or_else(|_| hash(container.as_bytes()))
}

/// The MAC address a container has in a network unless it asks for one: the same at every start.
pub fn default_mac(container: &str, network: &str) -> MacAddress {
    let mut text = Vec::with_capacity(container.len() + network.len() + 1);
    text.extend_from_slice(container.as_bytes());
    text.push(0);
    text.extend_from_slice(network.as_bytes());
    let [_, _, bytes @ ..] = hash(&text).to_be_bytes();
    MacAddress::local(bytes)
}

/// FNV-1a, mixed once more so that all its bits are good.
fn hash(bytes: &[u8]) -> u64 {
    let mut state = 0xcbf2_9ce4_8422_2325u64;
    for byte in bytes {
        state = (state ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    state ^= state >> 32;
    state = state.wrapping_mul(0xd6e8_feb8_6659_fd93);
    state ^ (state >> 32)
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(u32::from(address)),
        IpAddr::V6(address) => u128::from(address),
    }
}

/// An address of the family of `net`.
fn from_number(net: &IpNet, number: u128) -> IpAddr {
    match net {
        // Numbers come from addresses of the same family, or one beside them.
        IpNet::V4(_) => IpAddr::V4(Ipv4Addr::from(number as u32)),
        IpNet::V6(_) => IpAddr::V6(Ipv6Addr::from(number)),
    }
}

#[cfg(test)]
mod tests;
