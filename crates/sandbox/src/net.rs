//! Network namespaces of sandboxes: none, NAT through a veth pair, or the host's own network.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener};
use std::os::fd::OwnedFd;

/// What network a sandbox sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NetworkMode {
    /// A loopback interface, nothing else.
    Off,
    /// Outbound connections through a veth pair and masquerading; nothing inbound. Needs root.
    Nat,
    /// The host's network, with all that listens there.
    Host,
}

/// How [`Networks`] is set up.
#[derive(Debug, Clone)]
pub struct NetOptions {
    /// Private subnet for NAT; `None` picks the first that clashes with nothing on this host.
    pub subnet: Option<(Ipv4Addr, u8)>,
    /// Slots kept ready for the most recent request.
    pub pool_size: usize,
    /// TCP ports of the host that sandboxes may reach at the gateway address under NAT. None by default.
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
}

/// Makes the networks of one server's sandboxes.
#[derive(Debug)]
pub struct Networks {}

impl Networks {
    /// Prepares the host.
    pub fn start(mode: NetworkMode, options: NetOptions) -> Result<Networks, NetError> {
        let _ = (mode, options);
        Ok(Networks {})
    }

    /// A network with sockets listening on `listen` inside.
    pub async fn acquire(&self, listen: &[SocketAddrV4]) -> Result<NetworkSlot, NetError> {
        let step = |source| NetError::Step { step: "listen on loopback".into(), source };
        let listeners =
            listen.iter().map(|_| TcpListener::bind("127.0.0.1:0").map_err(step)).collect::<Result<_, _>>()?;
        Ok(NetworkSlot { netns: None, listeners, address: None, resolv_conf: Vec::new() })
    }

    /// Removes all that was set up on the host.
    pub async fn shutdown(&self) {}
}

/// One sandbox's network. Dropping it releases it in the background.
#[derive(Debug)]
pub struct NetworkSlot {
    /// The namespace to enter; `None` = stay in the host's.
    pub netns: Option<OwnedFd>,
    /// The listening sockets in the order asked for. In [`NetworkMode::Host`] the port is whichever was free.
    pub listeners: Vec<TcpListener>,
    /// The sandbox's own address, under NAT.
    pub address: Option<Ipv4Addr>,
    /// Content for `/etc/resolv.conf` inside.
    pub resolv_conf: Vec<u8>,
}
