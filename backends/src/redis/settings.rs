//! What a server's settings promise, looked at when the store is opened.

use oncekey::backend::StoreError;
use redis::{Cmd, Value};
use tracing::warn;

use super::RedisOpenError;
use super::error::Failure;
use super::link::Link;
use super::options::Accepts;

/// The first version that has `SET … NX GET`.
const OLDEST: u32 = 7;

/// Looks at every server that holds records.
pub(super) async fn check(link: &Link, accepts: Accepts) -> Result<(), RedisOpenError> {
    let unreachable = |failure: Failure| RedisOpenError::Unreachable(reason(failure));
    for (server, info) in link.everywhere(redis::cmd("INFO").arg("server").take()).await.map_err(unreachable)? {
        // One that does not show its version shows it at the first claim.
        if let Some(found) = text(info).ok().as_deref().and_then(version) {
            let major = found.split('.').next().and_then(|major| major.parse().ok());
            if major.is_none_or(|major: u32| major < OLDEST) {
                return Err(RedisOpenError::TooOld { server, found: found.to_owned() });
            }
        }
    }
    for (server, found) in link.everywhere(setting("maxmemory-policy")).await.map_err(unreachable)? {
        match value(found) {
            Ok(policy) if policy == "noeviction" => {}
            Ok(policy) if accepts.eviction => {
                warn!(%server, maxmemory_policy = %policy, "Redis may evict records, and what they guard runs again");
            }
            Ok(found) => return Err(RedisOpenError::Eviction { server, found }),
            Err(_) if accepts.unread_settings => return Ok(()),
            Err(reason) => return Err(RedisOpenError::UnreadSettings { server, reason }),
        }
    }
    if accepts.weak_persistence {
        return Ok(());
    }
    let appended = link.everywhere(setting("appendonly")).await.map_err(unreachable)?;
    for (server, found) in appended {
        if value(found).is_ok_and(|found| found != "yes") {
            warn!(
                %server, appendonly = "no",
                "when this Redis is killed it forgets what it confirmed, and that runs again \
                 (accept_weak_persistence, ?accept=weak-persistence, says that this is known)"
            );
            continue;
        }
        for (server, found) in link.everywhere(setting("appendfsync")).await.map_err(unreachable)? {
            if let Ok(found) = value(found)
                && found != "always"
            {
                warn!(
                    %server, appendfsync = %found,
                    "when this Redis's machine fails it forgets what it confirmed last, and that runs again \
                     (accept_weak_persistence, ?accept=weak-persistence, says that this is known)"
                );
            }
        }
    }
    Ok(())
}

fn setting(name: &str) -> Cmd {
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

/// The value of the one setting that was asked for.
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

fn version(info: &str) -> Option<&str> {
    info.lines().find_map(|line| line.strip_prefix("redis_version:"))
}

/// What is in the way, without the words for a step that was not taken.
fn reason(failure: Failure) -> String {
    match failure.into() {
        StoreError::Unavailable(text) | StoreError::Unknown(text) | StoreError::ReadOnly(text) => text,
        other => other.to_string(),
    }
}
