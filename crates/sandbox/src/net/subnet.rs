//! The private addresses behind NAT: which subnet, and who has which address of it.

use std::collections::HashSet;
use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

/// An IPv4 subnet, written `10.200.0.0/16`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Subnet {
    base: u32,
    prefix: u8,
}

/// Why a text is not a usable subnet.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a subnet for sandboxes: write an IPv4 network of /8 to /28, such as 10.200.0.0/16")]
pub struct SubnetError(String);

impl Subnet {
    /// Prefix of a network that is large enough for sandboxes and small enough to be private.
    const PREFIXES: std::ops::RangeInclusive<u8> = 8..=28;

    /// Where to look for a free one: rarely used by home routers, container engines and clouds.
    pub(super) fn candidates() -> impl Iterator<Item = Subnet> {
        let slash16 = |a: u8, b: u8| Subnet { base: u32::from(Ipv4Addr::new(a, b, 0, 0)), prefix: 16 };
        (200..216).map(move |b| slash16(10, b)).chain((24..32).map(move |b| slash16(172, b)))
    }

    /// The host's address as sandboxes see it.
    pub fn gateway(&self) -> Ipv4Addr {
        Ipv4Addr::from(self.base + 1)
    }

    pub(super) fn contains(&self, address: Ipv4Addr) -> bool {
        u32::from(address) & mask(self.prefix) == self.base
    }

    /// Whether an address is in both.
    pub(super) fn overlaps(&self, other: &Subnet) -> bool {
        let shorter = mask(self.prefix.min(other.prefix));
        self.base & shorter == other.base & shorter
    }

    /// A network of any size, as routes have them.
    fn route(base: u32, mask_bits: u32) -> Option<Subnet> {
        let prefix = u8::try_from(mask_bits.count_ones()).ok()?;
        (mask(prefix) == mask_bits).then_some(Subnet { base: base & mask_bits, prefix })
    }
}

fn mask(prefix: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0)
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", Ipv4Addr::from(self.base), self.prefix)
    }
}

impl FromStr for Subnet {
    type Err = SubnetError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let (base, prefix) = text.split_once('/')?;
            let (base, prefix) = (u32::from(base.parse::<Ipv4Addr>().ok()?), prefix.parse().ok()?);
            let fits = Self::PREFIXES.contains(&prefix) && base & mask(prefix) == base;
            fits.then_some(Subnet { base, prefix })
        };
        parse().ok_or_else(|| SubnetError(text.to_owned()))
    }
}

/// The routes of `/proc/net/route` (`proc_pid_net(5)`: hexadecimal in the host's byte order), without default routes:
/// interface and network.
pub(super) fn routes(text: &str) -> Vec<(String, Subnet)> {
    let line = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let number = |at: usize| u32::from_str_radix(fields.get(at)?, 16).ok().map(u32::from_be);
        let subnet = Subnet::route(number(1)?, number(7)?)?;
        (subnet.prefix > 0).then(|| (fields[0].to_owned(), subnet))
    };
    text.lines().skip(1).filter_map(line).collect()
}

/// Hands out the addresses of a subnet. One that comes back is the last to be given again, because the kernel takes
/// the interface that had it apart in its own time.
#[derive(Debug)]
pub(super) struct Addresses {
    subnet: Subnet,
    next: u32,
    used: HashSet<u32>,
}

impl Addresses {
    pub fn new(subnet: Subnet) -> Self {
        Addresses { subnet, next: subnet.base + 2, used: HashSet::new() }
    }

    /// An address that nobody has; `None` when all are in use.
    pub fn take(&mut self) -> Option<Ipv4Addr> {
        let first = self.subnet.base + 2;
        let last = (self.subnet.base | !mask(self.subnet.prefix)) - 1;
        for _ in first..=last {
            let address = self.next;
            self.next = if address == last { first } else { address + 1 };
            if self.used.insert(address) {
                return Some(Ipv4Addr::from(address));
            }
        }
        None
    }

    pub fn give(&mut self, address: Ipv4Addr) {
        self.used.remove(&u32::from(address));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn texts() {
        assert_eq!("10.200.0.0/16".parse::<Subnet>().expect("good").to_string(), "10.200.0.0/16");
        for bad in ["", "10.200.0.0", "10.200.0.1/16", "10.0.0.0/7", "10.0.0.0/29", "x/16", "10.0.0.0/16/2"] {
            let error = bad.parse::<Subnet>().expect_err(bad);
            assert!(error.to_string().starts_with(&format!("`{bad}` is not a subnet")), "{error}");
        }
    }

    #[test]
    fn routes_of_a_host() {
        let text = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
                    eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
                    eth0\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n\
                    tun0\t0000C80A\t00000000\t0001\t0\t0\t0\t0000F8FF\t0\t0\t0\n";
        let routes: Vec<String> = routes(text).iter().map(|(name, subnet)| format!("{name} {subnet}")).collect();
        assert_eq!(routes, ["eth0 192.0.2.0/24", "tun0 10.200.0.0/13"]);
    }

    #[test]
    fn addresses_are_given_once_and_again_as_late_as_possible() {
        let mut addresses = Addresses::new("10.1.2.0/28".parse().expect("good"));
        let all: Vec<Ipv4Addr> = std::iter::from_fn(|| addresses.take()).collect();
        assert_eq!(all.len(), 13);
        assert_eq!((all[0], all[12]), (Ipv4Addr::new(10, 1, 2, 2), Ipv4Addr::new(10, 1, 2, 14)));
        addresses.give(all[4]);
        assert_eq!(addresses.take(), Some(all[4]));
        assert_eq!(addresses.take(), None);
        addresses.give(all[3]);
        addresses.give(all[9]);
        assert_eq!(addresses.take(), Some(all[9]));
    }

    proptest! {
        #[test]
        fn any_route_table_is_survived(text in "(\\PC*\n){0,4}") {
            routes(&text);
        }

        #[test]
        fn overlap_is_a_common_address(a: u32, b: u32, p in 8u8..=28, q in 8u8..=28) {
            let (left, right) = (Subnet { base: a & mask(p), prefix: p }, Subnet { base: b & mask(q), prefix: q });
            let common = left.contains(Ipv4Addr::from(right.base)) || right.contains(Ipv4Addr::from(left.base));
            prop_assert_eq!(left.overlaps(&right), common);
            prop_assert_eq!(right.overlaps(&left), common);
            prop_assert_eq!(left.to_string().parse::<Subnet>(), Ok(left));
        }
    }
}
