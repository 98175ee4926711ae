//! What a sandbox is told about name servers.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use super::NetworkMode;
use crate::host::Loss;

/// Where the host says what its name servers are. The second is systemd-resolved's list of the real ones behind the
/// stub at 127.0.0.53 that it names in the first.
const SOURCES: [&str; 2] = ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"];

/// Content for `/etc/resolv.conf` inside a sandbox.
pub(super) fn conf(mode: NetworkMode) -> Vec<u8> {
    conf_from(mode, &SOURCES.map(Path::new))
}

/// What is lost under NAT when no name server can be reached from there.
pub(super) fn loss() -> Option<Loss> {
    let unusable = nat_conf(&SOURCES.map(Path::new)).is_none();
    unusable.then(|| Loss {
        what: "name resolution under NAT: the host's only name servers listen on its own loopback interface".to_owned(),
        remedy: "name a reachable server in /etc/resolv.conf, or choose --network host".to_owned(),
    })
}

/// The name servers with link-local addresses (some clouds have theirs at 169.254.169.253 or .254).
pub(super) fn link_local_servers() -> Vec<Ipv4Addr> {
    let text = String::from_utf8(conf(NetworkMode::Nat)).unwrap_or_default();
    let v4 = |server| match server {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(_) => None,
    };
    servers(&text).into_iter().filter_map(v4).filter(Ipv4Addr::is_link_local).collect()
}

fn conf_from(mode: NetworkMode, sources: &[&Path]) -> Vec<u8> {
    match mode {
        NetworkMode::Off => b"# this sandbox has no network\n".to_vec(),
        NetworkMode::Host => fs::read(sources[0]).unwrap_or_default(),
        NetworkMode::Nat => {
            nat_conf(sources).unwrap_or_else(|| "# no name server is reachable from here\n".to_owned()).into_bytes()
        }
    }
}

/// The first source that names a server outside the host, without the servers that are not: those on the host's
/// loopback interface, and IPv6 ones, because NAT is IPv4 only.
fn nat_conf(sources: &[&Path]) -> Option<String> {
    sources.iter().filter_map(|source| fs::read_to_string(source).ok()).find_map(|text| {
        let usable = |server: &IpAddr| server.is_ipv4() && !server.is_loopback() && !server.is_unspecified();
        servers(&text).iter().any(usable).then(|| {
            let keep = |line: &&str| server(line).is_none_or(|server| server.as_ref().is_ok_and(usable));
            text.lines().filter(keep).flat_map(|line| [line, "\n"]).collect()
        })
    })
}

fn servers(text: &str) -> Vec<IpAddr> {
    text.lines().filter_map(server).flatten().collect()
}

/// The server of a `nameserver` line (`resolv.conf(5)`); the inner error is an address that does not parse.
fn server(line: &str) -> Option<Result<IpAddr, std::net::AddrParseError>> {
    let mut words = line.split_whitespace();
    (words.next() == Some("nameserver")).then(|| words.next().unwrap_or("").parse())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn stubs_are_looked_behind() {
        let dir = tempfile::tempdir().expect("temp dir");
        let (stub, real) = (dir.path().join("stub"), dir.path().join("real"));
        fs::write(&stub, "nameserver 127.0.0.53\noptions edns0\n").expect("write");
        let text = |sources: &[&Path]| String::from_utf8(conf_from(NetworkMode::Nat, sources)).expect("utf-8");
        assert!(!text(&[&stub, &real]).contains("nameserver"));
        fs::write(&real, "nameserver 192.0.2.53\nnameserver fe80::1%eth0\nnameserver ::1\nsearch a.example\n")
            .expect("write");
        assert_eq!(text(&[&stub, &real]), "nameserver 192.0.2.53\nsearch a.example\n");
        assert_eq!(conf_from(NetworkMode::Host, &[&stub, &real]), b"nameserver 127.0.0.53\noptions edns0\n");
        assert!(!conf_from(NetworkMode::Off, &[&stub, &real]).starts_with(b"nameserver"));
    }

    proptest! {
        #[test]
        fn any_text_is_survived(text in "(nameserver )?\\PC*\n\\PC*") {
            servers(&text);
        }
    }
}
