//! The server, in its own process.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::Ipv4Addr;
use std::process::{Child, Command, Stdio};

use actix_web::{App, HttpResponse, HttpServer, web};
use oncekey::Engine;
use oncekey::web::{Idempotency, Scope};
use oncekey_backends::MemoryBackend;

use super::ANSWER;

/// The argument that makes the executable the server.
pub const ARGUMENT: &str = "serve";

/// The number of workers. It equals the number of cores of the machines on which the documented figures were measured.
const WORKERS: usize = 2;

/// The server's process. It ends when this value is dropped.
#[derive(Debug)]
pub struct Server {
    process: Child,
    /// The port on the loopback interface.
    pub port: u16,
}

impl Server {
    /// Starts this executable again as the server.
    ///
    /// # Errors
    /// The process does not start, or does not report its port.
    pub fn start() -> io::Result<Self> {
        let mut process = Command::new(std::env::current_exe()?)
            .arg(ARGUMENT)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let said = process.stdout.take().ok_or_else(|| io::Error::other("the server has no output"))?;
        let mut port = String::new();
        BufReader::new(said).read_line(&mut port)?;
        let port = port.trim().parse().map_err(|_| io::Error::other("the server did not say its port"))?;
        Ok(Self { process, port })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // The process may have ended by itself. There is nothing to do about a process that cannot be killed.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

async fn order(body: web::Bytes) -> HttpResponse {
    std::hint::black_box(body);
    HttpResponse::Ok().content_type("application/json").body(ANSWER)
}

/// Serves until the process that started this one has ended.
///
/// # Errors
/// The port cannot be opened.
pub fn serve() -> io::Result<()> {
    // The other end of the input closes with its process.
    std::thread::spawn(|| {
        let _ = io::stdin().read(&mut [0]);
        std::process::exit(0);
    });
    actix_rt::System::new().block_on(async {
        let engine = Engine::builder(MemoryBackend::new()).start().map_err(io::Error::other)?;
        let app = move || {
            let guard = Idempotency::new(engine.clone(), Scope::shared());
            App::new()
                .service(web::resource("/echo").wrap(guard).route(web::post().to(order)))
                .service(web::resource("/bare").route(web::post().to(order)))
        };
        let server = HttpServer::new(app).workers(WORKERS).bind((Ipv4Addr::LOCALHOST, 0))?;
        let port = server.addrs().first().map_or(0, std::net::SocketAddr::port);
        writeln!(io::stdout(), "{port}")?;
        server.run().await
    })
}
