//! Network namespaces and their interfaces (`network_namespaces(7)`, `veth(4)`, rtnetlink).
//!
//! Everything here happens on the one thread that calls it, which must run a current-thread runtime with nothing else
//! on it: while a namespace is made the thread is inside.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rtnetlink::packet_route::address::AddressAttribute;
use rtnetlink::packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoKind, InfoVeth, LinkAttribute,
};
use rtnetlink::{AddressMessageBuilder, Handle, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder};
use rustix::fs::{Mode, OFlags, open};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};

use super::rules::INTERFACE_PREFIX;
use super::subnet::Subnet;
use super::{NetError, Plug};

/// The sandbox's end of the pair, as it sees it.
const INSIDE: &str = "eth0";
const LOOPBACK_INDEX: u32 = 1;

/// The namespace that this thread came from.
pub(super) struct Home {
    netns: OwnedFd,
    netlink: Handle,
    /// Any socket of that namespace: interface numbers are asked for through one.
    socket: UdpSocket,
}

fn step(step: impl Into<String>) -> impl FnOnce(io::Error) -> NetError {
    let step = step.into();
    move |source| NetError::Step { step, source }
}

fn netlink_step(step: impl Into<String>) -> impl FnOnce(rtnetlink::Error) -> NetError {
    let step = step.into();
    move |error| {
        let source = match error {
            rtnetlink::Error::NetlinkError(message) => message.to_io(),
            other => io::Error::other(other),
        };
        NetError::Step { step, source }
    }
}

/// An interface's name on the host tells whose it is.
pub(super) fn host_name(address: Ipv4Addr) -> String {
    format!("{INTERFACE_PREFIX}{:08x}", u32::from(address))
}

/// The address in a name made by [`host_name`].
fn named_address(name: &str) -> Option<Ipv4Addr> {
    let digits = name.strip_prefix(INTERFACE_PREFIX).filter(|digits| digits.len() == 8)?;
    u32::from_str_radix(digits, 16).ok().map(Ipv4Addr::from)
}

/// A file of `/proc` about the namespace that the calling thread is in (`/proc/net` shows the main thread's).
pub(super) fn read_proc_net(name: &str) -> String {
    fs::read_to_string(format!("/proc/thread-self/net/{name}")).unwrap_or_default()
}

impl Home {
    /// Remembers where this thread is. Needs a current-thread tokio runtime.
    pub fn here() -> io::Result<Home> {
        Ok(Home { netns: current_netns()?, netlink: netlink()?, socket: UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))? })
    }

    /// Makes a namespace with its loopback interface up and sockets listening on `listen`; with `nat`, also an
    /// interface with that address whose other end is here.
    pub async fn make(&self, listen: &[SocketAddrV4], nat: Option<(Ipv4Addr, Subnet)>) -> Result<Plug, NetError> {
        // SAFETY: a network namespace shares no memory or descriptors with the threads that stay behind; what this
        // thread has open goes on belonging to where it was opened.
        let unshared = unsafe { unshare_unsafe(UnshareFlags::NEWNET) };
        unshared.map_err(|error| step("make a network namespace")(error.into()))?;
        let made = self.furnish(listen, nat).await;
        let back = move_into_link_name_space(self.netns.as_fd(), Some(LinkNameSpaceType::Network));
        if let Err(error) = back {
            // Everything this thread does from here on would be in the wrong place.
            tracing::error!(%error, "could not leave a sandbox's network namespace");
            return Err(step("leave the network namespace")(error.into()));
        }
        made
    }

    /// Does the work of [`Home::make`] from inside the new namespace.
    async fn furnish(&self, listen: &[SocketAddrV4], nat: Option<(Ipv4Addr, Subnet)>) -> Result<Plug, NetError> {
        let netns = current_netns().map_err(step("open the network namespace"))?;
        let inside = netlink().map_err(step("open a netlink socket"))?;
        let up = LinkUnspec::new_with_index(LOOPBACK_INDEX).up().build();
        inside.link().set(up).execute().await.map_err(netlink_step("bring up the loopback interface"))?;
        if let Some((address, subnet)) = nat {
            self.connect(&inside, &netns, address, subnet).await?;
        }
        let bind = |address: &SocketAddrV4| {
            let listener = TcpListener::bind(address)?;
            listener.set_nonblocking(true)?;
            Ok(listener)
        };
        let listeners = listen
            .iter()
            .map(|address| bind(address).map_err(step(format!("listen on {address} in the sandbox"))))
            .collect::<Result<_, _>>()?;
        Ok(Plug::Namespace { netns, listeners })
    }

    /// Lays the cable: a veth pair, its addresses, and a default route inside.
    async fn connect(
        &self,
        inside: &Handle,
        netns: &OwnedFd,
        address: Ipv4Addr,
        subnet: Subnet,
    ) -> Result<(), NetError> {
        let name = host_name(address);
        let failed = |what: &str| netlink_step(format!("{what} {name}"));

        let peer = LinkMessageBuilder::<LinkUnspec>::new().name(INSIDE).setns_by_fd(netns.as_raw_fd()).build();
        let pair = LinkMessageBuilder::<LinkVeth>::new_with_info_kind(InfoKind::Veth)
            .name(name.clone())
            .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
            .build();
        self.netlink.link().add(pair).execute().await.map_err(failed("make interface"))?;

        let index_of = |socket: &UdpSocket, name: &str| {
            rustix::net::netdevice::name_to_index(socket, name)
                .map_err(|error| step(format!("find interface {name}"))(error.into()))
        };
        let index = index_of(&self.socket, &name)?;
        bring_up(&self.netlink, index).await.map_err(failed("bring up"))?;
        self.route_to(address, subnet, index).await.map_err(failed("give an address to"))?;

        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).map_err(step("open a socket in the sandbox"))?;
        let index = index_of(&socket, INSIDE)?;
        bring_up(inside, index).await.map_err(failed("bring up the other end of"))?;
        let add = inside.address().add(index, address.into(), 32).execute();
        add.await.map_err(failed("give an address to the other end of"))?;
        let route = RouteMessageBuilder::<Ipv4Addr>::new().gateway(subnet.gateway()).output_interface(index).onlink();
        inside.route().add(route.build()).execute().await.map_err(failed("route through"))
    }

    /// Makes a tap device here, for a machine with that address (`Documentation/networking/tuntap.rst` of Linux). It goes
    /// with its last descriptor.
    pub async fn make_tap(&self, address: Ipv4Addr, subnet: Subnet) -> Result<Plug, NetError> {
        let name = host_name(address);
        let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let tap = open("/dev/net/tun", flags, Mode::empty())
            .map_err(|error| step("open /dev/net/tun (is the kernel module `tun` there?)")(error.into()))?;
        // SAFETY: all bytes of an `ifreq` may be zero.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
            *to = from as libc::c_char;
        }
        request.ifr_ifru.ifru_flags =
            (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_TUN_EXCL) as i16;
        // SAFETY: the descriptor is open, and the request is an `ifreq` that outlives the call.
        let made = unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETIFF as _, &request) };
        if made < 0 {
            let error = match io::Error::last_os_error() {
                busy if busy.raw_os_error() == Some(libc::EBUSY) => io::ErrorKind::AlreadyExists.into(),
                other => other,
            };
            return Err(step(format!("make interface {name}"))(error));
        }
        // As with the other kind: only the host's filters would see what it says.
        let _ = fs::write(format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6"), "1");
        let index = rustix::net::netdevice::name_to_index(&self.socket, &name)
            .map_err(|error| step(format!("find interface {name}"))(error.into()))?;
        let up = LinkUnspec::new_with_index(index).up().build();
        self.netlink.link().set(up).execute().await.map_err(netlink_step(format!("bring up {name}")))?;
        self.route_to(address, subnet, index).await.map_err(netlink_step(format!("give an address to {name}")))?;
        Ok(Plug::Tap(tap))
    }

    /// Gives interface `index` here the gateway's address, with the tenant's as its peer: that makes the host's route.
    async fn route_to(&self, address: Ipv4Addr, subnet: Subnet, index: u32) -> Result<(), rtnetlink::Error> {
        let mut here = AddressMessageBuilder::<Ipv4Addr>::new().index(index).build();
        here.header.prefix_len = 32;
        here.attributes =
            vec![AddressAttribute::Local(subnet.gateway().into()), AddressAttribute::Address(address.into())];
        let mut request = self.netlink.address().add(0, Ipv4Addr::UNSPECIFIED.into(), 32);
        *request.message_mut() = here;
        request.execute().await
    }

    /// Deletes the interfaces here whose names say that they belong to `subnet`.
    pub async fn delete_interfaces(&self, subnet: Subnet) {
        let text = read_proc_net("dev");
        let names = text.lines().filter_map(|line| line.split_once(':')).map(|(name, _)| name.trim());
        for name in names.filter(|name| named_address(name).is_some_and(|address| subnet.contains(address))) {
            let Ok(index) = rustix::net::netdevice::name_to_index(&self.socket, name) else {
                continue;
            };
            if let Err(error) = self.netlink.link().del(index).execute().await {
                tracing::debug!(%error, name, "interface already gone");
            }
        }
    }
}

fn current_netns() -> io::Result<OwnedFd> {
    Ok(open("/proc/thread-self/ns/net", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
}

/// Brings up an interface that makes no IPv6 addresses for itself. NAT is IPv4 only: what they said would only reach the host's filters, and
/// the kernel has the more to do for each, the more there are.
async fn bring_up(netlink: &Handle, index: u32) -> Result<(), rtnetlink::Error> {
    let none = AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)]);
    let silent = LinkUnspec::new_with_index(index).append_extra_attribute(LinkAttribute::AfSpecUnspec(vec![none]));
    // Refused where there is no IPv6.
    let _ = netlink.link().set(silent.build()).execute().await;
    netlink.link().set(LinkUnspec::new_with_index(index).up().build()).execute().await
}

fn netlink() -> io::Result<Handle> {
    let (connection, handle, _unasked) = rtnetlink::new_connection()?;
    tokio::spawn(connection);
    Ok(handle)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_and_tell_the_address() {
        let address = Ipv4Addr::new(10, 200, 3, 4);
        let name = host_name(address);
        assert_eq!(name, "firelet0ac80304");
        assert!(name.len() < libc::IFNAMSIZ);
        assert_eq!(named_address(&name), Some(address));
        assert_eq!(named_address("firelet0"), None);
        assert_eq!(named_address("flannel.1"), None);
    }
}
