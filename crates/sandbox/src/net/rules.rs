//! Packet filter rules that let sandboxes out and nothing in, written once per server through the `nft` program.
//!
//! Everything a sandbox sends enters the host through an interface whose name begins with [`INTERFACE_PREFIX`]. Packets
//! are dropped first of all whose source is not behind the interface that they came through. Tenants lack the right to
//! choose a source address; should one get it, that does not help. From there on the address tells which server's
//! rules are meant.

use std::io::{self, Write};
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use super::NetError;
use super::subnet::Subnet;

/// First part of the host's interface names. Long enough that no other program's names begin with it (`fl` would
/// catch those of flannel).
pub(super) const INTERFACE_PREFIX: &str = "firelet";

/// Connections that one sandbox may open per second, once it has opened [`OPENED_AT_ONCE`]. The host remembers each for
/// half a minute to two, in a table that it shares with all of its own traffic and that is small: the first packet of a
/// connection beyond this is dropped. For TCP that means a second of delay.
const OPENED_PER_SECOND: u32 = 200;
/// Connections that a sandbox may open in one go.
pub(super) const OPENED_AT_ONCE: u32 = 2_000;

/// What the rules depend on.
#[derive(Debug, Clone)]
pub(super) struct Rules {
    pub subnet: Subnet,
    /// Ports of the host that sandboxes may reach at the gateway address.
    pub host_ports: Vec<u16>,
    /// Name servers to which port 53 stays open although their addresses are link-local.
    pub link_local_servers: Vec<Ipv4Addr>,
}

impl Rules {
    /// One table per subnet, so that two servers on one host do not replace each other's.
    fn table(&self) -> String {
        format!("firelet_{}", self.subnet.to_string().replace(['.', '/'], "_"))
    }

    /// The text for `nft -f`: replaces the table as one transaction.
    fn text(&self, source_check: &str) -> String {
        let (table, subnet, gateway) = (self.table(), self.subnet, self.subnet.gateway());
        let ours = format!("\"{INTERFACE_PREFIX}*\"");
        let list = |items: Vec<String>| items.join(", ");
        let mut host_ports = String::new();
        if !self.host_ports.is_empty() {
            let ports = list(self.host_ports.iter().map(u16::to_string).collect());
            host_ports = format!("iifname {ours} ip saddr {subnet} ip daddr {gateway} tcp dport {{ {ports} }} accept");
        }
        let mut name_servers = String::new();
        if !self.link_local_servers.is_empty() {
            let servers = list(self.link_local_servers.iter().map(Ipv4Addr::to_string).collect());
            name_servers = format!("ip daddr {{ {servers} }} meta l4proto {{ tcp, udp }} th dport 53 accept");
        }
        format!(
            "table inet {table}
delete table inet {table}
table inet {table} {{
  comment \"made by firelet serve, removed when it ends\"
  chain prerouting {{
    type filter hook prerouting priority -300; policy accept;
    iifname {ours} meta nfproto != ipv4 drop
    iifname {ours} {source_check} drop
  }}
  chain input {{
    type filter hook input priority -10; policy accept;
    {host_ports}
    iifname {ours} ip saddr {subnet} drop
  }}
  chain output {{
    type filter hook output priority -10; policy accept;
    oifname {ours} ct state new drop
  }}
  chain forward {{
    type filter hook forward priority -10; policy accept;
    iifname {ours} jump from_sandbox
    oifname {ours} jump to_sandbox
  }}
  set openers {{
    type ipv4_addr; flags dynamic; timeout 1m; size 65536;
  }}
  chain from_sandbox {{
    oifname {ours} drop
    ct state new ct status & confirmed == 0 add @openers {{ ip saddr limit rate over {OPENED_PER_SECOND}/second burst {OPENED_AT_ONCE} packets }} drop
    {name_servers}
    ip daddr 169.254.0.0/16 drop
    accept
  }}
  chain to_sandbox {{
    ct state established,related accept
    drop
  }}
  chain postrouting {{
    type nat hook postrouting priority 100; policy accept;
    ip saddr {subnet} oifname != {ours} masquerade
  }}
}}
"
        )
    }

    /// Puts the rules in force.
    pub fn apply(&self) -> Result<(), NetError> {
        // "There is no route back to the source through the interface it came in by."
        match nft(&self.text("fib saddr . iif oif eq 0")) {
            // A kernel without CONFIG_NFT_FIB_INET. Then the subnet has to do, and a second server on this host, whose
            // packets come through interfaces of the same name, would lose its network.
            Err(NetError::Step { source, .. }) => {
                tracing::warn!(error = %source, "the kernel cannot check source addresses by route");
                nft(&self.text(&format!("ip saddr != {}", self.subnet)))?;
            }
            other => other?,
        }
        self.close_forward_chain();
        if forwarding_is_dropped() {
            for rule in self.forward_rules() {
                iptables("-I", &rule).map_err(|source| NetError::Step {
                    step: "let sandboxes through the FORWARD chain of iptables".to_owned(),
                    source,
                })?;
            }
        }
        Ok(())
    }

    /// Takes them back; what is not there any more does not matter.
    pub fn withdraw(&self) {
        let table = self.table();
        if let Err(error) = nft(&format!("table inet {table}\ndelete table inet {table}\n")) {
            tracing::warn!(%error, table, "could not remove packet filter rules");
        }
        self.close_forward_chain();
    }

    /// Container engines and some firewalls drop by default what is forwarded, and a packet passes only if every table
    /// lets it. These two rules ask iptables, which those programs use, for our packets; the rest is decided above.
    fn forward_rules(&self) -> [Vec<String>; 2] {
        let any = format!("{INTERFACE_PREFIX}+");
        // The comment tells the rules of two servers apart.
        ["-i", "-o"].map(|direction| {
            let table = self.table();
            let words = ["FORWARD", direction, &any, "-m", "comment", "--comment", &table, "-j", "ACCEPT"];
            words.map(str::to_owned).to_vec()
        })
    }

    fn close_forward_chain(&self) {
        // As often as it is there: an earlier server may have ended without doing this.
        for rule in self.forward_rules() {
            while iptables("-D", &rule).is_ok() {}
        }
    }
}

fn iptables(verb: &str, rule: &[String]) -> io::Result<()> {
    let arguments: Vec<&str> = ["-w", verb].into_iter().chain(rule.iter().map(String::as_str)).collect();
    run("iptables", &arguments, "").map(drop)
}

fn forwarding_is_dropped() -> bool {
    run("iptables", &["-w", "-S", "FORWARD"], "").is_ok_and(|text| text.starts_with("-P FORWARD DROP"))
}

fn nft(text: &str) -> Result<(), NetError> {
    match run("nft", &["-f", "-"], text) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(NetError::NftMissing),
        Err(source) => Err(NetError::Step { step: "load the packet filter rules with nft".to_owned(), source }),
    }
}

/// Runs a program of the system administrator and returns what it printed.
fn run(program: &str, arguments: &[&str], input: &str) -> io::Result<String> {
    let path = locate(program).ok_or(io::ErrorKind::NotFound)?;
    let mut child = Command::new(path)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    // Closed by the end of the statement; a program that does not read its input tells why by its status.
    let _ = child.stdin.take().map(|mut stdin| stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output()?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let message = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(message.trim().lines().next().unwrap_or("it failed without a message").to_owned()))
}

/// A program of `PATH`, or of the administrator's directories, which are not always in it.
pub(crate) fn locate(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = std::env::split_paths(&path).chain(["/usr/sbin", "/sbin"].map(PathBuf::from));
    places.map(|place| place.join(program)).find(|path| path.is_file())
}
