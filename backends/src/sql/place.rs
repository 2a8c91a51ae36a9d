//! Where the tables are.

use super::name::Name;
use crate::migration::{Migration, Statements};

/// A table and those beside it, in the schema or database of the opening, whatever a session uses later.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    /// By which the database quotes identifiers.
    quote: char,
    /// The schema or database. `None`: the one that is used where the names are read.
    within: Option<String>,
    table: Name,
}

impl Place {
    /// In the schema or database `within`.
    pub(crate) fn new(quote: char, within: String, table: Name) -> Self {
        Self { quote, within: Some(within), table }
    }

    /// In whatever schema or database is used there.
    pub(crate) fn anywhere(quote: char, table: Name) -> Self {
        Self { quote, within: None, table }
    }

    pub(crate) fn within(&self) -> &str {
        self.within.as_deref().unwrap_or_default()
    }

    /// The table's name alone, without quotes.
    pub(crate) fn table(&self) -> String {
        self.table.to_string()
    }

    /// The quoted name of the table.
    pub(crate) fn qualified(&self) -> String {
        self.beside("")
    }

    /// The quoted name of the table of steps.
    pub(crate) fn steps(&self) -> String {
        self.beside("_steps")
    }

    /// The quoted name of a table beside it.
    pub(crate) fn beside(&self, suffix: &str) -> String {
        let name = quoted(self.quote, &format!("{}{suffix}", self.table));
        match &self.within {
            Some(within) => format!("{}.{name}", quoted(self.quote, within)),
            None => name,
        }
    }

    /// Puts the names into a text. `{table}` stands for the table's name, and `{name}` for the same without its schema;
    /// `{steps}` and `{flushes}` for the tables beside it.
    pub(crate) fn fill(&self, text: &str) -> String {
        let names = [("{table}", self.qualified()), ("{name}", self.table()), ("{steps}", self.steps())];
        let names = names.into_iter().chain([("{flushes}", self.beside("_flushes"))]);
        names.fold(text.to_owned(), |text, (name, value)| text.replace(name, &value))
    }
}

impl Place {
    /// The texts of a schema here. `columns` are those of the table of versions, and `insert` is the word by which a row
    /// gets into it.
    pub(crate) fn statements(&self, migrations: &[Migration], columns: &str, insert: &str) -> Statements {
        let versions = self.beside("_migrations");
        let made = format!("CREATE TABLE IF NOT EXISTS {versions} {columns}");
        let record = |version| format!("{insert} INTO {versions} VALUES ({version})");
        Statements::new(made, migrations, |text| self.fill(text), record)
    }
}

/// An identifier as it stands in a statement.
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
