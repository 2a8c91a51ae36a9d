//! One command to a cluster: to the node of its key, wherever that is by now.

use std::time::Duration;

use oncekey::backend::StepState;
use redis::aio::ConnectionLike as _;
use redis::cluster_async::ClusterConnection;
use redis::cluster_routing::{MultipleNodeRoutingInfo, ResponsePolicy, RoutingInfo, SingleNodeRoutingInfo};
use redis::{Cmd, ErrorKind, Pipeline, RedisError, RedisResult, ServerErrorKind, Value};
use tokio::time::sleep;

use super::error::Failure;

/// While a shard fails over its slots have no home; the caller's limit for an answer ends this.
const PAUSE: Duration = Duration::from_millis(50);

/// Sends it until a node takes it. The driver's own retries are off; these report to the step's state what became of each
/// try. A command whose connection broke is not sent again here: its [`Step`](super::step::Step) knows whether it may be.
pub(super) async fn send(
    connection: &mut ClusterConnection,
    command: &Cmd,
    state: &mut StepState,
) -> Result<Value, Failure> {
    state.sent();
    let mut answer = connection.req_packed_command(command).await;
    loop {
        let error = match answer {
            Ok(Value::ServerError(error)) => RedisError::from(error),
            Ok(value) => return Ok(value),
            Err(error) => error,
        };
        match error.kind() {
            // The driver has learnt where the slot is.
            ErrorKind::Server(ServerErrorKind::Moved | ServerErrorKind::Ask) => {}
            ErrorKind::Server(
                ServerErrorKind::TryAgain
                | ServerErrorKind::ClusterDown
                | ServerErrorKind::MasterDown
                | ServerErrorKind::BusyLoading
                | ServerErrorKind::ReadOnly,
            )
            | ErrorKind::ClusterConnectionNotFound => sleep(PAUSE).await,
            ErrorKind::Io if !error.is_timeout() => {
                // The driver connects again meanwhile.
                sleep(PAUSE).await;
                return Err(Failure::of_sent(error));
            }
            _ => return Err(Failure::of_sent(error)),
        }
        // A node's refusal, or no node at all.
        state.refused();
        state.sent();
        answer = match error.kind() {
            ErrorKind::Server(ServerErrorKind::Ask) => ask(connection, &error, command).await,
            _ => connection.req_packed_command(command).await,
        };
    }
}

/// A slot on its way to another node: keys that are not here any more are there.
async fn ask(connection: &mut ClusterConnection, error: &RedisError, command: &Cmd) -> RedisResult<Value> {
    let Some((host, port)) = error.redirect_node().and_then(|(node, _)| node.rsplit_once(':')) else {
        return connection.req_packed_command(command).await;
    };
    let route = SingleNodeRoutingInfo::ByAddress { host: host.to_owned(), port: port.parse().unwrap_or(0) };
    let mut asking = Pipeline::with_capacity(2);
    asking.add_command(redis::cmd("ASKING")).add_command(command.clone());
    let answers = connection.route_pipeline(asking, 1, 1, route).await?;
    Ok(answers.into_iter().next_back().unwrap_or(Value::Nil))
}

/// Asks every primary, and gives each one's answer by its address.
pub(super) async fn ask_primaries(
    connection: &mut ClusterConnection,
    command: Cmd,
) -> RedisResult<Vec<(String, Value)>> {
    let everywhere = RoutingInfo::MultiNode((MultipleNodeRoutingInfo::AllMasters, Some(ResponsePolicy::Special)));
    let Value::Map(answers) = connection.route_command(command, everywhere).await? else { return Ok(Vec::new()) };
    answers.into_iter().map(|(node, answer)| Ok((redis::from_redis_value(node)?, answer))).collect()
}

/// Asks the node with an address as [`ask_primaries`] gives it.
pub(super) async fn ask_node(connection: &mut ClusterConnection, node: &str, command: Cmd) -> RedisResult<Value> {
    let (host, port) = node.rsplit_once(':').unwrap_or((node, ""));
    let route = SingleNodeRoutingInfo::ByAddress { host: host.to_owned(), port: port.parse().unwrap_or(0) };
    connection.route_command(command, RoutingInfo::SingleNode(route)).await
}

/// Asks any node.
pub(super) async fn ask_any(connection: &mut ClusterConnection, command: Cmd) -> RedisResult<Value> {
    connection.route_command(command, RoutingInfo::SingleNode(SingleNodeRoutingInfo::Random)).await
}
