//! PostgreSQL's statements on the table of records, as text.

use super::steps::StepTexts;
use crate::sql::PURGE_LOOKS_AGAIN;

/// The server's time in milliseconds since 1970 at the moment when the row is returned, which is later than any write
/// to the row.
macro_rules! now {
    () => {
        "(extract(epoch from clock_timestamp()) * 1000)::bigint"
    };
}
pub(super) use now;

#[cfg(feature = "outbox")]
pub(crate) const NOW: &str = now!();

/// The time at which the statement began. It stays the same during the statement, so an index can serve it.
macro_rules! began {
    () => {
        "(extract(epoch from statement_timestamp()) * 1000)::bigint"
    };
}

macro_rules! row {
    () => {
        "r.fingerprint, r.attempt, r.owner, r.state, r.lease_until, r.on_abandoned, r.outcome, r.purge_at, \
         r.fencing_token, r.barrier_owner, r.barrier_until, r.steps_life, r.steps_retention"
    };
}

/// The columns that a completion writes. The outcome is kept at least while a barrier stands, and until the clock alone
/// yields a higher fencing token: if the clock was set back, the next claim would otherwise get a lower one.
macro_rules! complete {
    ($outcome:literal, $retention:literal) => {
        concat!(
            "UPDATE {table} AS r SET state = 2, lease_until = NULL, on_abandoned = NULL, outcome = ",
            $outcome,
            ", purge_at = greatest(",
            now!(),
            " + ",
            $retention,
            ", coalesce(r.barrier_until, 0), r.fencing_token / 1000 + 1), watched = r.watched AND r.state = 1 "
        )
    };
}

/// The condition that a completion belongs to the owner and is not too late, and the columns that it returns.
macro_rules! completed {
    () => {
        concat!(
            "AND r.state IN (1, 3) AND (r.purge_at IS NULL OR r.purge_at > ",
            began!(),
            ") RETURNING convert_to(r.key, 'UTF8'), {announce}"
        )
    };
}

/// The texts of the statements, with the table's name.
pub(super) struct Texts {
    pub(super) read: String,
    pub(super) lock: String,
    pub(super) unlocked: String,
    pub(super) claim: String,
    pub(super) insert: String,
    pub(super) update: String,
    pub(super) complete: String,
    pub(super) complete_one: String,
    /// Checks whether the owner has completed its claim before.
    #[cfg(feature = "blocking")]
    pub(super) completed_by: String,
    pub(super) delete: String,
    pub(super) remove: String,
    pub(super) list: String,
    pub(super) purge: String,
    pub(super) stats: String,
    pub(super) watch: String,
    pub(super) of_steps: StepTexts,
}

impl Texts {
    /// Fills in the names. `table` and `steps` are quoted names, `channel` is that of the announcements, and
    /// `purge_lock` is the number of the advisory lock under which one process purges.
    pub(super) fn new(table: &str, steps: &str, channel: &str, purge_lock: i64) -> Self {
        // Announced in the same transaction as the change, and only if a caller waits.
        let announce = format!("CASE WHEN watched THEN pg_notify('{channel}', key)::text END");
        let announce_row = format!("CASE WHEN r.watched THEN pg_notify('{channel}', r.key)::text END");
        Self {
            // If there is no row, returns one without a key, which gives the time.
            read: format!(
                concat!(
                    "SELECT ",
                    now!(),
                    ", convert_to(r.key, 'UTF8'), coalesce(r.fingerprint, ''), ",
                    "coalesce(r.attempt, 0), coalesce(r.owner, ''), coalesce(r.state, 0::smallint), r.lease_until, ",
                    "r.on_abandoned, r.outcome, r.purge_at, coalesce(r.fencing_token, 0), r.barrier_owner, r.barrier_until, ",
                    "r.steps_life, r.steps_retention ",
                    "FROM (VALUES (1)) AS one LEFT JOIN {table} AS r ON r.key = ANY(?)"
                ),
                table = table
            ),
            lock: format!(
                concat!("SELECT ", now!(), ", ", row!(), " FROM {table} AS r WHERE r.key = ? FOR UPDATE"),
                table = table
            ),
            unlocked: format!(
                "SELECT convert_to(r.key, 'UTF8') FROM {table} AS r WHERE r.key = ANY(?) FOR UPDATE SKIP LOCKED"
            ),
            claim: format!(
                concat!(
                    "INSERT INTO {table} (key, fingerprint, attempt, owner, state, lease_until, on_abandoned, purge_at, ",
                    "fencing_token) SELECT a.key, a.fingerprint, 1, a.owner, 1, clock.now + a.lease, a.word, ",
                    "clock.now + a.kept, clock.now * 1000 ",
                    "FROM (SELECT ",
                    now!(),
                    " AS now) AS clock, unnest(?, ?, ?, ?, ?, ?) AS a (key, fingerprint, owner, lease, word, kept) ",
                    "ORDER BY a.key COLLATE \"C\" ON CONFLICT (key) DO NOTHING ",
                    "RETURNING convert_to(key, 'UTF8'), fencing_token"
                ),
                table = table
            ),
            insert: format!(
                "INSERT INTO {table} (key, fingerprint, attempt, owner, state, lease_until, on_abandoned, outcome, \
                 purge_at, fencing_token, barrier_owner, barrier_until) \
                 SELECT * FROM unnest(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) AS a (key, b, c, d, e, f, g, h, i, j, k, l) \
                 ORDER BY a.key COLLATE \"C\" ON CONFLICT (key) DO NOTHING RETURNING convert_to(key, 'UTF8')"
            ),
            update: format!(
                "WITH written AS (UPDATE {table} AS r SET fingerprint = a.fingerprint, attempt = a.attempt, \
                 owner = a.owner, state = a.state, lease_until = a.lease_until, on_abandoned = a.on_abandoned, \
                 outcome = a.outcome, purge_at = a.purge_at, fencing_token = a.token, barrier_owner = a.barrier_owner, \
                 barrier_until = a.barrier_until, watched = r.watched AND r.state = 1 \
                 FROM unnest(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) AS a (key, was_owner, was_state, was_lease, \
                 was_barrier, was_life, fingerprint, attempt, owner, state, lease_until, on_abandoned, outcome, purge_at, token, \
                 barrier_owner, barrier_until) \
                 WHERE r.key = a.key AND r.owner = a.was_owner AND r.state = a.was_state \
                 AND r.lease_until IS NOT DISTINCT FROM a.was_lease \
                 AND r.barrier_owner IS NOT DISTINCT FROM a.was_barrier \
                 AND r.steps_life IS NOT DISTINCT FROM a.was_life \
                 RETURNING r.key, r.watched AND a.state <> 1 AS watched) \
                 SELECT convert_to(key, 'UTF8'), {announce} FROM written"
            ),
            complete: format!(
                concat!(
                    complete!("a.outcome", "a.retention"),
                    "FROM unnest(?, ?, ?, ?) AS a (outcome, retention, key, owner) WHERE r.key = a.key AND r.owner = a.owner ",
                    completed!()
                ),
                table = table,
                announce = announce_row
            ),
            // Planned in half the time.
            complete_one: format!(
                concat!(complete!("?", "?"), "WHERE r.key = ? AND r.owner = ? ", completed!()),
                table = table,
                announce = announce_row
            ),
            #[cfg(feature = "blocking")]
            completed_by: format!(
                concat!(
                    "SELECT count(*) FROM {table} WHERE key = ? AND owner = ? AND state = 2 AND purge_at > ",
                    now!()
                ),
                table = table
            ),
            delete: format!(
                "WITH written AS (DELETE FROM {table} AS r USING unnest(?, ?, ?, ?, ?, ?) AS a (key, owner, state, lease, \
                 barrier, life) \
                 WHERE r.key = a.key AND r.owner = a.owner AND r.state = a.state \
                 AND r.lease_until IS NOT DISTINCT FROM a.lease AND r.barrier_owner IS NOT DISTINCT FROM a.barrier \
                 AND r.steps_life IS NOT DISTINCT FROM a.life \
                 RETURNING r.key, r.watched) \
                 SELECT convert_to(key, 'UTF8'), {announce} FROM written"
            ),
            remove: format!(
                "WITH steps AS (DELETE FROM {steps} WHERE key = ?), \
                 written AS (DELETE FROM {table} WHERE key = ? RETURNING key, watched) \
                 SELECT convert_to(key, 'UTF8'), {announce} FROM written"
            ),
            list: format!(
                concat!(
                    "SELECT ",
                    now!(),
                    ", convert_to(r.key, 'UTF8'), ",
                    row!(),
                    " FROM {table} AS r WHERE r.key > ? AND r.state <> 4 ",
                    "AND (r.purge_at IS NULL OR r.purge_at > ",
                    began!(),
                    // The record's steps decide whether it has expired.
                    " OR r.state = 1 AND r.steps_life IS NOT NULL) ORDER BY r.key LIMIT ?"
                ),
                table = table
            ),
            purge: format!(
                concat!(
                    "WITH due AS MATERIALIZED (SELECT key, purge_at, state, lease_until, steps_life, steps_retention, ",
                    "steps_count FROM {table} WHERE purge_at <= ",
                    began!(),
                    " AND (SELECT pg_try_advisory_xact_lock({purge_lock})) ORDER BY purge_at LIMIT ? ",
                    "FOR UPDATE SKIP LOCKED), ",
                    // A claim with steps is kept as long as after a release, and while any step is not settled.
                    "judged AS (SELECT key, steps_life IS NOT NULL AS has_steps, steps_life IS NOT NULL AND state = 1 ",
                    "AND (lease_until + coalesce(steps_retention, 0) > ",
                    began!(),
                    " OR EXISTS (SELECT FROM {steps} AS s WHERE s.key = due.key AND s.life = due.steps_life ",
                    "AND s.state = 1 AND coalesce(s.reruns_until, 0) < {end})) AS stays, ",
                    "sum(1 + coalesce(steps_count, 0)) OVER counted <= ? OR row_number() OVER counted = 1 AS fits ",
                    "FROM due WINDOW counted AS (ORDER BY purge_at, key ROWS UNBOUNDED PRECEDING)), ",
                    "kept AS (UPDATE {table} AS r SET purge_at = ",
                    began!(),
                    " + {looked_at_again} FROM judged WHERE r.key = judged.key AND judged.stays), ",
                    "gone_steps AS (DELETE FROM {steps} WHERE key = ANY(ARRAY(SELECT key FROM judged ",
                    "WHERE has_steps AND fits AND NOT stays)) RETURNING 1), ",
                    "gone AS (DELETE FROM {table} WHERE key = ANY(ARRAY(SELECT key FROM judged ",
                    "WHERE fits AND NOT stays)) RETURNING 1) ",
                    "SELECT (SELECT count(*) FROM gone) + (SELECT count(*) FROM gone_steps), ",
                    "(SELECT count(*) FROM due) >= ? OR EXISTS (SELECT FROM judged WHERE NOT fits)"
                ),
                table = table,
                steps = steps,
                purge_lock = purge_lock,
                end = i64::MAX,
                looked_at_again = PURGE_LOOKS_AGAIN
            ),
            stats: format!("SELECT state, count(*) FROM {table} GROUP BY state"),
            watch: format!("UPDATE {table} SET watched = true WHERE key = ? AND state = 1 AND NOT watched"),
            of_steps: StepTexts::new(table, steps, &announce),
        }
    }
}
