//! The statements on the table of records. Diesel's query language builds each of them, so that each connection
//! prepares it once.

use diesel::prelude::*;
use diesel::query_builder::{AstPass, QueryFragment, QueryId};
use diesel::sql_types::{BigInt, Binary, Nullable};
use diesel::sqlite::Sqlite;
use oncekey::Key;
use oncekey::backend::{Filter, Find, Found as Page, Purged, RecordView, StateName, StoreError, StoreStats};
use oncekey::record::{Record, StoreTime};

use super::error::not_taken;
use super::schema::oncekey_records;
use super::schema::oncekey_records::dsl;
use super::steps::{self, Outcomes};
use crate::columns::{
    COMPLETED, IN_PROGRESS, INDETERMINATE, RELEASED, Stored, VACANT, barrier_of, outcome_of, state_of, stats_of,
    to_column, token_of,
};
use crate::step_columns::{life_of, steps_of};

/// A record and its row.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) id: i64,
    pub(super) record: Record,
}

#[derive(Queryable, Selectable)]
#[diesel(table_name = oncekey_records)]
struct Row {
    id: i64,
    fingerprint: Vec<u8>,
    attempt: i64,
    owner: Vec<u8>,
    state: i64,
    lease_until: Option<i64>,
    on_abandoned: Option<i64>,
    outcome: Option<Vec<u8>>,
    purge_at: Option<i64>,
    fencing_token: i64,
    barrier_owner: Option<Vec<u8>>,
    barrier_until: Option<i64>,
    steps_life: Option<i64>,
    steps_retention: Option<i64>,
}

// NULL is written explicitly. With DEFAULT, each pattern of absent columns would be a different statement, and none
// would be prepared.
#[derive(Insertable, PartialEq)]
#[diesel(table_name = oncekey_records, treat_none_as_default_value = false)]
struct Columns<'a> {
    fingerprint: &'a [u8],
    attempt: i64,
    owner: &'a [u8],
    state: i64,
    lease_until: Option<i64>,
    on_abandoned: Option<i64>,
    outcome: Option<&'a [u8]>,
    purge_at: Option<i64>,
    fencing_token: i64,
    barrier_owner: Option<&'a [u8]>,
    barrier_until: Option<i64>,
    steps_life: Option<i64>,
    steps_retention: Option<i64>,
}

/// Replaces the record in a row. Diesel's own UPDATE is prepared again for every execution, which costs more than the
/// execution.
struct Update<'a> {
    id: i64,
    columns: Columns<'a>,
}

impl QueryId for Update<'_> {
    type QueryId = Update<'static>;

    const HAS_STATIC_QUERY_ID: bool = true;
}

impl QueryFragment<Sqlite> for Update<'_> {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Sqlite>) -> QueryResult<()> {
        out.push_sql("UPDATE oncekey_records SET fingerprint = ");
        out.push_bind_param::<Binary, _>(self.columns.fingerprint)?;
        out.push_sql(", attempt = ");
        out.push_bind_param::<BigInt, _>(&self.columns.attempt)?;
        out.push_sql(", owner = ");
        out.push_bind_param::<Binary, _>(self.columns.owner)?;
        out.push_sql(", state = ");
        out.push_bind_param::<BigInt, _>(&self.columns.state)?;
        out.push_sql(", lease_until = ");
        out.push_bind_param::<Nullable<BigInt>, _>(&self.columns.lease_until)?;
        out.push_sql(", on_abandoned = ");
        out.push_bind_param::<Nullable<BigInt>, _>(&self.columns.on_abandoned)?;
        out.push_sql(", outcome = ");
        out.push_bind_param::<Nullable<Binary>, _>(&self.columns.outcome)?;
        out.push_sql(", purge_at = ");
        out.push_bind_param::<Nullable<BigInt>, _>(&self.columns.purge_at)?;
        out.push_sql(", fencing_token = ");
        out.push_bind_param::<BigInt, _>(&self.columns.fencing_token)?;
        out.push_sql(", barrier_owner = ");
        out.push_bind_param::<Nullable<Binary>, _>(&self.columns.barrier_owner)?;
        out.push_sql(", barrier_until = ");
        out.push_bind_param::<Nullable<BigInt>, _>(&self.columns.barrier_until)?;
        out.push_sql(", steps_life = ");
        out.push_bind_param::<Nullable<BigInt>, _>(&self.columns.steps_life)?;
        out.push_sql(", steps_retention = ");
        out.push_bind_param::<Nullable<BigInt>, _>(&self.columns.steps_retention)?;
        out.push_sql(" WHERE id = ");
        out.push_bind_param::<BigInt, _>(&self.id)
    }
}

impl RunQueryDsl<SqliteConnection> for Update<'_> {}

/// Reads a key's record with its steps, whether it has expired or not. Call it inside a write transaction, because the
/// steps take a second statement.
pub(super) fn find(
    connection: &mut SqliteConnection,
    key: &Key,
    outcomes: Outcomes<'_>,
) -> Result<Option<Found>, StoreError> {
    let Some(mut found) = find_without_steps(connection, key)? else { return Ok(None) };
    if let Some(steps) = &mut found.record.steps {
        steps::load(connection, found.id, steps, outcomes)?;
    }
    Ok(Some(found))
}

/// Does the same as [`find`] outside a write transaction, where a writer may change the record between the two
/// statements.
pub(super) fn read(connection: &mut SqliteConnection, key: &Key) -> Result<Option<Found>, StoreError> {
    match find_without_steps(connection, key)? {
        Some(found) if found.record.steps.is_some() => {
            in_snapshot(connection, |connection| find(connection, key, Outcomes::All))
        }
        found => Ok(found),
    }
}

/// Runs a read that sees the database as of one point in time.
fn in_snapshot<T>(
    connection: &mut SqliteConnection,
    read: impl FnOnce(&mut SqliteConnection) -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    enum Failed {
        Read(StoreError),
        Sqlite(diesel::result::Error),
    }

    impl From<diesel::result::Error> for Failed {
        fn from(error: diesel::result::Error) -> Self {
            Self::Sqlite(error)
        }
    }

    let read = connection.transaction(|connection| read(connection).map_err(Failed::Read));
    read.map_err(|failed| match failed {
        Failed::Read(error) => error,
        Failed::Sqlite(error) => not_taken(&error),
    })
}

/// Does the same as [`find`], but leaves the list of steps empty.
pub(super) fn find_without_steps(connection: &mut SqliteConnection, key: &Key) -> Result<Option<Found>, StoreError> {
    // Not `first`: Diesel's bound LIMIT makes SQLite prepare the statement again at each binding, and a key has one
    // row.
    let row = dsl::oncekey_records
        .filter(dsl::key.eq(key.as_stored()))
        .select(Row::as_select())
        .get_result(connection)
        .optional()
        .map_err(|error| not_taken(&error))?;
    row.map(|row| Ok(Found { id: row.id, record: decode(row)? })).transpose()
}

/// Writes a record where there was none. A new record has no steps.
pub(super) fn insert(connection: &mut SqliteConnection, key: &Key, record: &Record) -> Result<(), StoreError> {
    debug_assert!(record.steps.is_none());
    let values = (dsl::key.eq(key.as_stored()), encode(record)?);
    let inserted = diesel::insert_into(dsl::oncekey_records).values(values).execute(connection);
    inserted.map(drop).map_err(|error| not_taken(&error))
}

/// Replaces the record that was found by `record` with its steps.
pub(super) fn replace(connection: &mut SqliteConnection, found: &Found, record: &Record) -> Result<(), StoreError> {
    let columns = encode(record)?;
    // Most changes of a step leave its record's row unchanged.
    if columns != encode(&found.record)? {
        let updated = Update { id: found.id, columns }.execute(connection);
        updated.map_err(|error| not_taken(&error))?;
    }
    steps::write(connection, found.id, found.record.steps.as_deref(), record.steps.as_deref())
}

/// Removes a record. A trigger removes its steps.
pub(super) fn delete(connection: &mut SqliteConnection, id: i64) -> Result<(), StoreError> {
    let deleted = diesel::delete(dsl::oncekey_records.find(id)).execute(connection);
    deleted.map(drop).map_err(|error| not_taken(&error))
}

/// Removes a key's row without reading it, so that it can remove a corrupt one.
pub(super) fn remove(connection: &mut SqliteConnection, key: &Key) -> Result<bool, StoreError> {
    let removed = diesel::delete(dsl::oncekey_records.filter(dsl::key.eq(key.as_stored()))).execute(connection);
    removed.map(|rows| rows > 0).map_err(|error| not_taken(&error))
}

/// Reads a page of records that are neither vacant nor expired, in the order of the keys' bytes. The page starts behind
/// the key `after`; an empty text starts at the first key.
pub(super) fn list(
    connection: &mut SqliteConnection,
    after: &str,
    limit: usize,
    now: StoreTime,
) -> Result<Vec<RecordView>, StoreError> {
    in_snapshot(connection, |connection| {
        let rows = candidates(connection, &Filter::default(), after.to_owned(), limit, now)?;
        let mut views = Vec::with_capacity(rows.len());
        for row in rows {
            let (key, record) = decode_listed(connection, row)?;
            views.extend(RecordView::of(key, record, now));
        }
        Ok(views)
    })
}

/// Decodes a row of a page as its key and its record with the steps.
fn decode_listed(connection: &mut SqliteConnection, (stored, row): (String, Row)) -> Result<(Key, Record), StoreError> {
    let key = Key::from_stored(&stored).map_err(|error| StoreError::corrupt(format!("a record's key: {error}")))?;
    let (id, mut record) = (row.id, decode(row)?);
    if let Some(steps) = &mut record.steps {
        steps::load(connection, id, steps, Outcomes::All)?;
    }
    Ok((key, record))
}

/// How many rows one statement reads for a page.
const ROWS_AT_ONCE: usize = 500;
/// The most rows that one page reads. If few of them match, the page ends before it is full.
const ROWS_READ: usize = 20_000;

/// Reads a page of the records that match a filter.
pub(super) fn find_page(connection: &mut SqliteConnection, message: &Find, now: StoreTime) -> Result<Page, StoreError> {
    let Find { filter, after, limit } = message;
    let mut after = after.as_ref().map_or_else(String::new, |key| key.as_stored().to_owned());
    in_snapshot(connection, |connection| {
        let (mut records, mut next, mut read) = (Vec::new(), None, 0);
        loop {
            let rows = candidates(connection, filter, after, ROWS_AT_ONCE, now)?;
            let is_last = rows.len() < ROWS_AT_ONCE;
            read += rows.len();
            for row in rows {
                if records.len() == *limit {
                    return Ok(Page { records, next });
                }
                let (key, record) = decode_listed(connection, row)?;
                next = Some(key.clone());
                records.extend(RecordView::of(key, record, now).filter(|view| filter.takes(view)));
            }
            if is_last {
                return Ok(Page { records, next: None });
            }
            if read >= ROWS_READ {
                return Ok(Page { records, next });
            }
            after = next.as_ref().map_or_else(String::new, |key| key.as_stored().to_owned());
        }
    })
}

/// Reads up to `limit` rows that may belong to a page, without vacant and expired ones. The caller applies the rest of
/// the filter to each record.
fn candidates(
    connection: &mut SqliteConnection,
    filter: &Filter,
    after: String,
    limit: usize,
    now: StoreTime,
) -> Result<Vec<(String, Row)>, StoreError> {
    let kept = dsl::purge_at.is_null().or(dsl::purge_at.gt(to_column(now)));
    let mut rows = dsl::oncekey_records
        .select((dsl::key, Row::as_select()))
        .filter(dsl::key.gt(after).and(kept).and(dsl::state.ne(i64::from(VACANT))))
        .order(dsl::key)
        .limit(i64::try_from(limit).unwrap_or(i64::MAX))
        .into_boxed();
    rows = match filter.state {
        None => rows,
        Some(StateName::InProgress) => rows.filter(dsl::state.eq(i64::from(IN_PROGRESS))),
        Some(StateName::Completed) => rows.filter(dsl::state.eq(i64::from(COMPLETED))),
        Some(StateName::Released) => rows.filter(dsl::state.eq(i64::from(RELEASED))),
        // A lapsed claim may be indeterminate; that state is computed, not stored.
        Some(StateName::Indeterminate) => rows.filter(
            dsl::state
                .eq(i64::from(INDETERMINATE))
                .or(dsl::state.eq(i64::from(IN_PROGRESS)).and(dsl::lease_until.assume_not_null().le(to_column(now)))),
        ),
    };
    if let Some(scope) = &filter.scope {
        // The stored keys of a scope are adjacent.
        let (first, behind) = (format!("{}:{scope}:", scope.len()), format!("{}:{scope};", scope.len()));
        rows = rows.filter(dsl::key.ge(first).and(dsl::key.lt(behind)));
    }
    rows.load(connection).map_err(|error| not_taken(&error))
}

/// Removes expired records and their steps, up to `limit` rows together, but at least one record.
pub(super) fn purge(connection: &mut SqliteConnection, limit: usize, now: StoreTime) -> Result<Purged, StoreError> {
    let over = oncekey_records::table
        .filter(dsl::purge_at.le(to_column(now)))
        .order(dsl::purge_at)
        .limit(i64::try_from(limit).unwrap_or(i64::MAX))
        .select((dsl::id, dsl::steps_life.is_not_null()));
    let rows: Vec<(i64, bool)> = over.load(connection).map_err(|error| not_taken(&error))?;
    let (mut removed, mut left) = (0, limit);
    for (id, has_steps) in &rows {
        let family = 1 + if *has_steps { steps::count(connection, *id)? } else { 0 };
        if family > left && removed > 0 {
            break;
        }
        delete(connection, *id)?;
        left = left.saturating_sub(family);
        removed += 1;
    }
    Ok(Purged { removed, more: removed < rows.len() || rows.len() == limit })
}

/// Counts the records by state. This reads every row's header, so run it on a reader, and only occasionally.
pub(super) fn stats(connection: &mut SqliteConnection) -> Result<StoreStats, StoreError> {
    let counts: Vec<(i64, i64)> = dsl::oncekey_records
        .group_by(dsl::state)
        .select((dsl::state, diesel::dsl::count_star()))
        .load(connection)
        .map_err(|error| not_taken(&error))?;
    stats_of(counts)
}

fn encode(record: &Record) -> Result<Columns<'_>, StoreError> {
    let (state, lease_until, on_abandoned) = state_of(record);
    let (barrier_owner, barrier_until) = barrier_of(record);
    let (steps_life, steps_retention) = life_of(record.steps.as_deref());
    Ok(Columns {
        fingerprint: record.fingerprint.as_bytes(),
        attempt: i64::try_from(record.attempt.get()).map_err(StoreError::corrupt)?,
        owner: record.owner.as_bytes(),
        state: state.into(),
        lease_until,
        on_abandoned: on_abandoned.map(i64::from),
        outcome: outcome_of(record),
        purge_at: record.purge_at().map(to_column),
        fencing_token: token_of(record),
        barrier_owner,
        barrier_until,
        steps_life,
        steps_retention,
    })
}

/// Decodes a record without loading its steps.
fn decode(row: Row) -> Result<Record, StoreError> {
    let steps = steps_of(row.steps_life, row.steps_retention)?.map(Box::new);
    let record = Stored {
        fingerprint: row.fingerprint,
        attempt: row.attempt,
        owner: row.owner,
        state: row.state,
        lease_until: row.lease_until,
        on_abandoned: row.on_abandoned,
        outcome: row.outcome,
        purge_at: row.purge_at,
        fencing_token: row.fencing_token,
        barrier_owner: row.barrier_owner,
        barrier_until: row.barrier_until,
    }
    .decode()?;
    Ok(Record { steps, ..record })
}
