//! The location of the tables.

use super::name::Name;
use crate::migration::{Migration, Statements};

/// A table and its companion tables, in the schema or database that was found at opening, whatever a session uses
/// later.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    /// The character with which the database quotes identifiers.
    quote: char,
    /// The schema or database. `None`: the one in use where the names are read.
    within: Option<String>,
    table: Name,
}

impl Place {
    /// Places the table in the schema or database `within`.
    pub(crate) fn new(quote: char, within: String, table: Name) -> Self {
        Self { quote, within: Some(within), table }
    }

    /// Places the table in whichever schema or database is in use.
    pub(crate) fn anywhere(quote: char, table: Name) -> Self {
        Self { quote, within: None, table }
    }

    pub(crate) fn within(&self) -> &str {
        self.within.as_deref().unwrap_or_default()
    }

    /// Returns the table's name alone, without quotes.
    pub(crate) fn table(&self) -> String {
        self.table.to_string()
    }

    /// Returns the quoted name of the table.
    pub(crate) fn qualified(&self) -> String {
        self.beside("")
    }

    /// Returns the quoted name of the table of steps.
    pub(crate) fn steps(&self) -> String {
        self.beside("_steps")
    }

    /// Returns the quoted name of a companion table.
    pub(crate) fn beside(&self, suffix: &str) -> String {
        let name = quoted(self.quote, &format!("{}{suffix}", self.table));
        match &self.within {
            Some(within) => format!("{}.{name}", quoted(self.quote, within)),
            None => name,
        }
    }

    /// Fills the names into a text: `{table}` is the table's name, `{name}` the same without its schema, and `{steps}`
    /// and `{flushes}` are the companion tables.
    pub(crate) fn fill(&self, text: &str) -> String {
        let names = [("{table}", self.qualified()), ("{name}", self.table()), ("{steps}", self.steps())];
        let names = names.into_iter().chain([("{flushes}", self.beside("_flushes"))]);
        names.fold(text.to_owned(), |text, (name, value)| text.replace(name, &value))
    }
}

impl Place {
    /// Returns the statements of a schema at this place. `columns` are those of the table of versions, and `insert` is
    /// the keyword that inserts a row into it.
    pub(crate) fn statements(&self, migrations: &[Migration], columns: &str, insert: &str) -> Statements {
        let versions = self.beside("_migrations");
        let made = format!("CREATE TABLE IF NOT EXISTS {versions} {columns}");
        let record = |version| format!("{insert} INTO {versions} VALUES ({version})");
        Statements::new(made, migrations, |text| self.fill(text), record)
    }
}

/// Returns an identifier in quotes, as a statement needs it.
pub(crate) fn quoted(quote: char, name: &str) -> String {
    let doubled = name.replace(quote, &format!("{quote}{quote}"));
    format!("{quote}{doubled}{quote}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_quoted_with_their_schema() {
        let place = Place::new('"', "a\"b".to_owned(), Name::fixed("records"));
        assert_eq!(place.qualified(), "\"a\"\"b\".\"records\"");
        assert_eq!(place.fill("{table} {name} {steps}"), "\"a\"\"b\".\"records\" records \"a\"\"b\".\"records_steps\"");
        assert_eq!(Place::anywhere('`', Name::fixed("records")).fill("{flushes}"), "`records_flushes`");
    }
}
