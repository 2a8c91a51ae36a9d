//! The code that the outboxes of PostgreSQL and MySQL share: statements on tables whose names were looked up once, and
//! the relay's turn, a row with a lease.

/// The statements that are the same in both databases.
#[derive(Debug)]
pub(super) struct Texts {
    pub(super) first: String,
    pub(super) is_taken: String,
    pub(super) parked: String,
    pub(super) post: String,
    table: String,
    set_apart: String,
    relays: String,
    now: &'static str,
}

const COLUMNS: &str = "id, message_id, topic, payload, headers";

impl Texts {
    /// Creates the statements from the quoted names of the tables, an expression for the server's time in milliseconds,
    /// and a function that converts a text expression to bytes.
    pub(super) fn new(
        table: String,
        set_apart: String,
        relays: String,
        now: &'static str,
        text: fn(&str) -> String,
    ) -> Self {
        let (id, topic, headers, reason) = (text("message_id"), text("topic"), text("headers"), text("reason"));
        Self {
            first: format!("SELECT id, {id}, {topic}, payload, {headers} FROM {table} ORDER BY id LIMIT ?"),
            // The relay's name is a parameter, so that a connection prepares only one statement.
            is_taken: format!("SELECT count(*) FROM {relays} WHERE id = 1 AND owner <> ? AND lease_until > {now}"),
            parked: format!("SELECT id, {id}, {topic}, {reason} FROM {set_apart} ORDER BY id LIMIT ?"),
            post: format!("INSERT INTO {table} (message_id, topic, payload, headers) VALUES (?, ?, ?, ?)"),
            table,
            set_apart,
            relays,
            now,
        }
    }

    /// Takes the turn from now on, if it belongs to this relay or to none.
    pub(super) fn take(&self, lease: std::time::Duration) -> String {
        let Self { relays, now, .. } = self;
        format!(
            "UPDATE {relays} SET owner = ?, lease_until = {now} + {} WHERE id = 1 AND (owner = ? OR lease_until <= {now})",
            lease.as_millis()
        )
    }

    /// Creates the missing row: no relay has ever run, or the table was emptied.
    pub(super) fn begin(&self, lease: std::time::Duration, insert: &str, unless_there: &str) -> String {
        let Self { relays, now, .. } = self;
        format!(
            "{insert} INTO {relays} (id, owner, lease_until) VALUES (1, ?, {now} + {}) {unless_there}",
            lease.as_millis()
        )
    }

    pub(super) fn give_up(&self) -> String {
        format!("UPDATE {} SET lease_until = 0 WHERE id = 1 AND owner = ?", self.relays)
    }

    /// The numbers are part of the text, because the statement is not prepared.
    pub(super) fn remove(&self, numbers: &[i64]) -> String {
        format!("DELETE FROM {} WHERE id IN ({})", self.table, super::listed(numbers))
    }

    /// The reason and the number are parameters.
    pub(super) fn set_apart(&self) -> String {
        let Self { table, set_apart, now, .. } = self;
        format!(
            "INSERT INTO {set_apart} ({COLUMNS}, reason, parked_at) SELECT {COLUMNS}, ?, {now} FROM {table} WHERE id = ?"
        )
    }

    /// For a transaction: puts the rows back in their places.
    pub(super) fn put_back(&self, numbers: &[i64]) -> [String; 2] {
        let Self { table, set_apart, .. } = self;
        let numbers = super::listed(numbers);
        [
            format!("INSERT INTO {table} ({COLUMNS}) SELECT {COLUMNS} FROM {set_apart} WHERE id IN ({numbers})"),
            format!("DELETE FROM {set_apart} WHERE id IN ({numbers})"),
        ]
    }
}

/// The suffixes of the outbox's tables besides `oncekey_outbox`.
pub(super) const PARKED: &str = "_parked";
pub(super) const RELAYS: &str = "_relays";

/// Implements an outbox with a pool and `texts`.
macro_rules! outbox_by_texts {
    (
        outbox: $outbox:ident,
        connection: $connection:ty,
        bytes: $bytes:expr,
        number: $number:expr,
        insert: ($insert:literal, $unless_there:literal) $(,)?
    ) => {
        /// The right to publish, held as a row of the database.
        #[derive(Debug)]
        pub struct Turn(());

        impl $outbox {
            /// Runs `work` on a connection of the pool, which returns to the pool if `work` succeeds.
            async fn with<T>(
                &self,
                what: &'static str,
                work: impl AsyncFnOnce(&mut $connection) -> QueryResult<T>,
            ) -> Result<T, OutboxError> {
                let connection = self.pool.lend().await.map_err(failed("connecting"))?;
                lend_clean(connection, work).await.map_err(failed(what))
            }

            /// Returns up to `limit` parked rows, in order.
            ///
            /// # Errors
            /// Fails if the database can't be reached or refuses a statement.
            pub async fn parked(&self, limit: u32) -> Result<Vec<Parked>, OutboxError> {
                let binds = [$number(i64::from(limit))];
                let rows = self.with("reading what is parked", async |connection: &mut $connection| {
                    let texts = &self.texts;
                    Fragment::<(BigInt, Binary, Binary, Binary), _>::new(&texts.parked, &binds).load(connection).await
                });
                Ok(rows.await?.into_iter().map(parked).collect())
            }

            /// Puts parked rows back in their places, where the relay reads them again. Ignores numbers that are not
            /// parked.
            ///
            /// # Errors
            /// Fails if the database can't be reached or refuses a statement. Nothing has changed then.
            pub async fn retry(&self, numbers: Vec<i64>) -> Result<(), OutboxError> {
                if numbers.is_empty() {
                    return Ok(());
                }
                let [put_back, delete] = self.texts.put_back(&numbers);
                self.with("putting rows back", async |connection: &mut $connection| {
                    connection
                        .transaction(async |tx| {
                            tx.batch_execute(&put_back).await?;
                            tx.batch_execute(&delete).await
                        })
                        .await
                })
                .await
            }
        }

        impl Table for $outbox {
            type Turn = Turn;

            async fn take_turn(&self, relay: &str, lease: Duration) -> Result<Option<Turn>, OutboxError> {
                let binds = [$bytes(relay)];
                let taken = self.with("looking for the turn", async |connection: &mut $connection| {
                    Fragment::<BigInt, _>::new(&self.texts.is_taken, &binds).get_result::<i64>(connection).await
                });
                if taken.await? > 0 {
                    return Ok(None);
                }
                Ok(self.keep_turn(&mut Turn(()), relay, lease).await?.then_some(Turn(())))
            }

            async fn keep_turn(&self, _: &mut Turn, relay: &str, lease: Duration) -> Result<bool, OutboxError> {
                let binds = [$bytes(relay), $bytes(relay)];
                let begin = self.texts.begin(lease, $insert, $unless_there);
                self.with("taking the turn", async |connection: &mut $connection| {
                    let take = self.texts.take(lease);
                    if Fragment::<(), _>::new(&take, &binds).execute(connection).await? > 0 {
                        return Ok(true);
                    }
                    Ok(Fragment::<(), _>::new(&begin, &binds[..1]).execute(connection).await? > 0)
                })
                .await
            }

            async fn give_turn_up(&self, _: Turn, relay: &str) -> Result<(), OutboxError> {
                let binds = [$bytes(relay)];
                self.with("giving the turn up", async |connection: &mut $connection| {
                    Fragment::<(), _>::new(&self.texts.give_up(), &binds).execute(connection).await.map(drop)
                })
                .await
            }

            async fn first(&self, _: &mut Turn, limit: i64) -> Result<Vec<Result<OutboxMessage, Unfit>>, OutboxError> {
                let binds = [$number(limit)];
                let rows = self.with("reading", async |connection: &mut $connection| {
                    let rows: Vec<Row> =
                        Fragment::<(BigInt, Binary, Binary, Binary, Binary), _>::new(&self.texts.first, &binds)
                            .load(connection)
                            .await?;
                    if !rows.is_empty() {
                        self.await_flush(connection).await?;
                    }
                    Ok(rows)
                });
                Ok(rows.await?.into_iter().map(posted).collect())
            }

            async fn remove(&self, _: &mut Turn, numbers: Vec<i64>) -> Result<(), OutboxError> {
                let text = self.texts.remove(&numbers);
                let what = "removing what is published";
                self.with(what, async |connection: &mut $connection| connection.batch_execute(&text).await).await
            }

            async fn park(&self, _: &mut Turn, unfit: &Unfit) -> Result<(), OutboxError> {
                let (set_apart, remove) = (self.texts.set_apart(), self.texts.remove(&[unfit.number]));
                let binds = [$bytes(&unfit.reason), $number(unfit.number)];
                self.with("parking a row", async |connection: &mut $connection| {
                    connection
                        .transaction(async |tx| {
                            Fragment::<(), _>::new(&set_apart, &binds).execute(tx).await?;
                            tx.batch_execute(&remove).await
                        })
                        .await
                })
                .await
            }
        }

        impl std::fmt::Debug for $outbox {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(stringify!($outbox))
            }
        }
    };
}
pub(super) use outbox_by_texts;
