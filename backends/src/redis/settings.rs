//! Checks whether each server's settings keep the store's promises.

use oncekey::backend::StoreError;
use redis::{Cmd, Value};
use tracing::warn;

use super::RedisOpenError;
use super::error::{Failure, Unfit};
use super::link::Link;
use super::options::Accepts;
use crate::Finding;

/// The first major version that has `SET … NX GET`.
const OLDEST: u32 = 7;

/// Checks every server that holds records. This includes a cluster's replicas: each may take over from its primary.
pub(super) async fn check(link: &Link) -> Result<Vec<Finding>, RedisOpenError> {
    let accepts = link.accepts();
    const KILLED: &str = "when this Redis is killed it forgets what it confirmed, and that runs again \
                          (accept_weak_persistence, ?accept=weak-persistence, says that this is known)";
    const FAILED: &str = "when this Redis's machine fails it forgets what it confirmed last, and that runs again \
                          (accept_weak_persistence, ?accept=weak-persistence, says that this is known)";

    let mut findings = Vec::new();
    if !link.is_cluster() {
        for (server, info) in ask(link, redis::cmd("INFO").arg("replication").take()).await? {
            // A server that does not show this section either refuses writes, as replicas do, or is no replica.
            if text(info).is_ok_and(|info| is_writable_replica(&info)) {
                return Err(Unfit::WritableReplica { server }.into());
            }
        }
    }
    for (server, info) in ask(link, redis::cmd("INFO").arg("server").take()).await? {
        // If the server hides its version, an old server fails at the first claim.
        if let Some(found) = text(info).ok().as_deref().and_then(version) {
            let major = found.split('.').next().and_then(|major| major.parse().ok());
            if major.is_none_or(|major: u32| major < OLDEST) {
                return Err(RedisOpenError::TooOld { server, found: found.to_owned() });
            }
        }
    }
    for (server, found) in ask(link, setting("maxmemory-policy")).await? {
        if let Some(policy) = vet(&server, found, accepts)? {
            let why = "Redis may evict records, and what they guard runs again";
            findings.push(Finding::new("maxmemory-policy", policy, "noeviction", why).at(server));
        }
    }
    if accepts.weak_persistence {
        return Ok(findings);
    }
    let mut is_written = Vec::new();
    for (server, found) in ask(link, setting("appendonly")).await? {
        match value(found) {
            Ok(found) if found != "yes" => {
                findings.push(Finding::new("appendonly", found, "yes", KILLED).at(server));
            }
            _ => is_written.push(server),
        }
    }
    if is_written.is_empty() {
        return Ok(findings);
    }
    for (server, found) in ask(link, setting("appendfsync")).await? {
        if let Ok(found) = value(found)
            && found != "always"
            && is_written.contains(&server)
        {
            findings.push(Finding::new("appendfsync", found, "always", FAILED).at(server));
        }
    }
    Ok(findings)
}

/// Asks every server. A silent server is skipped, and the others can still be used. If all servers are silent, the
/// store can't be opened.
pub(super) async fn ask(link: &Link, command: Cmd) -> Result<Vec<(String, Value)>, RedisOpenError> {
    let answers = link.each_node(command).await.map_err(|failure| match failure {
        Failure::Unfit(unfit) => RedisOpenError::from(unfit),
        failure => RedisOpenError::Unreachable(reason(failure)),
    })?;
    let mut given = Vec::with_capacity(answers.len());
    let mut silent = "no server was named".to_owned();
    for (server, answer) in answers {
        match answer {
            Ok(answer) => given.push((server, answer)),
            Err(error) => {
                warn!(%server, %error, "a server of the Redis Cluster does not answer; its settings are not checked");
                silent = format!("{server}: {error}");
            }
        }
    }
    if given.is_empty() { Err(RedisOpenError::Unreachable(silent)) } else { Ok(given) }
}

/// Checks one server's answer about `maxmemory-policy`. Returns the policy if it evicts and the application accepts
/// that.
pub(super) fn vet(server: &str, answer: Value, accepts: Accepts) -> Result<Option<String>, Unfit> {
    let server = server.to_owned();
    match value(answer) {
        Ok(policy) if policy == "noeviction" => Ok(None),
        Ok(policy) if accepts.eviction => Ok(Some(policy)),
        Ok(found) => Err(Unfit::Eviction { server, found }),
        Err(_) if accepts.unread_settings => Ok(None),
        Err(reason) => Err(Unfit::UnreadSettings { server, reason }),
    }
}

pub(super) fn setting(name: &str) -> Cmd {
    redis::cmd("CONFIG").arg("GET").arg(name).take()
}

fn text(answer: Value) -> Result<String, String> {
    match answer {
        Value::ServerError(error) => {
            Err(format!("{} {}", error.code(), error.details().unwrap_or_default()).trim().to_owned())
        }
        Value::VerbatimString { text, .. } => Ok(text),
        other => redis::from_redis_value(other).map_err(|error| error.to_string()),
    }
}

/// Returns the value of the one requested setting.
fn value(answer: Value) -> Result<String, String> {
    if let Value::ServerError(_) = answer {
        return text(answer);
    }
    let found: Vec<String> = match answer {
        Value::Map(pairs) => {
            pairs.into_iter().flat_map(|(name, value)| [name, value]).map(text).collect::<Result<_, _>>()?
        }
        other => redis::from_redis_value(other).map_err(|error| error.to_string())?,
    };
    found.into_iter().nth(1).ok_or_else(|| "CONFIG GET shows nothing of it".to_owned())
}

/// Only checked outside a cluster: in a cluster the driver writes to primaries only.
fn is_writable_replica(info: &str) -> bool {
    let has = |line: &str| info.lines().any(|found| found.trim_end() == line);
    has("role:slave") && has("slave_read_only:0")
}

fn version(info: &str) -> Option<&str> {
    info.lines().find_map(|line| line.strip_prefix("redis_version:"))
}

/// Returns the reason alone, without the text about a step that did not run.
fn reason(failure: Failure) -> String {
    match failure.into() {
        StoreError::Unavailable(text) | StoreError::Unknown(text) | StoreError::ReadOnly(text) => text,
        other => other.to_string(),
    }
}
