//! A connection to one server.

use redis::aio::{ConnectionManager, MultiplexedConnection};
use redis::{Cmd, Pipeline, RedisResult, Value};

/// A connection to one server. Clones share it.
#[derive(Clone)]
pub(super) enum Single {
    Own(MultiplexedConnection),
    /// The application's connection, which reconnects by itself.
    Managed(ConnectionManager),
}

impl Single {
    pub(super) async fn send_packed_command(&mut self, command: &Cmd) -> RedisResult<Value> {
        match self {
            Self::Own(connection) => connection.send_packed_command(command).await,
            Self::Managed(manager) => manager.send_packed_command(command).await,
        }
    }

    pub(super) async fn send_packed_commands(
        &mut self,
        commands: &Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisResult<Vec<Value>> {
        match self {
            Self::Own(connection) => connection.send_packed_commands(commands, offset, count).await,
            Self::Managed(manager) => manager.send_packed_commands(commands, offset, count).await,
        }
    }
}
