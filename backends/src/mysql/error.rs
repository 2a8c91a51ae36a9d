//! The errors of opening the store.

use crate::sql::open_error;

open_error! {
    /// Why the backend could not open a MySQL or MariaDB database as a store. No message contains the password.
    ///
    /// ```
    /// # #[actix_rt::main] async fn main() {
    /// use oncekey_backends::mysql::{MysqlBackend, MysqlOpenError};
    ///
    /// let error = MysqlBackend::open("mysql:/u:secret@h").await.unwrap_err();
    /// assert!(matches!(error, MysqlOpenError::Url(_)));
    /// assert!(!error.to_string().contains("secret"));
    /// # }
    /// ```
    pub enum MysqlOpenError of "MySQL" {
        /// The connections of the application's pool have a setting that would make operations run twice.
        #[error("the pool's connections have {setting} = {found}; this store needs {wanted}: set it for each connection")]
        Setting {
            /// The setting.
            setting: &'static str,
            /// The value that was found.
            found: String,
            /// The required value.
            wanted: &'static str,
        },
    }
}
