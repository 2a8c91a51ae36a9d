//! Two shops on one store that look like one: each connection goes to the other one than the last.
//!
//! Usage: `two_shops FLAGS…`, as for the shop. SIGTERM ends both as it would end one.

#![allow(clippy::unwrap_used, reason = "a process of the tests: what fails fails the test")]

use std::net::SocketAddr;
use std::path::Path;

use tests::process::Process;
use tests::shop;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};

/// A shop whose output goes on being read, on any port.
fn open(flags: &[String]) -> (Process, SocketAddr) {
    let mut command = shop::command(Path::new("."), &[]);
    let mut process = Process::start(command.args(flags));
    let url = process.expect("The shop is open: http://");
    (process, url.trim_end_matches('/').parse().unwrap())
}

/// Takes `--bind ADDRESS` out of the flags: it is where the two are met.
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
                // One that breaks takes the other with it.
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
