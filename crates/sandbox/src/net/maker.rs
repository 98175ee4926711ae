//! The thread that makes network namespaces: requests first, then the pool, one at a time because it must be inside.

use std::collections::VecDeque;
use std::io;
use std::net::Ipv4Addr;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::sync::{Arc, mpsc as std_mpsc};

use tokio::sync::{mpsc, oneshot};

use super::link::{Home, read_proc_net};
use super::rules::Rules;
use super::subnet::{Addresses, Subnet, routes};
use super::{NetError, NetOptions, NetworkMode, Parts, Release, Wanted, resolv};
use crate::pool::Pool;

const IP_FORWARD: &str = "/proc/sys/net/ipv4/ip_forward";

/// What the thread is asked for.
#[derive(Debug)]
pub(super) enum Request {
    /// Something that somebody waits for.
    Make { wanted: Wanted, reply: oneshot::Sender<Result<Parts, NetError>> },
    /// Something was taken from the pool.
    Refill,
    /// A slot has gone.
    Release(Ipv4Addr),
    /// Clean up and end; tells when done.
    Stop(Option<oneshot::Sender<()>>),
}

/// State of the thread.
pub(super) struct Maker {
    home: Home,
    nat: Option<Nat>,
    pool: Arc<Pool<Wanted, Parts>>,
    requests: mpsc::UnboundedReceiver<Request>,
    back: mpsc::UnboundedSender<Request>,
}

struct Nat {
    subnet: Subnet,
    addresses: Addresses,
    rules: Rules,
    /// An abstract socket's name exists once per network namespace and ends with the process: it says whose subnet
    /// this is.
    _ownership: UnixListener,
}

impl Maker {
    /// Starts the thread and waits until the host is prepared.
    pub fn start(
        mode: NetworkMode,
        options: &NetOptions,
        pool: Arc<Pool<Wanted, Parts>>,
    ) -> Result<(mpsc::UnboundedSender<Request>, Option<Subnet>), NetError> {
        let (sender, requests) = mpsc::unbounded_channel();
        let (ready, started) = std_mpsc::sync_channel(1);
        let (options, back) = (options.clone(), sender.clone());
        let thread = std::thread::Builder::new().name("networks".to_owned());
        let run = move || {
            let runtime = match tokio::runtime::Builder::new_current_thread().enable_io().build() {
                Ok(runtime) => runtime,
                Err(source) => {
                    let _ = ready.send(Err(NetError::Step { step: "start a runtime".to_owned(), source }));
                    return;
                }
            };
            runtime.block_on(async move {
                match Maker::prepare(mode, &options, pool, requests, back).await {
                    Ok(maker) => {
                        let _ = ready.send(Ok(maker.nat.as_ref().map(|nat| nat.subnet)));
                        maker.run().await;
                    }
                    Err(error) => drop(ready.send(Err(error))),
                }
            });
        };
        thread.spawn(run).map_err(|source| NetError::Step { step: "start a thread".to_owned(), source })?;
        let subnet = started.recv().map_err(|_| NetError::Stopped)??;
        Ok((sender, subnet))
    }

    async fn prepare(
        mode: NetworkMode,
        options: &NetOptions,
        pool: Arc<Pool<Wanted, Parts>>,
        requests: mpsc::UnboundedReceiver<Request>,
        back: mpsc::UnboundedSender<Request>,
    ) -> Result<Maker, NetError> {
        let home =
            Home::here().map_err(|source| NetError::Step { step: "look at the host's network".to_owned(), source })?;
        let nat = match mode {
            NetworkMode::Nat => Some(Nat::prepare(&home, options).await?),
            NetworkMode::Off | NetworkMode::Host => None,
        };
        Ok(Maker { home, nat, pool, requests, back })
    }

    async fn run(mut self) {
        let mut waiting = VecDeque::new();
        let stopped = loop {
            // What somebody waits for goes before the pool; the pool is filled while nobody waits.
            while let Ok(request) = self.requests.try_recv() {
                waiting.push_back(request);
            }
            let request = match (waiting.pop_front(), self.pool.wanted()) {
                (Some(request), _) => request,
                (None, Some(wanted)) => {
                    if self.refill(wanted).await {
                        continue;
                    }
                    // What failed now is not tried again before somebody asks.
                    match self.requests.recv().await {
                        Some(request) => request,
                        None => break None,
                    }
                }
                (None, None) => match self.requests.recv().await {
                    Some(request) => request,
                    None => break None,
                },
            };
            match request {
                Request::Make { wanted, reply } => {
                    let made = self.make(&wanted).await;
                    // Whoever asked may have given up; then the parts are dropped, and with them the namespace.
                    let _ = reply.send(made);
                }
                Request::Refill => {}
                Request::Release(address) => {
                    if let Some(nat) = &mut self.nat {
                        nat.addresses.give(address);
                    }
                }
                Request::Stop(done) => break done,
            }
        };
        self.requests.close();
        self.pool.clear();
        if let Some(nat) = &self.nat {
            self.home.delete_interfaces(nat.subnet).await;
            nat.rules.withdraw();
        }
        drop(self);
        stopped.map(|done| done.send(()));
    }

    /// Makes one for the pool; false if that failed.
    async fn refill(&mut self, wanted: Wanted) -> bool {
        match self.make(&wanted).await {
            Ok(parts) => {
                self.pool.put(&wanted, parts);
                true
            }
            Err(error) => {
                tracing::warn!(%error, "could not prepare a sandbox's network in advance");
                false
            }
        }
    }

    async fn make(&mut self, wanted: &Wanted) -> Result<Parts, NetError> {
        let Some(nat) = &mut self.nat else {
            let Wanted::Namespace(listen) = wanted else { return Err(NetError::Stopped) };
            let plug = self.home.make(listen, None).await?;
            let release = Release { address: None, requests: self.back.clone() };
            return Ok(Parts { plug, address: None, release });
        };
        // An address comes back before the kernel has taken its interface apart; then the next one is tried.
        let mut refused = Vec::new();
        let result = loop {
            let Some(address) = nat.addresses.take() else {
                break Err(NetError::NoAddress(nat.subnet));
            };
            let made = match wanted {
                Wanted::Namespace(listen) => self.home.make(listen, Some((address, nat.subnet))).await,
                Wanted::Tap => self.home.make_tap(address, nat.subnet).await,
            };
            match made {
                Err(NetError::Step { source, .. })
                    if source.kind() == io::ErrorKind::AlreadyExists && refused.len() < 1024 =>
                {
                    refused.push(address);
                }
                Err(error) => {
                    nat.addresses.give(address);
                    break Err(error);
                }
                Ok(made) => break Ok((made, address)),
            }
        };
        refused.into_iter().for_each(|address| nat.addresses.give(address));
        let (plug, address) = result?;
        let release = Release { address: Some(address), requests: self.back.clone() };
        Ok(Parts { plug, address: Some(address), release })
    }
}

impl Nat {
    async fn prepare(home: &Home, options: &NetOptions) -> Result<Nat, NetError> {
        let (subnet, ownership) = match options.subnet {
            Some(subnet) => (subnet, settle(home, subnet).await?),
            None => {
                let mut found = None;
                for subnet in Subnet::candidates() {
                    match settle(home, subnet).await {
                        Ok(ownership) => {
                            found = Some((subnet, ownership));
                            break;
                        }
                        Err(NetError::Clash { .. } | NetError::InUse(_)) => {}
                        Err(error) => return Err(error),
                    }
                }
                found.ok_or(NetError::NoSubnet)?
            }
        };
        let rules =
            Rules { subnet, host_ports: options.host_ports.clone(), link_local_servers: resolv::link_local_servers() };
        rules.apply()?;
        enable_forwarding().inspect_err(|_| rules.withdraw())?;
        Ok(Nat { subnet, addresses: Addresses::new(subnet), rules, _ownership: ownership })
    }
}

/// Takes possession of a subnet: nobody else's, free of what a dead server left, and routed nowhere.
async fn settle(home: &Home, subnet: Subnet) -> Result<UnixListener, NetError> {
    let ownership = SocketAddr::from_abstract_name(format!("firelet-subnet-{subnet}"))
        .and_then(|name| UnixListener::bind_addr(&name))
        .map_err(|source| match source.kind() {
            io::ErrorKind::AddrInUse => NetError::InUse(subnet),
            _other => NetError::Step { step: "reserve the subnet".to_owned(), source },
        })?;
    home.delete_interfaces(subnet).await;
    let clash = routes(&read_proc_net("route")).into_iter().find(|(_, route)| route.overlaps(&subnet));
    match clash {
        Some((interface, route)) => Err(NetError::Clash { subnet, route, interface }),
        None => Ok(ownership),
    }
}

/// Lets the kernel forward packets. It stays on at the end, as with every other program that needs it: whether one of
/// those has come to rely on it meanwhile cannot be told.
fn enable_forwarding() -> Result<(), NetError> {
    if std::fs::read_to_string(IP_FORWARD).is_ok_and(|value| value.trim() == "1") {
        return Ok(());
    }
    std::fs::write(IP_FORWARD, "1")
        .map_err(|source| NetError::Step { step: format!("enable {IP_FORWARD}"), source })?;
    tracing::info!("IP forwarding was off on this host; it is on now, for the network of sandboxes");
    Ok(())
}
