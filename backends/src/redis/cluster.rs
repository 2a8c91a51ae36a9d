//! Sends commands to a cluster: one command to the current node of its key, or a query to chosen nodes.

use std::collections::BTreeSet;
use std::time::Duration;

use oncekey::backend::StepState;
use redis::aio::ConnectionLike as _;
use redis::cluster_async::ClusterConnection;
use redis::cluster_routing::{MultipleNodeRoutingInfo, ResponsePolicy, RoutingInfo, SingleNodeRoutingInfo};
use redis::{Cmd, ErrorKind, Pipeline, RedisError, RedisResult, ServerErrorKind, Value};
use tokio::time::sleep;

use super::error::Failure;

/// During a shard's failover no node serves its slots. The caller's deadline ends the retries.
const PAUSE: Duration = Duration::from_millis(50);

/// Sends the command until a node accepts it. The driver's own retries are off; these retries record the result of each
/// attempt in the step's state. If a node may have executed the command, this function does not send it again: the
/// command's [`Step`](super::step::Step) decides whether and how that is possible.
pub(super) async fn send(
    connection: &mut ClusterConnection,
    command: &Cmd,
    state: &mut StepState,
) -> Result<Value, Failure> {
    state.sent();
    let mut answer = connection.req_packed_command(command).await;
    let mut moves = 0_u32;
    loop {
        let error = match answer {
            Ok(Value::ServerError(error)) => return Err(Failure::of_server(&error)),
            Ok(value) => return Ok(value),
            Err(error) => error,
        };
        match error.kind() {
            ErrorKind::Server(ServerErrorKind::Moved | ServerErrorKind::Ask) => {
                // The driver has learned a new address for the slot. If that address was wrong too, the nodes don't
                // agree yet.
                if moves > 0 {
                    sleep(PAUSE).await;
                }
                moves += 1;
            }
            ErrorKind::Server(ServerErrorKind::TryAgain | ServerErrorKind::ReadOnly) => sleep(PAUSE).await,
            // The driver itself also returns these errors, for commands that are in flight while it fails to look up
            // the slots.
            ErrorKind::Server(
                ServerErrorKind::ClusterDown | ServerErrorKind::MasterDown | ServerErrorKind::BusyLoading,
            )
            | ErrorKind::ClusterConnectionNotFound => {
                sleep(PAUSE).await;
                return Err(Failure::Adrift(error.to_string()));
            }
            ErrorKind::Io if !error.is_timeout() => {
                // The driver reconnects during this pause.
                sleep(PAUSE).await;
                return Err(Failure::of_sent_into_cluster(error));
            }
            _ => return Err(Failure::of_sent_into_cluster(error)),
        }
        // The node refused the command.
        state.refused();
        state.sent();
        answer = match error.kind() {
            ErrorKind::Server(ServerErrorKind::Ask) => ask(connection, &error, command).await,
            _ => connection.req_packed_command(command).await,
        };
    }
}

/// Follows an ASK redirect: the slot is moving to another node, and keys that are missing here are there.
async fn ask(connection: &mut ClusterConnection, error: &RedisError, command: &Cmd) -> RedisResult<Value> {
    let Some((host, port)) = error.redirect_node().and_then(|(node, _)| node.rsplit_once(':')) else {
        return connection.req_packed_command(command).await;
    };
    let route = SingleNodeRoutingInfo::ByAddress { host: host.to_owned(), port: port.parse().unwrap_or(0) };
    let mut asking = Pipeline::with_capacity(2);
    asking.add_command(redis::cmd("ASKING")).add_command(command.clone());
    only(connection.route_pipeline(asking, 1, 1, route).await?)
}

/// Returns the only answer. An empty list must not count as "no such key", because that would win a claim.
fn only(answers: Vec<Value>) -> RedisResult<Value> {
    let [answer] = <[Value; 1]>::try_from(answers)
        .map_err(|_| RedisError::from((ErrorKind::UnexpectedReturnType, "not one answer to one command")))?;
    Ok(answer)
}

/// Returns the addresses of all nodes that serve slots, including replicas, in the form that [`ask_node`] takes.
pub(super) async fn nodes(connection: &mut ClusterConnection) -> RedisResult<Vec<String>> {
    let slots = ask_any(connection, redis::cmd("CLUSTER").arg("SLOTS").take()).await?.extract_error()?;
    Ok(addresses(&slots))
}

/// Returns the nodes that `CLUSTER SLOTS` names, each once. Each range of slots starts with its first and last slot,
/// followed by its nodes; a node starts with its host and port.
fn addresses(slots: &Value) -> Vec<String> {
    let Value::Array(ranges) = slots else { return Vec::new() };
    let nodes = ranges.iter().filter_map(|range| match range {
        Value::Array(parts) => parts.get(2..),
        _ => None,
    });
    let address = |node: &Value| match node {
        Value::Array(parts) => match (parts.first(), parts.get(1)) {
            (Some(Value::BulkString(host)), Some(Value::Int(port))) if !host.is_empty() => {
                Some(format!("{}:{port}", String::from_utf8_lossy(host)))
            }
            _ => None,
        },
        _ => None,
    };
    let found: BTreeSet<String> = nodes.flatten().filter_map(address).collect();
    found.into_iter().collect()
}

/// Asks every primary, and returns each answer with the primary's address.
pub(super) async fn ask_primaries(
    connection: &mut ClusterConnection,
    command: Cmd,
) -> RedisResult<Vec<(String, Value)>> {
    let everywhere = RoutingInfo::MultiNode((MultipleNodeRoutingInfo::AllMasters, Some(ResponsePolicy::Special)));
    let Value::Map(answers) = connection.route_command(command, everywhere).await? else { return Ok(Vec::new()) };
    answers.into_iter().map(|(node, answer)| Ok((redis::from_redis_value(node)?, answer))).collect()
}

/// Asks the node with the given address, as [`ask_primaries`] returns it.
pub(super) async fn ask_node(connection: &mut ClusterConnection, node: &str, command: Cmd) -> RedisResult<Value> {
    let (host, port) = node.rsplit_once(':').unwrap_or((node, ""));
    let route = SingleNodeRoutingInfo::ByAddress { host: host.to_owned(), port: port.parse().unwrap_or(0) };
    connection.route_command(command, RoutingInfo::SingleNode(route)).await
}

/// Asks any node.
pub(super) async fn ask_any(connection: &mut ClusterConnection, command: Cmd) -> RedisResult<Value> {
    connection.route_command(command, RoutingInfo::SingleNode(SingleNodeRoutingInfo::Random)).await
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An empty answer is an error that leaves the effect unknown, not a claim that was won.
    #[test]
    fn e19_an_empty_answer_is_unknown() {
        let error = only(Vec::new()).unwrap_err();
        assert!(matches!(Failure::of_sent_into_cluster(error), Failure::Broken(_)));
        assert!(only(vec![Value::Nil, Value::Nil]).is_err());
        assert_eq!(only(vec![Value::Int(1)]), Ok(Value::Int(1)));
    }

    #[test]
    fn e27_all_nodes_of_all_slots_are_named_once() {
        let text = |text: &str| Value::BulkString(text.into());
        let node = |host: &str, port| Value::Array(vec![text(host), Value::Int(port), text("id")]);
        let range = |nodes: &[Value]| Value::Array([&[Value::Int(0), Value::Int(1)], nodes].concat());
        let slots = Value::Array(vec![
            range(&[node("a", 1), node("b", 2)]),
            range(&[node("c", 3), node("a", 1)]),
            range(&[node("", 4)]),
        ]);
        assert_eq!(addresses(&slots), ["a:1", "b:2", "c:3"]);
    }
}
