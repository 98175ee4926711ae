//! The network: loopback, and `eth0` as the host wants it.

use std::io;
use std::net::Ipv4Addr;
use std::path::Path;

use super::{disks, sys};
use crate::control::Network;

/// The agent's own file that stands for the tenant's.
const RESOLV_CONF: &str = "/resolv.conf";

pub(super) fn loopback_up() -> io::Result<()> {
    up("lo")
}

fn up(name: &str) -> io::Result<()> {
    sys::interface(name, libc::SIOCSIFFLAGS as _, |request| {
        request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    })
}

fn address(address: Ipv4Addr) -> libc::sockaddr {
    let mut bytes = [0; 14];
    // After the port: the address as it goes over the network (netinet/in.h).
    bytes[2..6].copy_from_slice(&address.octets());
    libc::sockaddr { sa_family: libc::AF_INET as libc::sa_family_t, sa_data: bytes.map(|byte| byte as libc::c_char) }
}

pub(super) fn set_up(network: &Network, root: &Path) -> io::Result<()> {
    let invalid = io::Error::from_raw_os_error(libc::EINVAL);
    let host_bits = 32_u32.checked_sub(network.prefix.into()).ok_or(invalid)?;
    let mask = Ipv4Addr::from(u32::MAX.checked_shl(host_bits).unwrap_or(0));
    sys::interface("eth0", libc::SIOCSIFADDR as _, |request| request.ifr_ifru.ifru_addr = address(network.address))?;
    sys::interface("eth0", libc::SIOCSIFNETMASK as _, |request| request.ifr_ifru.ifru_netmask = address(mask))?;
    up("eth0")?;
    // The gateway is on the link, whatever the prefix says.
    let here = Ipv4Addr::BROADCAST;
    route(network.gateway, here, None)?;
    route(Ipv4Addr::UNSPECIFIED, Ipv4Addr::UNSPECIFIED, Some(network.gateway))?;
    if !network.resolv_conf.is_empty() {
        std::fs::write(RESOLV_CONF, &network.resolv_conf)?;
        disks::cover_file(root, "/etc/resolv.conf", Path::new(RESOLV_CONF))?;
    }
    Ok(())
}

/// A route to a network, through a gateway or on the link of `eth0`; one that is there already stays.
fn route(destination: Ipv4Addr, mask: Ipv4Addr, gateway: Option<Ipv4Addr>) -> io::Result<()> {
    // SAFETY: all zeroes is a valid route.
    let mut route: libc::rtentry = unsafe { std::mem::zeroed() };
    route.rt_dst = address(destination);
    route.rt_genmask = address(mask);
    route.rt_flags = libc::RTF_UP;
    if mask == Ipv4Addr::BROADCAST {
        route.rt_flags |= libc::RTF_HOST;
    }
    if let Some(gateway) = gateway {
        route.rt_gateway = address(gateway);
        route.rt_flags |= libc::RTF_GATEWAY;
    }
    let mut device = *b"eth0\0";
    route.rt_dev = device.as_mut_ptr().cast();
    match sys::inet_ioctl(libc::SIOCADDRT as _, &raw const route) {
        // A machine that was restored may have it.
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
        other => other,
    }
}
