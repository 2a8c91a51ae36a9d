//! The errors of opening a store.

/// Declares the error of opening a store. `$store` is the server's name in messages; `own` are the dialect's own
/// variants.
macro_rules! open_error {
    (
        $(#[$docs:meta])*
        pub enum $error:ident of $store:literal { $($own:tt)* }
    ) => {
        $(#[$docs])*
        #[derive(Debug, thiserror::Error)]
        #[non_exhaustive]
        pub enum $error {
            /// The URL is invalid. The message describes the problem without quoting the URL.
            #[error("the {store} URL can't be read: {0}", store = $store)]
            Url(&'static str),
            /// The certificates that verify the server can't be read.
            #[error("the certificates for {store} can't be read: {0}", store = $store)]
            Certificates(String),
            /// The server can't be reached, or it refuses the connection.
            #[error("{store} can't be reached: {0}", store = $store)]
            Unreachable(String),
            $($own)*
            /// A newer version of this library created the table, and this version would damage it.
            #[error("the table {table} has schema version {found}; this library knows versions up to {known}: use a newer one")]
            NewerSchema {
                /// The table.
                table: String,
                /// The table's schema version.
                found: i64,
                /// The newest schema version that this library knows.
                known: i64,
            },
            /// The table is missing or older, and migrations are switched off.
            #[error("the table {table} has schema version {found} of {known}, and migrations are switched off")]
            NotMigrated {
                /// The table.
                table: String,
                /// The table's schema version; 0 if the table is missing.
                found: i64,
                /// The required schema version.
                known: i64,
            },
            /// The migration of the table failed. The server has rolled back everything that it can roll back.
            #[error("the table {table} could not be brought up to date: {reason}")]
            Migration {
                /// The table.
                table: String,
                /// The server's error message.
                reason: String,
            },
        }

        impl $error {
            /// Converts the reason why the table is not up to date.
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
