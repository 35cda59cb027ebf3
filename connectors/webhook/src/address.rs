//! Which addresses may be posted to.
//!
//! Invariant: an address is judged where it is dialled. Names go through [`GuardedResolver`], whose answer is what the
//! client connects to, so a name that leads elsewhere the second time (DNS rebinding) leads nowhere; literals never reach a
//! resolver and are judged by [`Guard::check_literal`]. An IPv6 address that carries an IPv4 one is judged as that.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use futures::future::BoxFuture;
use ipnet::IpNet;
use reqwest::Url;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

/// Why nothing is sent to an address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{host} leads to {address}, {reason}; if that is meant, add it to allow_addresses")]
pub(crate) struct Forbidden {
    host: String,
    address: IpAddr,
    reason: &'static str,
}

/// Tells the outside from the inside.
#[derive(Debug, Clone)]
pub(crate) struct Guard {
    allowed: Arc<[IpNet]>,
    special: Arc<[(IpNet, &'static str)]>,
}

const METADATA: &str = "a cloud's metadata service";

/// The first that holds an address names it. What is public stands in none: IANA's special-purpose registries, and where clouds
/// answer with credentials.
const SPECIAL: &[(&str, &str)] = &[
    ("169.254.169.254/32", METADATA),
    ("169.254.170.2/32", METADATA),
    ("169.254.170.23/32", METADATA),
    ("100.100.100.200/32", METADATA),
    ("168.63.129.16/32", METADATA),
    ("192.0.0.192/32", METADATA),
    ("fd00:ec2::254/128", METADATA),
    ("fd00:ec2::23/128", METADATA),
    ("fd20:ce::254/128", METADATA),
    ("0.0.0.0/8", "this host"),
    ("10.0.0.0/8", "a private address"),
    ("100.64.0.0/10", "a shared address (carrier-grade NAT)"),
    ("127.0.0.0/8", "a loopback address"),
    ("169.254.0.0/16", "a link-local address"),
    ("172.16.0.0/12", "a private address"),
    ("192.0.0.0/24", "a reserved address"),
    ("192.0.2.0/24", "a reserved address"),
    ("192.88.99.0/24", "a reserved address"),
    ("192.168.0.0/16", "a private address"),
    ("198.18.0.0/15", "a reserved address"),
    ("198.51.100.0/24", "a reserved address"),
    ("203.0.113.0/24", "a reserved address"),
    ("224.0.0.0/4", "a multicast address"),
    ("240.0.0.0/4", "a reserved address"),
    ("::/128", "this host"),
    ("::1/128", "a loopback address"),
    ("fc00::/7", "a private (unique local) address"),
    ("fe80::/10", "a link-local address"),
    ("ff00::/8", "a multicast address"),
    // Tunnels, whose other end is an IPv4 address of anybody's choice, and documentation.
    ("2001::/23", "a reserved address"),
    ("2001:db8::/32", "a reserved address"),
    ("2002::/16", "a reserved address"),
    ("3fff::/20", "a reserved address"),
    // Global unicast is 2000::/3 alone.
    ("::/3", "a reserved address"),
    ("4000::/2", "a reserved address"),
    ("8000::/1", "a reserved address"),
];

impl Guard {
    /// A guard that lets these through as well; the error names the one that is none.
    pub(crate) fn new(allowed: &[String]) -> Result<Guard, (usize, String)> {
        let parse = |text: &String| {
            let single = text.parse::<IpAddr>().map(IpNet::from);
            single.or_else(|_| text.parse::<IpNet>()).ok()
        };
        let mut networks = Vec::with_capacity(allowed.len());
        for (index, text) in allowed.iter().enumerate() {
            let message = || "is no address and no network; write 10.1.2.3 or 10.0.0.0/8".to_owned();
            networks.push(parse(text).ok_or_else(|| (index, message()))?);
        }
        let special = SPECIAL.iter().map(|(network, name)| (network.parse().expect("a network"), *name));
        Ok(Guard { allowed: networks.into(), special: special.collect() })
    }

    /// Refuses a URL whose host is an address of the inside.
    pub(crate) fn check_literal(&self, url: &Url) -> Result<(), Forbidden> {
        let Some(host) = url.host_str() else { return Ok(()) };
        // The URL's parser has turned every spelling of an address (`0x7f.1`, `2130706433`) into the usual one.
        let Ok(address) = host.trim_matches(['[', ']']).parse::<IpAddr>() else { return Ok(()) };
        self.check(host, address)
    }

    fn check(&self, host: &str, address: IpAddr) -> Result<(), Forbidden> {
        let judged = carried(address);
        let Some((_, reason)) = self.special.iter().find(|(network, _)| network.contains(&judged)) else {
            return Ok(());
        };
        let is_allowed = self.allowed.iter().any(|network| {
            let is_single = network.prefix_len() == network.max_prefix_len();
            network.contains(&judged) && (*reason != METADATA || is_single)
        });
        if is_allowed { Ok(()) } else { Err(Forbidden { host: host.to_owned(), address, reason }) }
    }

    /// The addresses that may be dialled; an error when there are only others.
    fn filter(&self, host: &str, found: &[IpAddr]) -> Result<Vec<IpAddr>, Forbidden> {
        let (mut allowed, mut refused) = (Vec::new(), None);
        for address in found {
            match self.check(host, *address) {
                Ok(()) => allowed.push(*address),
                Err(forbidden) => refused = Some(forbidden),
            }
        }
        match refused {
            Some(forbidden) if allowed.is_empty() => Err(forbidden),
            _ => Ok(allowed),
        }
    }
}

/// The IPv4 address that an IPv6 one stands for: mapped, or to be translated by a NAT64.
fn carried(address: IpAddr) -> IpAddr {
    let address = address.to_canonical();
    match address {
        IpAddr::V6(long) if long.segments()[..6] == [0x64, 0xff9b, 0, 0, 0, 0] => {
            let [.., a, b, c, d] = long.octets();
            IpAddr::V4(Ipv4Addr::new(a, b, c, d))
        }
        _ => address,
    }
}

/// Asks for the addresses of a name.
pub(crate) type Lookup = Arc<dyn Fn(String) -> BoxFuture<'static, std::io::Result<Vec<IpAddr>>> + Send + Sync>;

/// The system's resolver.
pub(crate) fn system_lookup() -> Lookup {
    Arc::new(|host| {
        Box::pin(async move {
            let found = tokio::net::lookup_host((host, 0)).await?;
            Ok(found.map(|address| address.ip()).collect())
        })
    })
}

/// Resolves names to addresses that may be dialled.
pub(crate) struct GuardedResolver {
    pub(crate) guard: Guard,
    pub(crate) lookup: Lookup,
}

impl Resolve for GuardedResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let (guard, host) = (self.guard.clone(), name.as_str().to_owned());
        let looking = (self.lookup)(host.clone());
        Box::pin(async move {
            let allowed = guard.filter(&host, &looking.await?)?;
            // Port 0: the URL's.
            let addresses = allowed.into_iter().map(|address| SocketAddr::new(address, 0));
            Ok(Box::new(addresses) as Addrs)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guard(allowed: &[&str]) -> Guard {
        let allowed: Vec<String> = allowed.iter().map(|text| (*text).to_owned()).collect();
        Guard::new(&allowed).expect("networks")
    }

    fn refused(guard: &Guard, address: &str) -> Option<&'static str> {
        guard.check("host", address.parse().expect("an address")).err().map(|forbidden| forbidden.reason)
    }

    #[test]
    fn what_is_not_public_is_refused_by_its_name() {
        for (address, name) in [
            ("127.0.0.1", "loopback"),
            ("127.9.9.9", "loopback"),
            ("0.0.0.0", "this host"),
            ("10.255.0.1", "private"),
            ("172.31.255.255", "private"),
            ("192.168.1.1", "private"),
            ("100.64.0.1", "shared"),
            ("169.254.1.1", "link-local"),
            ("169.254.169.254", "metadata"),
            ("100.100.100.200", "metadata"),
            ("168.63.129.16", "metadata"),
            ("198.18.0.1", "reserved"),
            ("224.0.0.1", "multicast"),
            ("255.255.255.255", "reserved"),
            ("::", "this host"),
            ("::1", "loopback"),
            ("fd12::1", "unique local"),
            ("fd00:ec2::254", "metadata"),
            ("fe80::1", "link-local"),
            ("ff02::1", "multicast"),
            ("::ffff:127.0.0.1", "loopback"),
            ("::ffff:169.254.169.254", "metadata"),
            ("::7f00:1", "reserved"),
            ("64:ff9b::a00:1", "private"),
            ("64:ff9b:1::1", "reserved"),
            ("2002:7f00:1::", "reserved"),
            ("2001:0:1234::1", "reserved"),
        ] {
            let found = refused(&guard(&[]), address);
            assert!(found.is_some_and(|found| found.contains(name)), "{address}: {found:?}");
        }
    }

    #[test]
    fn what_is_public_passes() {
        for address in
            ["1.1.1.1", "100.63.255.255", "172.32.0.1", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"]
        {
            assert_eq!(refused(&guard(&[]), address), None, "{address}");
        }
    }

    #[test]
    fn what_is_allowed_passes_and_metadata_only_by_itself() {
        let guard = guard(&["10.0.0.0/8", "127.0.0.1", "169.254.0.0/16"]);
        assert_eq!(refused(&guard, "10.1.2.3"), None);
        assert_eq!(refused(&guard, "::ffff:10.1.2.3"), None);
        assert_eq!(refused(&guard, "127.0.0.1"), None);
        assert_eq!(refused(&guard, "169.254.7.7"), None);
        assert!(refused(&guard, "127.0.0.2").is_some());
        assert!(refused(&guard, "169.254.169.254").is_some());
        assert_eq!(refused(&super::tests::guard(&["169.254.169.254"]), "169.254.169.254"), None);
    }

    #[test]
    fn every_spelling_of_a_literal_is_seen() {
        for url in [
            "https://127.0.0.1/",
            "https://2130706433/",
            "https://0x7f.1/",
            "https://0177.0.0.1/",
            "https://127.1:8443/",
            "https://[::1]/",
            "https://[::ffff:7f00:1]/",
            "https://[fe80::1]/",
        ] {
            let url = Url::parse(url).expect("a URL");
            assert!(guard(&[]).check_literal(&url).is_err(), "{url}");
        }
        let named = Url::parse("https://hooks.example/").expect("a URL");
        assert_eq!(guard(&[]).check_literal(&named), Ok(()));
    }

    #[test]
    fn of_several_addresses_only_the_public_are_dialled() {
        let found = ["10.0.0.1", "1.1.1.1"].map(|text| text.parse().expect("an address"));
        assert_eq!(guard(&[]).filter("host", &found), Ok(vec![found[1]]));
        assert!(guard(&[]).filter("host", &found[..1]).is_err());
        assert_eq!(guard(&[]).filter("host", &[]), Ok(Vec::new()));
    }
}
