//! Ports for servers that no other process takes.

use std::net::TcpListener;
use std::ops::Range;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::sync::Mutex;

/// The ports that this process has reserved until it ends.
static RESERVED: Mutex<Vec<UnixListener>> = Mutex::new(Vec::new());

/// Returns a free port on 127.0.0.1, reserved for this process: no other test's server gets it, even while the server
/// is down.
///
/// The kernel never gives it to a client either, because it lies outside the range of client ports. A port from `bind`
/// to 0 lies inside that range, so any connection can take it before the server starts or while it restarts.
///
/// # Panics
/// If there is no free port.
pub fn free_port() -> u16 {
    let ports = outside(&std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap());
    for _ in 0..1_000 {
        let port = rand::random_range(ports.clone());
        // This name has no file. It is free again once this process has ended.
        let name = SocketAddr::from_abstract_name(format!("oncekey-test-port-{port}")).unwrap();
        let Ok(reservation) = UnixListener::bind_addr(&name) else { continue };
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            RESERVED.lock().unwrap().push(reservation);
            return port;
        }
    }
    panic!("no port is free in {ports:?}")
}

/// Returns the larger range of ports below or above those of clients, without the well-known ports. If clients may use
/// all ports, servers use them too.
fn outside(range_of_clients: &str) -> Range<u16> {
    let mut bounds = range_of_clients.split_whitespace().map(|bound| bound.parse::<u16>().unwrap());
    let (lowest, highest) = (bounds.next().unwrap(), bounds.next().unwrap());
    let (below, above) = (10_000..lowest.max(10_000), highest.saturating_add(1)..u16::MAX);
    let larger = if below.len() > above.len() { below } else { above };
    if larger.is_empty() { 10_000..u16::MAX } else { larger }
}

#[test]
fn no_port_is_given_twice_or_to_clients() {
    let ports: Vec<u16> = (0..200).map(|_| free_port()).collect();
    assert_eq!(ports.iter().collect::<std::collections::HashSet<_>>().len(), ports.len());
    assert_eq!(outside("32768\t60999\n"), 10_000..32_768);
    assert_eq!(outside("1024\t60999\n"), 61_000..u16::MAX);
}
