//! Each test has a host of its own: a thread in a new network namespace, with another namespace as its internet.

use std::future::Future;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rtnetlink::packet_route::link::{InfoData, InfoKind, InfoVeth};
use rtnetlink::{Handle, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};

use super::*;

const RUNTIME_API: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 9001);
/// The host's address on its way out, and a server there (RFC 5737).
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
const SERVER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);
const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
/// How long a connection that gets no answer is waited for.
const SILENCE: Duration = Duration::from_millis(300);
/// How long an answer that must come is waited for.
const PATIENCE: Duration = Duration::from_secs(20);

/// Runs a test on a host of its own; nothing if that cannot be had.
fn on_own_host<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send + 'static) {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: making network namespaces needs root");
        return;
    }
    let host = std::thread::spawn(move || {
        enter_new_namespace();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        runtime.block_on(async move {
            let netlink = netlink();
            netlink.link().set(LinkUnspec::new_with_index(1).up().build()).execute().await.expect("lo up");
            test().await;
        });
    });
    if let Err(panic) = host.join() {
        std::panic::resume_unwind(panic);
    }
}

fn enter_new_namespace() {
    // SAFETY: the thread was made for this and shares nothing that a network namespace separates.
    unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.expect("unshare");
}

fn netlink() -> Handle {
    let (connection, handle, _) = rtnetlink::new_connection().expect("netlink");
    tokio::spawn(connection);
    handle
}

fn here() -> OwnedFd {
    std::fs::File::open("/proc/thread-self/ns/net").expect("netns").into()
}

/// Runs `work` in a network namespace.
fn within<T: Send>(netns: BorrowedFd<'_>, work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let inside = scope.spawn(move || {
            move_into_link_name_space(netns, Some(LinkNameSpaceType::Network)).expect("setns");
            work()
        });
        inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

async fn add_veth(name: &str, peer_name: &str, namespace: &OwnedFd) {
    let peer = LinkMessageBuilder::<LinkUnspec>::new().name(peer_name).setns_by_fd(namespace.as_raw_fd()).build();
    // Ends with the same number would not be taken for a pair, and carry nothing for up to a second
    // (`linkwatch_urgent_event` in the kernel). On a real host there are more interfaces than in a new namespace.
    static NUMBER: AtomicU32 = AtomicU32::new(1000);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let pair = LinkMessageBuilder::<LinkVeth>::new_with_info_kind(InfoKind::Veth).name(name).index(number).up();
    let pair = pair.set_info_data(InfoData::Veth(InfoVeth::Peer(peer))).build();
    netlink().link().add(pair).execute().await.expect("veth");
}

async fn add_address(netlink: &Handle, interface: &str, address: Ipv4Addr, prefix: u8) -> u32 {
    let socket = UdpSocket::bind("0.0.0.0:0").expect("socket");
    let index = rustix::net::netdevice::name_to_index(&socket, interface).expect("index");
    netlink.link().set(LinkUnspec::new_with_index(index).up().build()).execute().await.expect("up");
    netlink.address().add(index, address.into(), prefix).execute().await.expect("address");
    index
}

/// A server that tells each client the address it sees. Lives until the test process ends.
fn serve(listener: TcpListener) -> SocketAddr {
    let address = listener.local_addr().expect("address");
    listener.set_nonblocking(false).expect("blocking");
    std::thread::spawn(move || {
        while let Ok((mut client, from)) = listener.accept() {
            let _ = client.write_all(from.ip().to_string().as_bytes());
        }
    });
    address
}

/// Servers at [`SERVER`] and [`METADATA`], seen from the test's host.
#[derive(Debug)]
struct Internet {
    port: u16,
    /// The datagrams that came to the same port.
    datagrams: UdpSocket,
}

/// An uplink from the test's host to a namespace with servers.
async fn connect_internet() -> Internet {
    let (give, take) = std::sync::mpsc::channel();
    let (go, ready) = std::sync::mpsc::channel::<()>();
    let (port, done) = oneshot::channel();
    std::thread::spawn(move || {
        enter_new_namespace();
        give.send(here()).expect("give");
        ready.recv().expect("ready");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        runtime.block_on(async {
            let netlink = netlink();
            add_address(&netlink, "wan0", SERVER, 24).await;
            add_address(&netlink, "wan0", METADATA, 32).await;
            let number = serve(TcpListener::bind("0.0.0.0:0").expect("bind")).port();
            let datagrams = UdpSocket::bind(("0.0.0.0", number)).expect("bind");
            port.send(Internet { port: number, datagrams }).expect("port");
            // The namespace lives as long as the server in it.
            std::future::pending::<()>().await;
        });
    });
    let netns = take.recv().expect("take");
    add_veth("up0", "wan0", &netns).await;
    let netlink = netlink();
    let index = add_address(&netlink, "up0", OUTSIDE, 24).await;
    let route = RouteMessageBuilder::<Ipv4Addr>::new().gateway(SERVER).output_interface(index).build();
    netlink.route().add(route).execute().await.expect("default route");
    go.send(()).expect("go");
    done.await.expect("port")
}

fn start_nat(options: NetOptions) -> Option<Networks> {
    match Networks::start(NetworkMode::Nat, options) {
        Ok(networks) => Some(networks),
        Err(NetError::NftMissing) => {
            eprintln!("SKIPPED: the nft program is not installed");
            None
        }
        Err(error) => panic!("{error:?}"),
    }
}

/// What a server at `address` says to a client inside `slot`, or how the connection failed.
fn ask(slot: &NetworkSlot, address: impl Into<SocketAddr>, patience: Duration) -> io::Result<String> {
    let address = address.into();
    within(slot.netns.as_ref().expect("netns").as_fd(), move || {
        let mut text = String::new();
        TcpStream::connect_timeout(&address, patience)?.read_to_string(&mut text)?;
        Ok(text)
    })
}

/// As [`ask`], for what must be answered: a packet that is lost on a busy machine is sent again a second later.
fn reach(slot: &NetworkSlot, address: impl Into<SocketAddr>) -> String {
    ask(slot, address, PATIENCE).expect("an answer")
}

/// Whether nothing comes back, not even a refusal.
fn is_silent(slot: &NetworkSlot, address: impl Into<SocketAddr>) -> bool {
    ask(slot, address, SILENCE).is_err_and(|error| error.kind() == io::ErrorKind::TimedOut)
}

async fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "waited too long: {what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

fn interfaces() -> Vec<String> {
    let text = link::read_proc_net("dev");
    text.lines().filter_map(|line| line.split_once(':')).map(|(name, _)| name.trim().to_owned()).collect()
}

fn small_pool() -> NetOptions {
    NetOptions { pool_size: 2, ..NetOptions::default() }
}

#[test]
fn off_means_loopback_only() {
    on_own_host(|| async {
        let port = connect_internet().await.port;
        let networks = Networks::start(NetworkMode::Off, small_pool()).expect("start");
        let second = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 2773);
        let mut slot = networks.acquire(&[RUNTIME_API, second]).await.expect("acquire");
        let addresses: Vec<SocketAddr> = slot.listeners.iter().map(|l| l.local_addr().expect("address")).collect();
        assert_eq!(addresses, [RUNTIME_API.into(), second.into()]);
        serve(slot.listeners.remove(0));
        assert_eq!(reach(&slot, RUNTIME_API), "127.0.0.1");
        // The same address on the host is another one.
        assert!(TcpStream::connect(RUNTIME_API).is_err());
        let error = ask(&slot, SocketAddrV4::new(SERVER, port), SILENCE).expect_err("no way out");
        assert_eq!(error.kind(), io::ErrorKind::NetworkUnreachable);
        let names = within(slot.netns.as_ref().expect("netns").as_fd(), interfaces);
        assert!(!names.iter().any(|name| name == "eth0"), "{names:?}");
        assert_eq!((slot.address, networks.subnet()), (None, None));
    });
}

#[test]
fn nat_lets_out_and_nothing_in() {
    on_own_host(|| async {
        let port = connect_internet().await.port;
        let open = serve(TcpListener::bind("0.0.0.0:0").expect("bind")).port();
        let closed = serve(TcpListener::bind("0.0.0.0:0").expect("bind")).port();
        let Some(networks) = start_nat(NetOptions { host_ports: vec![open], ..small_pool() }) else {
            return;
        };
        let gateway = networks.subnet().expect("subnet").gateway();
        let any = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 7000);
        let slot = networks.acquire(&[any]).await.expect("acquire");
        let mut other = networks.acquire(&[any]).await.expect("acquire");
        let service = serve(other.listeners.remove(0)).port();
        let neighbour = SocketAddrV4::new(other.address.expect("address"), service);

        assert_eq!(reach(&slot, SocketAddrV4::new(SERVER, port)), OUTSIDE.to_string());
        reach(&slot, SocketAddrV4::new(gateway, open));

        let forbidden = [
            ("the host behind the gateway", SocketAddrV4::new(gateway, closed)),
            ("the host at its own address", SocketAddrV4::new(OUTSIDE, closed)),
            ("an open port elsewhere", SocketAddrV4::new(OUTSIDE, open)),
            ("another sandbox", neighbour),
            ("the cloud's metadata", SocketAddrV4::new(METADATA, port)),
        ];
        for (what, address) in forbidden {
            assert!(is_silent(&slot, address), "{what} answered");
        }
        assert!(TcpStream::connect_timeout(&neighbour.into(), SILENCE).is_err(), "the host reached a sandbox");

        // It is the rules that forbid all this, not a mistake in the test.
        rules::Rules { subnet: networks.subnet().expect("subnet"), host_ports: vec![], link_local_servers: vec![] }
            .withdraw();
        for (what, address) in forbidden.into_iter().filter(|(what, _)| !what.contains("metadata")) {
            assert!(ask(&slot, address, PATIENCE).is_ok(), "{what} cannot be reached at all");
        }
        assert!(TcpStream::connect_timeout(&neighbour.into(), PATIENCE).is_ok());
    });
}

/// Connections that this network namespace remembers.
fn tracked() -> usize {
    let text = std::fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_count").expect("read");
    text.trim().parse().expect("a number")
}

#[test]
fn one_sandbox_cannot_fill_the_hosts_table_of_connections() {
    on_own_host(|| async {
        let port = connect_internet().await.port;
        let Some(networks) = start_nat(small_pool()) else { return };
        let slot = networks.acquire(&[RUNTIME_API]).await.expect("acquire");
        let other = networks.acquire(&[RUNTIME_API]).await.expect("acquire");
        let began = Instant::now();
        within(slot.netns.as_ref().expect("netns").as_fd(), move || {
            let socket = UdpSocket::bind("0.0.0.0:0").expect("bind");
            // One long conversation is one connection, however much is said.
            for _ in 0..4_000 {
                socket.send_to(b"x", (SERVER, 9)).expect("send");
            }
            for number in 0..20_000_u16 {
                // Whether the host takes it does not show here.
                let _ = socket.send_to(b"x", (SERVER, 10_000 + number));
            }
        });
        let allowed = rules::OPENED_AT_ONCE as usize + 200 * (began.elapsed().as_secs() as usize + 1) + 100;
        assert!(tracked() <= allowed, "{} connections after {:?}", tracked(), began.elapsed());
        assert!(tracked() >= rules::OPENED_AT_ONCE as usize - 100, "{} connections", tracked());
        // The others do not notice.
        assert_eq!(reach(&other, SocketAddrV4::new(SERVER, port)), OUTSIDE.to_string());
    });
}

/// Sends a datagram from inside a sandbox, from a source address of its choice (a tenant lacks the right to do so).
fn send_as(slot: &NetworkSlot, source: Ipv4Addr, to: SocketAddrV4, text: &str) {
    within(slot.netns.as_ref().expect("netns").as_fd(), || {
        let socket = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM, None)
            .expect("socket");
        let on: libc::c_int = 1;
        // SAFETY: the kernel reads an int of the size that is given, which outlives the call.
        let set = unsafe {
            let size = size_of_val(&on) as libc::socklen_t;
            libc::setsockopt(socket.as_raw_fd(), libc::IPPROTO_IP, libc::IP_TRANSPARENT, (&raw const on).cast(), size)
        };
        assert_eq!(set, 0, "{}", io::Error::last_os_error());
        rustix::net::bind(&socket, &SocketAddrV4::new(source, 0)).expect("bind");
        UdpSocket::from(socket).send_to(text.as_bytes(), to).expect("send");
    });
}

#[test]
fn source_addresses_cannot_be_chosen() {
    on_own_host(|| async {
        let internet = connect_internet().await;
        let Some(networks) = start_nat(small_pool()) else { return };
        let slot = networks.acquire(&[]).await.expect("acquire");
        let other = networks.acquire(&[]).await.expect("acquire");
        let (own, others) = (slot.address.expect("address"), other.address.expect("address"));
        let to = SocketAddrV4::new(SERVER, internet.port);
        for (source, text) in [(others, "as another"), (OUTSIDE, "as the host"), (own, "as itself")] {
            send_as(&slot, source, to, text);
        }
        let mut buffer = [0; 64];
        internet.datagrams.set_read_timeout(Some(PATIENCE)).expect("timeout");
        let (length, from) = internet.datagrams.recv_from(&mut buffer).expect("a datagram");
        assert_eq!((&buffer[..length], from.ip()), (&b"as itself"[..], OUTSIDE.into()));
    });
}

#[test]
fn two_servers_do_not_stand_in_each_others_way() {
    on_own_host(|| async {
        let port = connect_internet().await.port;
        let open = serve(TcpListener::bind("0.0.0.0:0").expect("bind")).port();
        let with_port = || NetOptions { host_ports: vec![open], ..small_pool() };
        let Some(first) = start_nat(with_port()) else { return };
        let Some(second) = start_nat(small_pool()) else { return };
        let (one, two) = (first.acquire(&[]).await.expect("acquire"), second.acquire(&[]).await.expect("acquire"));
        let server = SocketAddrV4::new(SERVER, port);
        assert_eq!(reach(&one, server), reach(&two, server));
        let gateway = |networks: &Networks| SocketAddrV4::new(networks.subnet().expect("subnet").gateway(), open);
        reach(&one, gateway(&first));
        assert!(is_silent(&two, gateway(&second)));
        second.shutdown().await;
        reach(&one, server);
    });
}

#[test]
fn a_firewall_that_drops_what_is_forwarded_is_asked_to_let_sandboxes_through() {
    on_own_host(|| async {
        let Some(iptables) = rules::locate("iptables") else {
            eprintln!("SKIPPED: the iptables program is not installed");
            return;
        };
        let port = connect_internet().await.port;
        let run = |arguments: &[&str]| {
            let output = std::process::Command::new(&iptables).args(arguments).output().expect("iptables");
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            String::from_utf8_lossy(&output.stdout).into_owned()
        };
        run(&["-P", "FORWARD", "DROP"]);
        let Some(networks) = start_nat(small_pool()) else { return };
        let slot = networks.acquire(&[]).await.expect("acquire");
        reach(&slot, SocketAddrV4::new(SERVER, port));
        networks.shutdown().await;
        assert_eq!(run(&["-S", "FORWARD"]), "-P FORWARD DROP\n");
    });
}

#[test]
fn the_pool_is_kept_full_for_the_last_request() {
    on_own_host(|| async {
        let Some(networks) = start_nat(small_pool()) else {
            return;
        };
        let first = networks.acquire(&[RUNTIME_API]).await.expect("acquire");
        wait_until("the pool to fill", || networks.ready() == 2).await;
        let second = networks.acquire(&[RUNTIME_API]).await.expect("acquire");
        assert_ne!(first.address, second.address);
        wait_until("the pool to fill again", || networks.ready() == 2).await;
        let third = networks.acquire(&[]).await.expect("acquire");
        assert!(third.listeners.is_empty());
        wait_until("the pool to fill with the other kind", || networks.ready() == 2).await;
        assert!(networks.acquire(&[]).await.expect("acquire").listeners.is_empty());
    });
}

#[test]
fn a_shutdown_leaves_nothing() {
    on_own_host(|| async {
        let Some(networks) = start_nat(small_pool()) else {
            return;
        };
        let slot = networks.acquire(&[RUNTIME_API]).await.expect("acquire");
        let name = link::host_name(slot.address.expect("address"));
        assert!(interfaces().contains(&name));
        networks.shutdown().await;
        networks.shutdown().await;
        let left: Vec<String> = interfaces().into_iter().filter(|name| name.starts_with("firelet")).collect();
        assert!(left.is_empty(), "{left:?}");
        assert!(matches!(networks.acquire(&[]).await, Err(NetError::Stopped)));
        let tables = std::process::Command::new(rules::locate("nft").expect("nft")).args(["list", "tables"]).output();
        assert_eq!(String::from_utf8_lossy(&tables.expect("nft").stdout), "");
        // The subnet is free again.
        assert_eq!(start_nat(small_pool()).and_then(|again| again.subnet()), networks.subnet());
    });
}

#[test]
fn what_a_dead_server_left_is_removed() {
    on_own_host(|| async {
        let subnet: Subnet = "10.77.0.0/24".parse().expect("subnet");
        let netns = here();
        add_veth("firelet0a4d0007", "left0", &netns).await;
        add_veth("firelet0a4e0007", "kept0", &netns).await;
        let Some(networks) = start_nat(NetOptions { subnet: Some(subnet), ..small_pool() }) else {
            return;
        };
        assert!(!interfaces().contains(&"firelet0a4d0007".to_owned()));
        assert!(interfaces().contains(&"firelet0a4e0007".to_owned()));
        drop(networks);
    });
}

#[test]
fn subnets_that_clash_are_refused() {
    on_own_host(|| async {
        connect_internet().await;
        let with = |text: &str| NetOptions { subnet: Some(text.parse().expect("subnet")), ..small_pool() };
        match Networks::start(NetworkMode::Nat, with("198.51.100.128/25")) {
            Err(error @ NetError::Clash { .. }) => assert_eq!(
                error.to_string(),
                "subnet 198.51.100.128/25 clashes with this host's route to 198.51.100.0/24 through up0: choose another subnet"
            ),
            Err(NetError::NftMissing) => return,
            other => panic!("{other:?}"),
        }
        let Some(first) = start_nat(small_pool()) else {
            return;
        };
        let taken = first.subnet().expect("subnet");
        let options = NetOptions { subnet: Some(taken), ..small_pool() };
        assert!(matches!(Networks::start(NetworkMode::Nat, options), Err(NetError::InUse(subnet)) if subnet == taken));
        // Left to itself it finds another one.
        assert_ne!(start_nat(small_pool()).and_then(|second| second.subnet()), Some(taken));
    });
}

#[test]
fn addresses_run_out_and_come_back() {
    on_own_host(|| async {
        let options =
            NetOptions { subnet: Some("10.78.0.0/28".parse().expect("subnet")), pool_size: 0, ..small_pool() };
        let Some(networks) = start_nat(options) else {
            return;
        };
        let mut slots = Vec::new();
        let error = loop {
            match networks.acquire(&[]).await {
                Ok(slot) => slots.push(slot),
                Err(error) => break error,
            }
        };
        assert!(matches!(error, NetError::NoAddress(_)), "{error:?}");
        assert_eq!(slots.len(), 13);
        drop(slots);
        let deadline = Instant::now() + PATIENCE;
        while let Err(error) = networks.acquire(&[]).await {
            // The kernel takes the interfaces apart in its own time.
            assert!(Instant::now() < deadline, "{error:?}");
        }
    });
}

#[test]
fn a_hundred_at_once() {
    on_own_host(|| async {
        let Some(networks) = start_nat(NetOptions::default()) else {
            return;
        };
        let networks = Arc::new(networks);
        let begin = Instant::now();
        let asked: Vec<_> = (0..100)
            .map(|_| {
                let networks = Arc::clone(&networks);
                tokio::spawn(async move { networks.acquire(&[RUNTIME_API]).await.expect("acquire") })
            })
            .collect();
        let mut addresses = std::collections::HashSet::new();
        let mut slots = Vec::new();
        for slot in asked {
            let slot = slot.await.expect("task");
            addresses.insert(slot.address.expect("address"));
            slots.push(slot);
        }
        assert_eq!(addresses.len(), 100);
        eprintln!("100 networks took {:?}", begin.elapsed());
    });
}

#[tokio::test]
async fn on_the_hosts_network_every_sandbox_has_its_own_port() {
    let networks = Networks::start(NetworkMode::Host, NetOptions::default()).expect("start");
    let first = networks.acquire(&[RUNTIME_API, RUNTIME_API]).await.expect("acquire");
    assert!(first.netns.is_none());
    let ports: std::collections::HashSet<u16> =
        first.listeners.iter().map(|listener| listener.local_addr().expect("address").port()).collect();
    assert_eq!(ports.len(), 2);
    assert_eq!(networks.losses().len(), 1);
    networks.shutdown().await;
}

mod tap;
