//! Reading the whole store. Redis has no order of keys and no index: each of these reads every key of the database.

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

/// How many keys the server looks at in one step: others wait for about a millisecond.
const AT_ONCE: usize = 1_000;
/// How many records with steps are read in one go.
const FAMILIES_AT_ONCE: usize = 50;
/// How many more keys than a page needs one walk looks for.
const SPARE: usize = 100;

/// A walk through the store's keys, on every server that has some. A key may be shown twice.
struct Walk<'a> {
    link: &'a Link,
    pattern: String,
    prefix_len: usize,
    /// Those still to be walked through, and where in the last of them the walk is.
    servers: Vec<String>,
    cursor: u64,
}

impl<'a> Walk<'a> {
    async fn begin(link: &'a Link, names: &Names) -> Result<Self, StoreError> {
        // Asked for its servers' names.
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

/// A page of records. The whole store is looked through for it, and of its keys little more than a page is kept.
pub(super) async fn list(link: &Link, names: &Names, message: List) -> Result<Vec<RecordView>, StoreError> {
    let mut found = Vec::new();
    let mut after = message.after;
    while found.len() < message.limit {
        // Some of them expire before they are read: with some to spare, that takes no other walk through the store.
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

/// The records of these keys, each with its steps.
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
    // Few records have steps. Each may have many.
    for keys in families.chunks(FAMILIES_AT_ONCE) {
        let reads = keys.iter().map(|key| read(names, key, None, true)).collect();
        for (key, answer) in keys.iter().zip(ask_each(link, reads).await.map_err(Failure::of_read)?) {
            views.extend(read_view(names, key, answer.map_err(Failure::of_read)?)?);
        }
    }
    views.sort_unstable_by(|one, other| one.key.cmp(&other.key));
    Ok(views)
}

/// The first keys of records after one, in their order.
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
        // A tombstone is no record. There may be many of them, and each that were taken for one would leave the page short.
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

/// Reads as much of a value as tells its state.
fn look(name: &[u8]) -> Cmd {
    redis::cmd("GETRANGE").arg(name).arg(0).arg(LETTER_LEN - 1).take()
}

/// Whether a look shows a tombstone. What is no record at all is not vacant: reading it says what is wrong with it.
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

/// Counts the records by their states.
pub(super) async fn stats(link: &Link, names: &Names) -> Result<StoreStats, StoreError> {
    let mut stats = StoreStats::default();
    // A key is shown twice if the server's table grows meanwhile. Eight bytes are kept of each, not the whole key.
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
                // A tombstone, or gone since.
                Some(b'w') => {}
                None if head.is_empty() => {}
                _ => return Err(StoreError::corrupt("a key with the store's prefix holds no record")),
            }
        }
    }
    Ok(stats)
}

/// A pattern for all that begins with the prefix, whose own signs mean nothing.
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
