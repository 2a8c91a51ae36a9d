//! Two shops on one store behind one address. Connections alternate between the shops.
//!
//! Usage: `two_shops FLAGS…`, with the shop's flags. SIGTERM ends both, as it would end one.

#![allow(clippy::unwrap_used, reason = "a process of the tests: what fails fails the test")]

use std::net::SocketAddr;
use std::path::Path;

use tests::process::Process;
use tests::shop;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};

/// Opens a shop on any port, and keeps reading its output.
fn open(flags: &[String]) -> (Process, SocketAddr) {
    let mut command = shop::command(Path::new("."), &[]);
    let mut process = Process::start(command.args(flags));
    let url = process.expect("The shop is open: http://");
    (process, url.trim_end_matches('/').parse().unwrap())
}

/// Removes `--bind ADDRESS` from the flags: it is the common address.
fn take_bind(flags: &mut Vec<String>) -> SocketAddr {
    let at = flags.iter().position(|flag| flag == "--bind").unwrap();
    flags.remove(at);
    flags.remove(at).parse().unwrap()
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let mut flags: Vec<String> = std::env::args().skip(1).collect();
    let meeting_place = take_bind(&mut flags);
    let mut terminated = signal(SignalKind::terminate()).unwrap();
    let (mut shops, addresses): (Vec<_>, Vec<_>) = (0..2).map(|_| open(&flags)).unzip();
    let listener = TcpListener::bind(meeting_place).await.unwrap();
    let serving = async {
        for address in addresses.iter().cycle() {
            let (mut client, _) = listener.accept().await.unwrap();
            let address = *address;
            tokio::spawn(async move {
                let mut server = TcpStream::connect(address).await.unwrap();
                // If one side breaks, the other one ends too.
                let _ = copy_bidirectional(&mut client, &mut server).await;
            });
        }
    };
    tokio::select! {
        () = serving => {}
        _ = terminated.recv() => {}
    }
    shops.iter().for_each(Process::terminate);
    for shop in &mut shops {
        shop.exit_code();
    }
}
