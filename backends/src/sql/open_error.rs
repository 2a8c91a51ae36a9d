//! What opening a store can fail with.

/// The error of a store's opening. `$store` is the server's name, as messages say it; `own` are the dialect's own variants.
macro_rules! open_error {
    (
        $(#[$docs:meta])*
        pub enum $error:ident of $store:literal { $($own:tt)* }
    ) => {
        $(#[$docs])*
        #[derive(Debug, thiserror::Error)]
        #[non_exhaustive]
        pub enum $error {
            /// The URL can't be read. What is wrong with it is told without quoting it.
            #[error("the {store} URL can't be read: {0}", store = $store)]
            Url(&'static str),
            /// The certificates to verify the server by can't be read.
            #[error("the certificates for {store} can't be read: {0}", store = $store)]
            Certificates(String),
            /// The server can't be reached, or refuses the connection.
            #[error("{store} can't be reached: {0}", store = $store)]
            Unreachable(String),
            $($own)*
            /// The table was made by a newer version of this library, which this one would damage.
            #[error("the table {table} has schema version {found}; this library knows versions up to {known}: use a newer one")]
            NewerSchema {
                /// The table.
                table: String,
                /// The version that it has.
                found: i64,
                /// The newest version known here.
                known: i64,
            },
            /// The table is missing or of an older version, and was not to be made.
            #[error("the table {table} has schema version {found} of {known}, and migrations are switched off")]
            NotMigrated {
                /// The table.
                table: String,
                /// The version that it has; 0 if it is missing.
                found: i64,
                /// The version that is needed.
                known: i64,
            },
            /// The table could not be made or brought up to date. What the server can take back, it has taken back.
            #[error("the table {table} could not be brought up to date: {reason}")]
            Migration {
                /// The table.
                table: String,
                /// What the server said.
                reason: String,
            },
        }

        impl $error {
            /// Why the table is not up to date.
            pub(super) fn not_migrated(table: String, error: $crate::migration::NotMigrated) -> Self {
                use $crate::migration::NotMigrated;

                match error {
                    NotMigrated::Newer { found, known } => Self::NewerSchema { table, found, known },
                    NotMigrated::Older { found, known } => Self::NotMigrated { table, found, known },
                    NotMigrated::Failed(error) => Self::Migration { table, reason: error.to_string() },
                }
            }
        }
    };
}
pub(crate) use open_error;
