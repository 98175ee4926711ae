//! Network namespaces of sandboxes: none, NAT through a veth pair, or the host's own network.
//!
//! Owns the namespaces, their listening sockets, the private subnet and the packet filter rules. Does not enter
//! namespaces: the sandbox does, with [`NetworkSlot::netns`].
//!
//! ```text
//!   sandbox A            host                     sandbox B
//!   lo 127.0.0.1                                  lo 127.0.0.1      listeners accept on the host's side
//!   eth0 10.200.0.2 ---- firelet0ac80002
//!                        firelet0ac80003 -------- eth0 10.200.0.3
//!   microVM C            firelet0ac80004 (a tap device, whose other end is the machine's network card 10.200.0.4)
//!                          |  \_ to the host itself, to other sandboxes, to 169.254.0.0/16: dropped
//!                          \____ anywhere else: forwarded, masqueraded as the host
//! ```
//!
//! A slot is used once. Clearing one for the next tenant would mean to find every socket in TIME_WAIT, every connection
//! that the filter tracks, every neighbour entry and counter that the last tenant could have shaped; the kernel does
//! just that when a namespace ends, and a pool hides the price of making a new one.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};

use crate::host::Loss;
use crate::pool::Pool;

mod link;
mod maker;
mod resolv;
pub(crate) mod rules;
mod subnet;

#[cfg(test)]
mod tests;

use maker::{Maker, Request};
pub use subnet::{Subnet, SubnetError};

/// What network a sandbox sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NetworkMode {
    /// A loopback interface, nothing else. Needs root.
    Off,
    /// Outbound connections through a veth pair and masquerading; nothing inbound. Needs root.
    Nat,
    /// The host's network, with all that listens there.
    Host,
}

/// How [`Networks`] is set up.
#[derive(Debug, Clone)]
pub struct NetOptions {
    /// Private subnet for NAT; `None` (the default) picks the first that clashes with nothing on this host.
    pub subnet: Option<Subnet>,
    /// Slots kept ready for the most recent request (default 8).
    pub pool_size: usize,
    /// TCP ports of the host that sandboxes may reach at the gateway address under NAT (default none).
    pub host_ports: Vec<u16>,
}

impl Default for NetOptions {
    fn default() -> Self {
        NetOptions { subnet: None, pool_size: 8, host_ports: Vec::new() }
    }
}

/// Why there is no network for a sandbox.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// A step of the set-up failed.
    #[error("could not set up the network: {step}")]
    Step {
        /// What was being done.
        step: String,
        /// Why it failed.
        source: io::Error,
    },
    /// The packet filter's program is absent.
    #[error("NAT needs the `nft` program: install the package nftables, or choose --network off or host")]
    NftMissing,
    /// The subnet means something else on this host.
    #[error("subnet {subnet} clashes with this host's route to {route} through {interface}: choose another subnet")]
    Clash {
        /// The subnet asked for.
        subnet: Subnet,
        /// The network that is routed already.
        route: Subnet,
        /// Where that goes.
        interface: String,
    },
    /// Another server has the subnet.
    #[error("another firelet on this host uses subnet {0}: choose another subnet")]
    InUse(Subnet),
    /// Every subnet that is tried without being told clashes.
    #[error("found no free subnet for sandboxes: choose one")]
    NoSubnet,
    /// All addresses have been given out.
    #[error("all addresses of subnet {0} are in use: choose a larger subnet")]
    NoAddress(Subnet),
    /// [`Networks::shutdown`] has been called.
    #[error("the networks of sandboxes have been shut down")]
    Stopped,
}

/// Makes the networks of one server's sandboxes. What was set up on the host is removed when it is dropped.
#[derive(Debug)]
pub struct Networks {
    mode: NetworkMode,
    /// `None` in [`NetworkMode::Host`], where nothing is made.
    maker: Option<MakerHandle>,
}

#[derive(Debug)]
struct MakerHandle {
    requests: mpsc::UnboundedSender<Request>,
    pool: Arc<Pool<Wanted, Parts>>,
    subnet: Option<Subnet>,
}

/// What the maker makes.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Wanted {
    /// A namespace with sockets that listen on these addresses.
    Namespace(Vec<SocketAddrV4>),
    /// A tap device in the host's namespace.
    Tap,
}

/// A slot as the maker hands it over.
#[derive(Debug)]
struct Parts {
    plug: Plug,
    address: Option<Ipv4Addr>,
    release: Release,
}

/// The tenant's end of a slot.
#[derive(Debug)]
enum Plug {
    Namespace { netns: OwnedFd, listeners: Vec<TcpListener> },
    Tap(OwnedFd),
}

/// Gives an address back when the slot that has it goes.
#[derive(Debug)]
struct Release {
    address: Option<Ipv4Addr>,
    /// Unbounded, because a drop cannot wait; there are never more messages than slots.
    requests: mpsc::UnboundedSender<Request>,
}

impl Drop for Release {
    fn drop(&mut self) {
        if let Some(address) = self.address {
            // Nobody keeps account any more after the shutdown.
            let _ = self.requests.send(Request::Release(address));
        }
    }
}

impl Networks {
    /// Prepares the host: for NAT the subnet, IP forwarding and the packet filter rules. Blocks for some milliseconds.
    /// Removes what a server that ended badly left of the same subnet.
    pub fn start(mode: NetworkMode, options: NetOptions) -> Result<Networks, NetError> {
        let maker = match mode {
            NetworkMode::Host => None,
            NetworkMode::Off | NetworkMode::Nat => {
                let pool = Arc::new(Pool::new(options.pool_size));
                let (requests, subnet) = Maker::start(mode, &options, Arc::clone(&pool))?;
                Some(MakerHandle { requests, pool, subnet })
            }
        };
        Ok(Networks { mode, maker })
    }

    /// How many are made and wait for a sandbox.
    pub fn ready(&self) -> usize {
        self.maker.as_ref().map_or(0, |maker| maker.pool.ready())
    }

    /// The subnet in use, under NAT.
    pub fn subnet(&self) -> Option<Subnet> {
        self.maker.as_ref().and_then(|maker| maker.subnet)
    }

    /// What sandboxes go without here.
    pub fn losses(&self) -> Vec<Loss> {
        match self.mode {
            NetworkMode::Off => Vec::new(),
            NetworkMode::Nat => resolv::loss().into_iter().collect(),
            NetworkMode::Host => vec![Loss {
                what: "network isolation: functions reach everything that listens on this host".to_owned(),
                remedy: "run as root with --network nat or off".to_owned(),
            }],
        }
    }

    /// A network with non-blocking sockets listening on `listen` inside, in that order.
    pub async fn acquire(&self, listen: &[SocketAddrV4]) -> Result<NetworkSlot, NetError> {
        let resolv_conf = resolv::conf(self.mode);
        let Some(maker) = &self.maker else {
            let listeners = listen.iter().map(listen_on_host).collect::<Result<_, _>>()?;
            return Ok(NetworkSlot { netns: None, listeners, address: None, resolv_conf, release: None });
        };
        let parts = maker.take(Wanted::Namespace(listen.to_vec())).await?;
        let Plug::Namespace { netns, listeners } = parts.plug else { return Err(NetError::Stopped) };
        Ok(NetworkSlot {
            netns: Some(netns),
            listeners,
            address: parts.address,
            resolv_conf,
            release: Some(parts.release),
        })
    }

    /// A cable for a machine of its own; `None` where machines have no network, which is everywhere but under NAT.
    pub async fn acquire_tap(&self) -> Result<Option<TapSlot>, NetError> {
        let Some(maker) = self.maker.as_ref().filter(|_| self.mode == NetworkMode::Nat) else { return Ok(None) };
        let Some(subnet) = maker.subnet else { return Ok(None) };
        let parts = maker.take(Wanted::Tap).await?;
        match (parts.plug, parts.address) {
            (Plug::Tap(tap), Some(address)) => Ok(Some(TapSlot {
                tap,
                address,
                gateway: subnet.gateway(),
                resolv_conf: resolv::conf(self.mode),
                release: parts.release,
            })),
            _ => Err(NetError::Stopped),
        }
    }

    /// Removes all that was set up on the host; slots in use lose their connection. Idempotent.
    pub async fn shutdown(&self) {
        if let Some(maker) = &self.maker {
            let (done, finished) = oneshot::channel();
            let _ = maker.requests.send(Request::Stop(Some(done)));
            let _ = finished.await;
        }
    }
}

impl MakerHandle {
    /// From the pool, or made now.
    async fn take(&self, wanted: Wanted) -> Result<Parts, NetError> {
        if let Some(parts) = self.pool.take(&wanted) {
            // Without the maker there is no refill, and the next request finds that out.
            let _ = self.requests.send(Request::Refill);
            return Ok(parts);
        }
        let (reply, made) = oneshot::channel();
        self.requests.send(Request::Make { wanted, reply }).map_err(|_| NetError::Stopped)?;
        made.await.map_err(|_| NetError::Stopped)?
    }
}

impl Drop for Networks {
    fn drop(&mut self) {
        if let Some(maker) = &self.maker {
            let _ = maker.requests.send(Request::Stop(None));
        }
    }
}

/// A socket on the host's loopback interface: at the port asked for if that is free, else at any. The address is
/// always 127.0.0.1, whatever was asked for.
fn listen_on_host(wanted: &SocketAddrV4) -> Result<TcpListener, NetError> {
    let bind = || {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, wanted.port()))
            .or_else(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    };
    bind().map_err(|source| NetError::Step { step: "listen on 127.0.0.1".to_owned(), source })
}

/// One sandbox's network. Dropping it releases it in the background; the namespace itself lives on until no process is
/// in it and no descriptor refers to it.
#[derive(Debug)]
pub struct NetworkSlot {
    /// The namespace to enter; `None` = stay in the host's.
    pub netns: Option<OwnedFd>,
    /// The listening sockets in the order asked for, non-blocking. In [`NetworkMode::Host`] sandboxes share the port
    /// space, so callers ask each for its `local_addr`.
    pub listeners: Vec<TcpListener>,
    /// The sandbox's own address, under NAT.
    pub address: Option<Ipv4Addr>,
    /// Content for `/etc/resolv.conf` inside.
    pub resolv_conf: Vec<u8>,
    #[expect(dead_code, reason = "gives the address back when dropped")]
    release: Option<Release>,
}

/// One machine's network. Dropping it takes the device away and releases the address in the background.
#[derive(Debug)]
pub struct TapSlot {
    /// The tap device (no packet information, `virtio_net_hdr` before each packet), non-blocking.
    pub tap: OwnedFd,
    /// The machine's address, with a prefix of 32 bits.
    pub address: Ipv4Addr,
    /// The host's end, reachable on the link although it is in no subnet of the machine's.
    pub gateway: Ipv4Addr,
    /// Content for `/etc/resolv.conf` inside.
    pub resolv_conf: Vec<u8>,
    #[expect(dead_code, reason = "gives the address back when dropped")]
    release: Release,
}
