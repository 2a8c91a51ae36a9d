//! Purges expired rows, in one process at a time.

use diesel::QueryResult;
use diesel::sql_types::{BigInt, Binary, Integer};
use diesel_async::{AsyncMysqlConnection, RunQueryDsl};

use super::table::{Mysql, NOW, padded, repeated};
use crate::sql::{Bind, Fragment, PURGE_LOOKS_AGAIN};

/// The row with which processes take turns at purging, in the table whose other rows are for flushes. In a cluster,
/// named locks apply to one node only or are refused.
pub(super) const PURGE_TURN: i64 = -1;
/// The longest turn. If the purging process has ended, another process takes over after this time.
const PURGE_TURN_MS: i64 = 30_000;

impl Mysql {
    /// Implements [`Dialect::purge`](crate::sql::Dialect::purge), if it is this connection's turn.
    pub(super) async fn purge_in_turn(
        &self,
        connection: &mut AsyncMysqlConnection,
        limit: usize,
    ) -> QueryResult<(usize, bool)> {
        if limit == 0 || !self.take_turn(connection).await? {
            return Ok((0, false));
        }
        let purged = self.purge_locked(connection, limit).await;
        self.end_turn(connection).await?;
        purged
    }

    /// Returns whether it is this connection's turn to purge.
    async fn take_turn(&self, connection: &mut AsyncMysqlConnection) -> QueryResult<bool> {
        let flushes = &self.flushes;
        let text = format!("SELECT flushes > {NOW} FROM {flushes} WHERE slot = {PURGE_TURN}");
        let taken: Vec<i64> = Fragment::<BigInt, Bind<'_>>::new(&text, &[]).load(connection).await?;
        let text = match taken.as_slice() {
            [0, ..] => format!(
                "UPDATE {flushes} SET flushes = {NOW} + {PURGE_TURN_MS} WHERE slot = {PURGE_TURN} AND flushes <= {NOW}"
            ),
            [_, ..] => return Ok(false),
            [] => {
                format!("INSERT IGNORE INTO {flushes} (slot, flushes) VALUES ({PURGE_TURN}, {NOW} + {PURGE_TURN_MS})")
            }
        };
        Ok(Fragment::<(), Bind<'_>>::new(&text, &[]).execute(connection).await? == 1)
    }

    async fn end_turn(&self, connection: &mut AsyncMysqlConnection) -> QueryResult<()> {
        let text = format!("UPDATE {} SET flushes = 0 WHERE slot = {PURGE_TURN}", self.flushes);
        Fragment::<(), Bind<'_>>::new(&text, &[]).execute(connection).await.map(drop)
    }

    /// Reads the keys of expired rows, and locks each row by itself: a delete by a range of times would lock the gaps
    /// between them.
    async fn purge_locked(&self, connection: &mut AsyncMysqlConnection, limit: usize) -> QueryResult<(usize, bool)> {
        let table = &self.table;
        let text = format!(
            "SELECT record_key, COALESCE(steps_count, 0), steps_life IS NOT NULL FROM {table} WHERE purge_at <= {NOW} \
             ORDER BY purge_at LIMIT ?"
        );
        let rows = [Bind::BigInt(i64::try_from(limit).unwrap_or(i64::MAX))];
        let due: Vec<(Vec<u8>, i64, i32)> =
            Fragment::<(Binary, BigInt, Integer), _>::new(&text, &rows).load(connection).await?;
        let (mut plain, mut families, mut counted) = (Vec::new(), Vec::new(), 0);
        let mut more = due.len() >= limit;
        for (key, steps, has_steps) in due {
            let size = usize::try_from(steps).unwrap_or(0).saturating_add(1);
            if counted > 0 && size.saturating_add(counted) > limit {
                more = true;
                break;
            }
            counted += size;
            if has_steps == 0 { plain.push(key) } else { families.push(key) }
        }
        let mut removed = 0;
        for keys in plain.chunks(256) {
            let marks = repeated("?", ", ", keys.len());
            let text = format!(
                "DELETE FROM {table} WHERE record_key IN ({marks}) AND purge_at <= {NOW} AND steps_life IS NULL"
            );
            let keys: Vec<&[u8]> = keys.iter().map(Vec::as_slice).collect();
            let binds: Vec<_> = padded(&keys).map(Bind::Bytes).collect();
            removed += Fragment::<(), _>::new(&text, &binds).execute(connection).await?;
        }
        for key in families {
            removed += self.purge_family(connection, &key).await?;
        }
        Ok((removed, more))
    }

    /// Removes an expired record with its steps. A claim is kept as long as after a release, and while any of its steps
    /// is not settled: it is checked again later.
    async fn purge_family(&self, connection: &mut AsyncMysqlConnection, key: &[u8]) -> QueryResult<usize> {
        let Self { table, steps, .. } = self;
        let text = format!(
            "UPDATE {table} AS r SET r.purge_at = {NOW} + {PURGE_LOOKS_AGAIN} WHERE r.record_key = ? \
             AND r.purge_at <= {NOW} AND r.state = 1 AND (r.lease_until + COALESCE(r.steps_retention, 0) > {NOW} \
             OR EXISTS (SELECT 1 FROM {steps} AS s WHERE s.record_key = ? AND s.life = r.steps_life AND s.state = 1 \
             AND COALESCE(s.reruns_until, 0) < {}))",
            i64::MAX
        );
        let kept = Fragment::<(), _>::new(&text, &[Bind::Bytes(key), Bind::Bytes(key)]).execute(connection).await?;
        if kept > 0 {
            return Ok(0);
        }
        let text = format!(
            "DELETE r, s FROM {table} AS r LEFT JOIN {steps} AS s ON s.record_key = r.record_key \
             WHERE r.record_key = ? AND r.purge_at <= {NOW} AND r.steps_life IS NOT NULL"
        );
        Fragment::<(), _>::new(&text, &[Bind::Bytes(key)]).execute(connection).await
    }
}
