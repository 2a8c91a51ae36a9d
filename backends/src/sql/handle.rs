//! The public handle and its options, the same for every dialect.

/// Declares a store's public handle and its builder. Each dialect supplies their names and the documentation that
/// differs.
macro_rules! sql_backend {
    (
        $(#[$backend_docs:meta])*
        pub struct $backend:ident;

        $(#[$options_docs:meta])*
        pub struct $builder:ident;

        dialect: $dialect:ty,
        error: $error:ident,
        connection: $connection:ident,
        // The module in the public path, which is also the URL scheme.
        path: $path:literal,
        // Sync Diesel's connection type, and its backend as module and name.
        blocking: $blocking:literal in $sync_module:ident :: $sync:ident,
        $(#[$url_docs:meta])*
        url,
        $(#[$pool_docs:meta])*
        pool,
        $(#[$table_docs:meta])*
        table,
        $(#[$open_docs:meta])*
        open,
        { $($own:item)* }
    ) => {
        $(#[$backend_docs])*
        #[derive(Clone)]
        pub struct $backend($crate::sql::SqlBackend<$dialect>);

        $(#[$options_docs])*
        #[must_use]
        pub struct $builder($crate::sql::Options<$dialect>);

        impl $backend {
            #[doc = concat!("Connects with the default options; see [`", stringify!($builder), "::open`].")]
            ///
            /// # Errors
            #[doc = concat!("[`", stringify!($error), "`] says why the store could not be opened.")]
            ///
            /// ```no_run
            /// # async fn open() -> Result<(), Box<dyn std::error::Error>> {
            #[doc = concat!("use oncekey_backends::", $path, "::", stringify!($backend), ";")]
            ///
            #[doc = concat!("let backend = ", stringify!($backend), "::open(\"", $path, "://shop@db.example/shop\").await?;")]
            /// # Ok(()) }
            /// ```
            pub async fn open(url: &str) -> Result<Self, $error> {
                Self::builder(url).open().await
            }

            $(#[$url_docs])*
            ///
            /// ```
            #[doc = concat!("use oncekey_backends::", $path, "::", stringify!($backend), ";")]
            ///
            #[doc = concat!("let builder = ", stringify!($backend), "::builder(\"", $path, "://shop@localhost/shop\").pool_size(12);")]
            /// # let _ = builder;
            /// ```
            pub fn builder(url: impl Into<String>) -> $builder {
                $builder($crate::sql::Options::new($crate::sql::Source::Url(url.into())))
            }

            /// Returns options for using the application's own pool, which all arbiters then share. The pool needs
            /// about 5 connections for each arbiter, and its runtime must outlive the engine.
            ///
            $(#[$pool_docs])*
            ///
            /// ```
            #[doc = concat!("use diesel_async::", stringify!($connection), ";")]
            /// use diesel_async::pooled_connection::AsyncDieselConnectionManager;
            /// use diesel_async::pooled_connection::deadpool::Pool;
            #[doc = concat!("use oncekey_backends::", $path, "::", stringify!($backend), ";")]
            ///
            #[doc = concat!("let url = \"", $path, "://shop@localhost/shop\";")]
            #[doc = concat!("let manager = AsyncDieselConnectionManager::<", stringify!($connection), ">::new(url);")]
            /// let pool = Pool::builder(manager).max_size(20).build()?;
            #[doc = concat!("let builder = ", stringify!($backend), "::from_pool(pool);")]
            /// # let _ = builder;
            /// # Ok::<(), Box<dyn std::error::Error>>(())
            /// ```
            pub fn from_pool(pool: impl Into<$crate::DieselPool<$connection>>) -> $builder {
                $builder($crate::sql::Options::new($crate::sql::Source::Pool(pool.into())))
            }

            /// Returns a connection pool for the application's own queries. It opens connections as this backend does
            /// and tests each one before lending it, so a server restart causes no errors. If the backend uses the
            /// application's deadpool pool, this returns that pool; for a bb8 or mobc pool, it returns a pool that only
            /// fails and says why.
            ///
            /// ```no_run
            /// # async fn open() -> Result<(), Box<dyn std::error::Error>> {
            #[doc = concat!("# use oncekey_backends::", $path, "::", stringify!($backend), ";")]
            #[doc = concat!("let backend = ", stringify!($backend), "::open(\"", $path, "://shop@localhost/shop\").await?;")]
            /// let connection = backend.pool().get().await?;
            /// # Ok(()) }
            /// ```
            pub fn pool(&self) -> diesel_async::pooled_connection::deadpool::Pool<$connection> {
                self.0.pool()
            }

            /// Completes a claim **in the caller's own open transaction**: the outcome and the caller's rows commit
            /// together, or not at all. The message comes from [`Claim::completion`](oncekey::Claim::completion).
            ///
            /// Call it as the last step of the transaction. It locks the record until the transaction ends, and the
            /// claim's lease renewals wait for the lock.
            ///
            /// # Cancel safety
            /// If the future is dropped before it completes, roll the transaction back.
            ///
            /// # Errors
            /// [`CompleteInError`](crate::CompleteInError): roll the transaction back.
            ///
            /// ```no_run
            /// # async fn order() -> Result<(), Box<dyn std::error::Error>> {
            /// use diesel_async::{AsyncConnection as _, SimpleAsyncConnection as _};
            /// use oncekey::{Engine, Key, OnAbandoned};
            #[doc = concat!("use oncekey_backends::", stringify!($backend), ";")]
            ///
            /// type Failure = Box<dyn std::error::Error + Send + Sync>;
            ///
            #[doc = concat!("let backend = ", stringify!($backend), "::open(\"", $path, "://shop@localhost/shop\").await?;")]
            /// // Only committed work has happened, so a claim whose owner crashed may run again.
            /// let engine = Engine::builder(backend.clone()).on_abandoned(OnAbandoned::Rerun).start()?;
            /// let pool = backend.pool();
            ///
            /// let key = Key::new("orders", 17)?;
            /// let order = engine.run_local(key, &"book", async move |claim| {
            ///     let mut connection = pool.get().await?;
            ///     let order = connection.transaction(async |tx| {
            ///         tx.batch_execute("INSERT INTO orders (item) VALUES ('book')").await?;
            ///         backend.complete_in(tx, claim.completion(&17)?).await?;
            ///         Ok::<_, Failure>(17)
            ///     });
            ///     order.await
            /// });
            /// order.await?;
            /// # Ok(()) }
            /// ```
            pub async fn complete_in(
                &self,
                connection: &mut $connection,
                completion: oncekey::backend::Complete,
            ) -> Result<(), $crate::CompleteInError> {
                self.0.core.complete_in(connection, &completion).await
            }

            /// Does what [`complete_in`](Self::complete_in) does, in a transaction of sync Diesel. Its connection is a
            #[doc = concat!("`", $blocking, "`, from any pool or none. It blocks: call it where the transaction's other")]
            /// statements run.
            ///
            /// # Errors
            /// [`CompleteInError`](crate::CompleteInError): roll the transaction back.
            ///
            /// ```no_run
            /// use diesel::connection::LoadConnection;
            #[doc = concat!("use diesel::", stringify!($sync_module), "::", stringify!($sync), ";")]
            /// use oncekey::backend::Complete;
            #[doc = concat!("use oncekey_backends::{CompleteInError, ", stringify!($backend), "};")]
            ///
            #[doc = concat!("// `C` is `", $blocking, "`, and the completion comes from `Claim::completion`.")]
            #[doc = concat!("fn order<C>(backend: &", stringify!($backend), ", connection: &mut C, completion: Complete) -> Result<(), CompleteInError>")]
            /// where
            #[doc = concat!("    C: LoadConnection<Backend = ", stringify!($sync), ">,")]
            /// {
            ///     connection.transaction(|tx| {
            ///         tx.batch_execute("INSERT INTO orders (item) VALUES ('book')")?;
            ///         backend.complete_in_blocking(tx, completion)
            ///     })
            /// }
            /// ```
            #[cfg(feature = "blocking")]
            pub fn complete_in_blocking<C>(
                &self,
                connection: &mut C,
                completion: oncekey::backend::Complete,
            ) -> Result<(), $crate::CompleteInError>
            where
                C: diesel::connection::LoadConnection<Backend = diesel::$sync_module::$sync>,
            {
                $crate::sql::complete_in(&*self.0.core.dialect, connection, &completion)
            }

            /// Returns the server settings that differ from what this store needs.
            #[doc = concat!("[`open`](", stringify!($builder), "::open) logs the same findings.")]
            ///
            /// # Errors
            /// Fails if the backend can't ask the server.
            ///
            /// ```no_run
            /// # async fn open() -> Result<(), Box<dyn std::error::Error>> {
            #[doc = concat!("# use oncekey_backends::", $path, "::", stringify!($backend), ";")]
            #[doc = concat!("let backend = ", stringify!($backend), "::open(\"", $path, "://shop@localhost/shop\").await?;")]
            /// for finding in backend.doctor().await? {
            ///     println!("{finding}");
            /// }
            /// # Ok(()) }
            /// ```
            pub async fn doctor(&self) -> Result<Vec<$crate::Finding>, oncekey::backend::StoreError> {
                self.0.doctor().await
            }
        }

        impl std::fmt::Debug for $backend {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                let name = stringify!($backend);
                f.debug_struct(name).field("table", &self.0.place().qualified()).finish_non_exhaustive()
            }
        }

        impl $builder {
            $(#[$table_docs])*
            ///
            /// # Errors
            /// Returns [`InvalidName`](super::InvalidName) unless it is a plain name.
            pub fn table(mut self, table: &str) -> Result<Self, $crate::sql::InvalidName> {
                self.0.wanted.table = $crate::sql::Name::new(table)?;
                Ok(self)
            }

            /// Limits how many connections **each arbiter** (each worker of a server) opens. Default: 8, of which 4 are
            /// for claims and settlements, and the others for operations in transactions. At least 5. An application's
            /// pool has its own size; set this only where [the pool does not report it](crate::DieselPool).
            pub fn pool_size(mut self, connections: usize) -> Self {
                self.0.pool_size = connections.max(5);
                self
            }

            /// Sets whether [`open`](Self::open) creates and updates the table. If false, the table must already exist.
            /// Default: true.
            pub fn migrate(mut self, migrate: bool) -> Self {
                self.0.wanted.migrate = migrate;
                self
            }

            /// Sets the application's r2d2 pool of sync Diesel, for operations that block:
            /// [`run_in_transaction`](oncekey::Engine::run_in_transaction) gives them a connection from this pool, a
            #[doc = concat!("`", $blocking, "`, in the transaction that also stores their outcome. Everything else uses the")]
            /// backend's own connections, which must lead to the same database.
            ///
            /// One pool may serve any number of engines. An operation runs on a blocking thread, and only **once**: if
            /// the database aborts the transaction in favor of another one (a deadlock), the transaction is rolled back
            /// and the call returns [`Overloaded`](oncekey::backend::StoreError::Overloaded).
            ///
            /// [`Claim::step_in_transaction`](oncekey::Claim::step_in_transaction) gives a step a connection from this
            /// pool in the same way.
            ///
            /// [`open`](Self::open) checks that the pool reaches the table. A pool that leads to another database
            /// commits nothing.
            ///
            /// ```no_run
            /// use diesel::connection::{AnsiTransactionManager, LoadConnection};
            #[doc = concat!("use diesel::", stringify!($sync_module), "::", stringify!($sync), ";")]
            /// use diesel::r2d2::{ConnectionManager, Pool, R2D2Connection};
            /// use oncekey::{Engine, Key};
            #[doc = concat!("use oncekey_backends::", stringify!($backend), ";")]
            ///
            #[doc = concat!("// `C` is `", $blocking, "`.")]
            /// # async fn open<C>() -> Result<(), Box<dyn std::error::Error>>
            /// # where
            #[doc = concat!("#     C: R2D2Connection + LoadConnection<Backend = ", stringify!($sync), ", TransactionManager = AnsiTransactionManager> + 'static,")]
            /// # {
            #[doc = concat!("let url = \"", $path, "://shop@localhost/shop\";")]
            /// let pool = Pool::new(ConnectionManager::<C>::new(url))?;
            #[doc = concat!("let backend = ", stringify!($backend), "::builder(url).blocking_pool(pool.clone()).open().await?;")]
            /// let engine = Engine::builder(backend).start()?;
            /// let order = engine.run_in_transaction(Key::new("orders", 17)?, &"book", |tx: &mut C, _claim| {
            ///     tx.batch_execute("INSERT INTO orders (item) VALUES ('book')")?;
            ///     Ok::<_, diesel::result::Error>(17)
            /// });
            /// order.await?;
            /// # Ok(()) }
            /// ```
            #[cfg(feature = "blocking")]
            pub fn blocking_pool<M>(mut self, pool: diesel::r2d2::Pool<M>) -> Self
            where
                M: diesel::r2d2::ManageConnection,
                M::Connection: diesel::connection::LoadConnection<
                        Backend = diesel::$sync_module::$sync,
                        TransactionManager = diesel::connection::AnsiTransactionManager,
                    >,
            {
                self.0.blocking = Some($crate::sql::Transactions::by(pool));
                self
            }

            /// Connects, updates the table if needed, and checks the server's settings. For a setting that can lose
            /// stored outcomes, it logs a warning that names the setting.
            ///
            $(#[$open_docs])*
            ///
            /// # Errors
            #[doc = concat!("[`", stringify!($error), "`] says why the store could not be opened.")]
            pub async fn open(self) -> Result<$backend, $error> {
                self.0.open().await.map($backend)
            }
        }

        /// Hides the URL, which may contain a password.
        impl std::fmt::Debug for $builder {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                let (wanted, pool_size) = (&self.0.wanted, &self.0.pool_size);
                let mut options = f.debug_struct(stringify!($builder));
                options.field("wanted", wanted).field("pool_size", pool_size).finish_non_exhaustive()
            }
        }

        $crate::sql::by_core! { $backend { $($own)* } }
    };
}
pub(crate) use sql_backend;
