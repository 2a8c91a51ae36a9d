//! What opening the store can fail with.

use crate::sql::open_error;

open_error! {
    /// Why a MySQL or MariaDB database could not be opened as a store. No text of it holds the password.
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
        /// The connections of the application's pool have a setting by which operations would run twice.
        #[error("the pool's connections have {setting} = {found}; this store needs {wanted}: set it for each connection")]
        Setting {
            /// The setting.
            setting: &'static str,
            /// The value that was found.
            found: String,
            /// What is needed.
            wanted: &'static str,
        },
    }
}
