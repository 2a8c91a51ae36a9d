//! A connection that is replaced when it breaks.

use std::fmt;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, Cmd, FromRedisValue, Pipeline, RedisError};
use tokio::sync::Mutex;

use super::RedisStreamsError;

pub(super) struct Link {
    client: Client,
    config: AsyncConnectionConfig,
    connection: Mutex<Option<MultiplexedConnection>>,
}

impl Link {
    pub(super) fn new(client: Client, deadline: Duration) -> Self {
        let config = AsyncConnectionConfig::new()
            .set_response_timeout(Some(deadline))
            .set_connection_timeout(Some(Duration::from_secs(5)));
        Self { client, config, connection: Mutex::new(None) }
    }

    pub(super) async fn ask<T: FromRedisValue>(
        &self,
        what: &'static str,
        command: &Cmd,
    ) -> Result<T, RedisStreamsError> {
        let mut connection = self.connection().await?;
        match command.query_async(&mut connection).await {
            Ok(answer) => Ok(answer),
            Err(error) => Err(self.note(what, error).await),
        }
    }

    pub(super) async fn ask_all<T: FromRedisValue>(
        &self,
        what: &'static str,
        commands: &Pipeline,
    ) -> Result<T, RedisStreamsError> {
        let mut connection = self.connection().await?;
        match commands.query_async(&mut connection).await {
            Ok(answer) => Ok(answer),
            Err(error) => Err(self.note(what, error).await),
        }
    }

    async fn connection(&self) -> Result<MultiplexedConnection, RedisStreamsError> {
        let mut kept = self.connection.lock().await;
        if let Some(connection) = &*kept {
            return Ok(connection.clone());
        }
        let connection = self.client.get_multiplexed_async_connection_with_config(&self.config).await;
        let connection = connection.map_err(|error| RedisStreamsError { what: "connecting", error })?;
        *kept = Some(connection.clone());
        Ok(connection)
    }

    /// A refusal by the server has a code and leaves the connection usable. After any other error, above all a timeout,
    /// the connection is replaced, because the client would not notice by itself that the peer is gone.
    async fn note(&self, what: &'static str, error: RedisError) -> RedisStreamsError {
        if error.code().is_none() {
            *self.connection.lock().await = None;
        }
        RedisStreamsError { what, error }
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Link")
    }
}
