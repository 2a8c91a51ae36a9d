//! What PostgreSQL's outbox and MySQL's share: turns by a lock of a connection's session.

/// Takes turns by `$lock`, a condition that is true for one session at a time.
macro_rules! takes_turns_by {
    ($lock:ident, $outbox:ident, $connection:ty) => {
        /// The turn: a lock of the connection's session, which the server ends with it.
        pub struct Turn {
            // Taken out of the pool for good: given back, the lock would go with it.
            connection: $connection,
        }

        impl Table for $outbox {
            type Turn = Turn;

            async fn take_turn(&self) -> Result<Option<Turn>, OutboxError> {
                let connection = self.pool.get().await.map_err(failed("connecting"))?;
                let mut connection = Object::take(connection);
                let asked = diesel::select(diesel::dsl::sql::<Bool>($lock)).get_result(&mut connection);
                let is_locked: bool = asked.await.map_err(failed("locking out other relays"))?;
                Ok(is_locked.then_some(Turn { connection }))
            }

            async fn first(&self, turn: &mut Turn, limit: i64) -> Result<Vec<Posted>, OutboxError> {
                let first = oncekey_outbox::table.order(oncekey_outbox::id).limit(limit).load(&mut turn.connection);
                let first: Vec<_> = first.await.map_err(failed("reading"))?;
                if !first.is_empty() {
                    let flushed = self.await_flush(&mut turn.connection).await;
                    flushed.map_err(failed("waiting until what is read is on the disk"))?;
                }
                first.into_iter().map(posted).collect()
            }

            async fn remove(&self, turn: &mut Turn, numbers: Vec<i64>) -> Result<(), OutboxError> {
                let rows = oncekey_outbox::table.filter(oncekey_outbox::id.eq_any(numbers));
                diesel::delete(rows)
                    .execute(&mut turn.connection)
                    .await
                    .map_err(failed("removing what is published"))
                    .map(drop)
            }
        }

        impl std::fmt::Debug for $outbox {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(stringify!($outbox))
            }
        }

        impl std::fmt::Debug for Turn {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("Turn")
            }
        }
    };
}
pub(super) use takes_turns_by;
