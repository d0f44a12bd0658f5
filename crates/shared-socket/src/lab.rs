//! The network of a bench: two pods and a router between them, each a network namespace of its own.
//!
//! A namespace is held by a file descriptor, not by a name under `/run/netns`: it ends with this process, however that
//! ends, and the veth pairs and NAT rules in it end too. The host's own namespace gets no link, no address and no rule.
//!
//! ```text
//!   client 10.77.0.1 --- veth --- br0 10.77.0.254 (router) --- veth --- server 10.77.0.2
//!                                 service 10.96.0.10: DNAT to the server, then masquerade
//! ```

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, anyhow, bail};
use nix::sched::{CloneFlags, setns, unshare};

/// The client pod's address.
pub const CLIENT_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
/// The server pod's address.
pub const SERVER_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);
/// The client pod's IPv6 address.
pub const CLIENT_ADDRESS6: Ipv6Addr = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 1);
/// The server pod's IPv6 address.
pub const SERVER_ADDRESS6: Ipv6Addr = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 2);
/// The router's address, the default gateway of both pods.
pub const GATEWAY_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 254);
/// The service address that the router translates to the server (DNAT), masquerading the client.
pub const SERVICE_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);

/// A network namespace that lives as long as this value, and no longer.
#[derive(Debug)]
pub struct Namespace {
    name: &'static str,
    file: File,
}

impl Namespace {
    /// Makes an empty network namespace; `name` is for messages only.
    pub fn new(name: &'static str) -> Result<Self> {
        let file = in_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET).map_err(|e| {
                anyhow!(
                    "unshare(CLONE_NEWNET): {e}; this needs CAP_SYS_ADMIN: run as root (in a container: --privileged)"
                )
            })?;
            File::open("/proc/thread-self/ns/net").context("open /proc/thread-self/ns/net")
        })
        .with_context(|| format!("cannot make the {name} network namespace"))?;
        Ok(Self { name, file })
    }

    /// A path by which any process of this machine can open the namespace while this value lives.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd()))
    }

    /// Runs `work` on a thread that is inside the namespace; processes it starts begin there.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        in_thread(|| {
            setns(&self.file, CloneFlags::CLONE_NEWNET)
                .map_err(|e| anyhow!("cannot enter the {} network namespace: setns: {e}", self.name))?;
            work()
        })
    }

    /// Feeds `script` to a program's standard input, inside the namespace.
    fn feed(&self, program: &str, arguments: &[&str], script: &str) -> Result<()> {
        self.within(|| feed(program, arguments, script))
            .with_context(|| format!("cannot set up the {} network namespace", self.name))
    }

    /// Sets a `net.` sysctl of the namespace.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        let path = format!("/proc/sys/net/{key}");
        self.within(|| {
            std::fs::write(&path, value).with_context(|| {
                format!(
                    "cannot write {value:?} to {path}; is /proc/sys read-only here (a container without --privileged)?"
                )
            })
        })
    }
}

/// Two pods, a router between them, and their addresses.
#[derive(Debug)]
pub struct Lab {
    client: Namespace,
    server: Namespace,
    router: Namespace,
}

impl Lab {
    /// Makes the namespaces, the links and the addresses.
    pub fn new() -> Result<Self> {
        let lab = Self {
            client: Namespace::new("client")?,
            server: Namespace::new("server")?,
            router: Namespace::new("router")?,
        };
        lab.router.feed(
            "ip",
            &["-batch", "-"],
            &format!(
                "link set lo up\n\
                 link add br0 type bridge\n\
                 link set br0 up\n\
                 address add {GATEWAY_ADDRESS}/24 dev br0\n\
                 link add client type veth peer name eth0 netns {client}\n\
                 link add server type veth peer name eth0 netns {server}\n\
                 link set client master br0 up\n\
                 link set server master br0 up\n",
                client = lab.client.path().display(),
                server = lab.server.path().display(),
            ),
        )?;
        lab.router.sysctl("ipv4/ip_forward", "1")?;
        for (pod, address, address6) in
            [(&lab.client, CLIENT_ADDRESS, CLIENT_ADDRESS6), (&lab.server, SERVER_ADDRESS, SERVER_ADDRESS6)]
        {
            pod.feed(
                "ip",
                &["-batch", "-"],
                &format!(
                    "link set lo up\n\
                     address add {address}/24 dev eth0\n\
                     address add {address6}/64 dev eth0 nodad\n\
                     link set eth0 up\n\
                     route add default via {GATEWAY_ADDRESS}\n"
                ),
            )?;
            // Connect-request-close leaves a TIME_WAIT per connection: let it not run out of ports.
            pod.sysctl("ipv4/ip_local_port_range", "10240 65535")?;
            pod.sysctl("ipv4/tcp_tw_reuse", "1")?;
        }
        Ok(lab)
    }

    /// The pod that connects.
    pub fn client(&self) -> &Namespace {
        &self.client
    }

    /// The pod that listens.
    pub fn server(&self) -> &Namespace {
        &self.server
    }

    /// The address a server binds.
    pub fn server_address(&self) -> IpAddr {
        SERVER_ADDRESS.into()
    }

    /// The service address; it answers once [`Lab::translate`] has run.
    pub fn service_address(&self) -> IpAddr {
        SERVICE_ADDRESS.into()
    }

    /// Puts the service address in front of the server: DNAT, and masquerade so that answers come back this way.
    /// The rules live in the router's namespace, by `nft` or else `iptables`.
    pub fn translate(&self) -> Result<()> {
        let nft = self.router.feed(
            "nft",
            &["-f", "-"],
            &format!(
                "table ip bench {{\n\
                 chain in {{ type nat hook prerouting priority -100; ip daddr {SERVICE_ADDRESS} dnat to {SERVER_ADDRESS}; }}\n\
                 chain out {{ type nat hook postrouting priority 100; ct status dnat masquerade; }}\n\
                 }}\n"
            ),
        );
        let Err(nft) = nft else { return Ok(()) };
        self.router
            .feed(
                "iptables-restore",
                &[],
                &format!(
                    "*nat\n\
                     -A PREROUTING -d {SERVICE_ADDRESS} -j DNAT --to-destination {SERVER_ADDRESS}\n\
                     -A POSTROUTING -m conntrack --ctstate DNAT -j MASQUERADE\n\
                     COMMIT\n"
                ),
            )
            .map_err(|iptables| {
                anyhow!(
                    "cannot translate {SERVICE_ADDRESS} to {SERVER_ADDRESS} in the router's namespace: by nft: {nft:#}; by \
                     iptables-restore: {iptables:#}. Install nftables or iptables (and their kernel modules), or leave the \
                     NAT case out with --case"
                )
            })
    }
}

/// Runs `work` on a thread of its own, whose namespace may change without changing anyone else's.
fn in_thread<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| match scope.spawn(work).join() {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}

fn feed(program: &str, arguments: &[&str], script: &str) -> Result<()> {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| match e.kind() {
            ErrorKind::NotFound => {
                anyhow!("the program {program} is not installed (Debian package: {})", package(program))
            }
            _ => anyhow!("cannot start {program}: {e}"),
        })?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that gave up early says why on its standard error: a broken pipe here adds nothing.
        let _ = stdin.write_all(script.as_bytes());
    }
    let done = child.wait_with_output().with_context(|| format!("cannot wait for {program}"))?;
    if !done.status.success() {
        let said = String::from_utf8_lossy(&done.stderr);
        bail!("{program} {}: {}: {}; it was given:\n{script}", arguments.join(" "), done.status, said.trim());
    }
    Ok(())
}

fn package(program: &str) -> &'static str {
    match program {
        "ip" => "iproute2",
        "nft" => "nftables",
        _ => "iptables",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_program_is_named_with_its_package() {
        let error = feed("iptables-restore-that-is-not-there", &[], "").unwrap_err().to_string();
        assert!(error.contains("iptables-restore-that-is-not-there is not installed"), "{error}");
        assert!(error.contains("Debian package: iptables"), "{error}");
    }

    #[test]
    fn a_failing_program_says_what_it_was_given() {
        let error = feed("sh", &["-c", "echo no such thing >&2; exit 3"], "the script").unwrap_err().to_string();
        assert!(error.contains("no such thing") && error.contains("the script"), "{error}");
    }
}
