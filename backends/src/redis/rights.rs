//! Checks, when the store is opened, that the user may run every command that ends a claim.
//!
//! A claim is a plain `SET`; everything that ends it is a script. Where scripts are forbidden or renamed, an operation
//! would run, its outcome could not be stored, and it would run again. This check finds that before the first claim.

use redis::{Cmd, Value};

use super::RedisOpenError;
use super::error::Unfit;
use super::link::Link;
use super::settings::ask;

/// Runs the commands of the scripts that end claims, each in a form that changes nothing if the key does not exist.
/// Returns the commands that the user may not run. The script declares no key, so every node of a cluster accepts it.
const PROBE: &str = "
local refused = {}
local function try(...)
    local answer = redis.pcall(...)
    if type(answer) == 'table' and answer.err
        and (string.find(answer.err, 'NOPERM') or string.find(answer.err, 'user executing the script')
            or string.find(string.lower(answer.err), 'unknown redis command')) then
        table.insert(refused, (...))
    end
end
try('TIME')
try('GET', ARGV[1])
try('GETRANGE', ARGV[1], '0', '0')
try('PTTL', ARGV[1])
try('PEXPIRE', ARGV[1], '1')
try('SET', ARGV[1], '', 'XX', 'PX', '1')
return refused";

/// Tests `EVALSHA`, which calls scripts that the server already knows. No script has this digest.
const UNKNOWN_SCRIPT: &str = "0000000000000000000000000000000000000000";

fn probe(key: &str) -> [Cmd; 2] {
    let by_digest = redis::cmd("EVALSHA").arg(UNKNOWN_SCRIPT).arg(0).take();
    [redis::cmd("EVAL").arg(PROBE).arg(0).arg(key).take(), by_digest]
}

/// Asks every server. A temporary error (the server is loading its data, or its memory is full) is no reason to refuse
/// it.
///
/// # Errors
/// [`RedisOpenError::Forbidden`] names the server and the commands that the user may not run there.
pub(super) async fn check(link: &Link, prefix: &str) -> Result<(), RedisOpenError> {
    for command in probe(&format!("{prefix}probe")) {
        for (server, answer) in ask(link, command).await? {
            if let Some(commands) = forbidden(answer) {
                return Err(Unfit::Forbidden { server, commands }.into());
            }
        }
    }
    Ok(())
}

fn forbidden(answer: Value) -> Option<String> {
    match answer {
        Value::ServerError(error) => {
            let details = error.details().unwrap_or_default();
            let is_missing = error.code() == "ERR" && details.to_ascii_lowercase().starts_with("unknown command");
            (error.code() == "NOPERM" || is_missing).then(|| format!("{} {details}", error.code()))
        }
        answer => {
            let refused: Vec<String> = redis::from_redis_value(answer).unwrap_or_default();
            (!refused.is_empty()).then(|| format!("{} in scripts", refused.join(", ")))
        }
    }
}
