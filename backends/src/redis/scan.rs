//! Reads the whole store. Redis keeps no order of keys and no index, so each of these functions reads every key of the
//! database.

use std::collections::{BTreeSet, HashSet};
use std::hash::{BuildHasher as _, RandomState};

use oncekey::Key;
use oncekey::backend::{List, RecordView, StoreError, StoreStats};
use redis::{Cmd, Value};

use super::answer::{Found, bytes_or_nil, read_record};
use super::error::Failure;
use super::family_step::{read, read_view};
use super::link::Link;
use super::step::Names;
use super::value::{LETTER_LEN, letter};
use super::{script, slot};

/// How many keys the server scans in one step. Other clients wait about a millisecond.
const AT_ONCE: usize = 1_000;
/// How many records with steps are read together.
const FAMILIES_AT_ONCE: usize = 50;
/// How many keys beyond the page's size one walk collects.
const SPARE: usize = 100;

/// A walk through the store's keys on every server that holds records. It may return a key twice.
struct Walk<'a> {
    link: &'a Link,
    pattern: String,
    prefix_len: usize,
    /// The servers still to visit, and the cursor on the last of them.
    servers: Vec<String>,
    cursor: u64,
}

impl<'a> Walk<'a> {
    async fn begin(link: &'a Link, names: &Names) -> Result<Self, StoreError> {
        // Only the servers' names matter here.
        let servers = link.everywhere(redis::cmd("DBSIZE")).await.map_err(Failure::of_read)?;
        let servers = servers.into_iter().map(|(server, _)| server).collect();
        Ok(Self { link, pattern: pattern(&names.prefix), prefix_len: names.prefix.len(), servers, cursor: 0 })
    }

    async fn next(&mut self) -> Result<Option<Vec<Vec<u8>>>, StoreError> {
        let Some(server) = self.servers.last() else { return Ok(None) };
        let mut scan = redis::cmd("SCAN");
        scan.arg(self.cursor).arg("MATCH").arg(&self.pattern).arg("COUNT").arg(AT_ONCE);
        let page = self.link.on_server(server, scan).await.map_err(Failure::of_read)?;
        let (cursor, keys) = redis::from_redis_value(page).map_err(StoreError::unavailable)?;
        let mut keys: Vec<Vec<u8>> = keys;
        // Steps are read with their record.
        keys.retain(|name| !slot::is_steps(name.get(self.prefix_len..).unwrap_or_default()));
        self.cursor = cursor;
        if cursor == 0 {
            self.servers.pop();
        }
        Ok(Some(keys))
    }
}

/// Sends a command for each key.
async fn ask_each(link: &Link, commands: Vec<Cmd>) -> Result<Vec<Result<Value, Failure>>, Failure> {
    if link.is_cluster() {
        return Ok(futures_util::future::join_all(commands.into_iter().map(|command| link.read(command))).await);
    }
    if commands.is_empty() {
        return Ok(Vec::new());
    }
    link.pipeline(|_| commands).await
}

/// Returns a page of records. It scans the whole store, but keeps little more than a page of keys in memory.
pub(super) async fn list(link: &Link, names: &Names, message: List) -> Result<Vec<RecordView>, StoreError> {
    let mut found = Vec::new();
    let mut after = message.after;
    while found.len() < message.limit {
        // Some records expire before they are read. The spare keys avoid another walk through the store.
        let wanted = (message.limit - found.len()).saturating_add(SPARE);
        let keys = keys_after(link, names, after.as_ref(), wanted).await?;
        let is_last = keys.len() < wanted;
        for keys in keys.chunks(AT_ONCE) {
            let wanted = message.limit - found.len();
            found.extend(read_all(link, names, keys).await?.into_iter().take(wanted));
            if found.len() >= message.limit {
                break;
            }
        }
        if is_last {
            break;
        }
        after = keys.last().cloned();
    }
    Ok(found)
}

/// Returns the records of these keys, each with its steps.
async fn read_all(link: &Link, names: &Names, keys: &[Key]) -> Result<Vec<RecordView>, StoreError> {
    let reads = keys.iter().map(|key| script::READ.call(&names.of(key), true)).collect();
    let (mut views, mut families) = (Vec::with_capacity(keys.len()), Vec::new());
    for (key, answer) in keys.iter().zip(ask_each(link, reads).await.map_err(Failure::of_read)?) {
        match read_record(key, answer.map_err(Failure::of_read)?)? {
            Found::Nothing => {}
            Found::Record(view) => views.push(view),
            Found::Family => families.push(key),
        }
    }
    // Few records have steps, but each may have many.
    for keys in families.chunks(FAMILIES_AT_ONCE) {
        let reads = keys.iter().map(|key| read(names, key, None, true)).collect();
        for (key, answer) in keys.iter().zip(ask_each(link, reads).await.map_err(Failure::of_read)?) {
            views.extend(read_view(names, key, answer.map_err(Failure::of_read)?)?);
        }
    }
    views.sort_unstable_by(|one, other| one.key.cmp(&other.key));
    Ok(views)
}

/// Returns the first keys of records after the given key, in order.
async fn keys_after(link: &Link, names: &Names, after: Option<&Key>, limit: usize) -> Result<Vec<Key>, StoreError> {
    let mut first: BTreeSet<Key> = BTreeSet::new();
    let mut walk = Walk::begin(link, names).await?;
    while let Some(page) = walk.next().await? {
        let mut keys = Vec::with_capacity(page.len());
        for name in page {
            let stored = name.get(names.prefix.len()..).and_then(|stored| std::str::from_utf8(stored).ok());
            let key = stored.and_then(|stored| Key::from_stored(stored).ok());
            let key = key.ok_or_else(|| StoreError::corrupt("a key with the store's prefix is no record's"))?;
            let is_within = first.len() < limit || first.last().is_some_and(|last| key < *last);
            if is_within && after.is_none_or(|after| key > *after) && !first.contains(&key) {
                keys.push(key);
            }
        }
        // A tombstone is no record. There may be many, and each one counted as a record would shorten the page.
        let looks = keys.iter().map(|key| look(&names.of(key))).collect();
        for (key, answer) in keys.into_iter().zip(ask_each(link, looks).await.map_err(Failure::of_read)?) {
            if is_vacant(answer)? {
                continue;
            }
            first.insert(key);
            if first.len() > limit {
                first.pop_last();
            }
        }
    }
    Ok(first.into_iter().collect())
}

/// Reads the part of a value that contains its state.
fn look(name: &[u8]) -> Cmd {
    redis::cmd("GETRANGE").arg(name).arg(0).arg(LETTER_LEN - 1).take()
}

/// Returns whether `look` found a tombstone. A value that is no record is not vacant: reading it later reports what is
/// wrong.
fn is_vacant(answer: Result<Value, Failure>) -> Result<bool, StoreError> {
    match answer.map_err(Failure::of_read) {
        Ok(head) => {
            let head = bytes_or_nil(head)?.unwrap_or_default();
            Ok(letter(&head) == Some(b'w'))
        }
        Err(StoreError::Corrupt(_)) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Counts the records by state.
pub(super) async fn stats(link: &Link, names: &Names) -> Result<StoreStats, StoreError> {
    let mut stats = StoreStats::default();
    // Redis may return a key twice if its table grows during the scan. Eight bytes are kept per key instead of the
    // whole key.
    let (hasher, mut seen) = (RandomState::new(), HashSet::new());
    let mut walk = Walk::begin(link, names).await?;
    while let Some(mut keys) = walk.next().await? {
        keys.retain(|key| seen.insert(hasher.hash_one(key)));
        let looks = keys.iter().map(|key| look(key)).collect();
        for answer in ask_each(link, looks).await.map_err(Failure::of_read)? {
            let head = bytes_or_nil(answer.map_err(Failure::of_read)?)?.unwrap_or_default();
            match letter(&head) {
                Some(b'r' | b'h' | b'm' | b'R' | b'H' | b'M') => stats.in_progress += 1,
                Some(b'c' | b'C') => stats.completed += 1,
                Some(b'i' | b'I') => stats.indeterminate += 1,
                Some(b'F') => stats.released += 1,
                // A tombstone, or a key that has vanished since.
                Some(b'w') => {}
                None if head.is_empty() => {}
                _ => return Err(StoreError::corrupt("a key with the store's prefix holds no record")),
            }
        }
    }
    Ok(stats)
}

/// Returns a pattern for all keys with the prefix, whose special characters are escaped.
fn pattern(prefix: &str) -> String {
    let mut pattern = String::with_capacity(prefix.len() + 1);
    for sign in prefix.chars() {
        if matches!(sign, '*' | '?' | '[' | ']' | '\\') {
            pattern.push('\\');
        }
        pattern.push(sign);
    }
    pattern.push('*');
    pattern
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_is_no_pattern() {
        assert_eq!(pattern("a*[b]?\\:"), "a\\*\\[b\\]\\?\\\\:*");
    }
}
