//! PgBouncer in front of a PostgreSQL server.

use super::{
    Postgres, Running, as_user, binary, folder_for, free_port, never_started, os, wait_until_ready, write_for,
};

const USER: &str = "postgres";
const PACKAGE: &str = "pgbouncer";

/// A separate pooler, which ends with the test.
#[derive(Debug)]
pub struct PgBouncer {
    port: u16,
    _running: Running,
}

impl PgBouncer {
    /// Starts a pooler in front of a server. `mode` is its `pool_mode`: `session` or `transaction`.
    ///
    /// # Panics
    /// If PgBouncer is not installed, or does not start.
    pub fn before(server: &Postgres, mode: &str) -> Self {
        Self::before_with(server, mode, "")
    }

    /// Starts a pooler with more settings, one per line. The last value of each setting counts.
    ///
    /// # Panics
    /// If PgBouncer is not installed, or does not start.
    pub fn before_with(server: &Postgres, mode: &str, more: &str) -> Self {
        let (folder, port) = (folder_for(USER), free_port());
        let settings = format!(
            "[databases]\npostgres = host=127.0.0.1 port={} dbname=postgres user=shop\n\
             [pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = any\n\
             pool_mode = {mode}\ndefault_pool_size = 250\nmax_client_conn = 500\n{more}\n",
            server.port()
        );
        let file = folder.join("pgbouncer.ini");
        write_for(USER, &file, &settings);
        let mut command = as_user(USER);
        command.push(binary("pgbouncer", &["/usr/sbin".into()], PACKAGE).display().to_string());
        command.push(file.display().to_string());
        let running = Running::start(&folder, &os(&command));
        let ready = wait_until_ready(&running, &folder, port, || true);
        let running = running.unless_it_ended(ready).unwrap_or_else(|log| never_started(&folder, &log));
        Self { port, _running: running }
    }

    /// Returns the URL of the server's database through the pooler.
    pub fn url(&self) -> String {
        format!("postgres://shop@127.0.0.1:{}/postgres", self.port)
    }
}
