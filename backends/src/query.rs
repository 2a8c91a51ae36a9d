//! The query of a connection URL: our own parameters are taken off it, and the driver reads the rest.

/// A URL and its parameters.
pub(crate) struct Query<'a> {
    base: &'a str,
    pairs: Vec<&'a str>,
}

impl<'a> Query<'a> {
    /// Finds the query. A password may hold a question mark, and a parameter an at sign.
    pub(crate) fn of(url: &'a str) -> Self {
        let place = url.find("://").map_or(0, |scheme| scheme + 3);
        let authority = url[place..].find('/').map_or(url.len(), |path| place + path);
        let host = url[place..authority].rfind('@').map_or(place, |at| place + at);
        let (base, query) = match url[host..].find('?') {
            Some(mark) => (&url[..host + mark], &url[host + mark + 1..]),
            None => (url, ""),
        };
        Self { base, pairs: query.split('&').filter(|pair| !pair.is_empty()).collect() }
    }

    /// Takes parameters off, in their order, with their values decoded; `None` where one is no text.
    pub(crate) fn take_all(&mut self, names: &[&str]) -> Vec<(String, Option<String>)> {
        let split = |pair: &'a str| pair.split_once('=').unwrap_or((pair, ""));
        let (ours, rest): (Vec<&str>, Vec<&str>) = self.pairs.iter().partition(|pair| names.contains(&split(pair).0));
        self.pairs = rest;
        ours.into_iter().map(split).map(|(name, value)| (name.to_owned(), decoded(value))).collect()
    }

    /// Takes one off; its last value counts.
    #[cfg(any(feature = "mysql", feature = "postgres"))]
    pub(crate) fn take(&mut self, name: &str) -> Option<Option<String>> {
        self.take_all(&[name]).pop().map(|(_, value)| value)
    }

    /// The value of a parameter, which stays for the driver.
    #[cfg(feature = "mysql")]
    pub(crate) fn value(&self, name: &str) -> Option<String> {
        let mut pairs = self.pairs.iter().rev().filter_map(|pair| pair.split_once('='));
        pairs.find(|(found, _)| *found == name).and_then(|(_, value)| decoded(value))
    }

    /// What is left for the driver, in which an at sign would end the credentials for some.
    #[cfg(any(feature = "mysql", feature = "postgres"))]
    pub(crate) fn rest(&self) -> String {
        let (base, query) = self.parts();
        format!("{base}{query}")
    }

    /// The same in two: the second is empty, or begins with its question mark.
    pub(crate) fn parts(&self) -> (&'a str, String) {
        let query = self.pairs.join("&").replace('@', "%40");
        (self.base, if query.is_empty() { query } else { format!("?{query}") })
    }
}

/// Takes percent signs apart; `None` where what they stand for is no text.
pub(crate) fn decoded(text: &str) -> Option<String> {
    let is_whole = |after: &str| after.len() >= 2 && after.bytes().take(2).all(|digit| digit.is_ascii_hexdigit());
    if !text.split('%').skip(1).all(is_whole) {
        return None;
    }
    percent_encoding::percent_decode_str(text).decode_utf8().ok().map(|text| text.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_taken_from_the_query_alone() {
        let cases = [
            ("x://u:p@h/d?a=1&ours=%2Fa%20b+c&b=2", Some("/a b+c"), "x://u:p@h/d?a=1&b=2"),
            ("x://u:p?ours=1@h/d", None, "x://u:p?ours=1@h/d"),
            ("x://u:p?ours=1@h/d?ours=2", Some("2"), "x://u:p?ours=1@h/d"),
            ("x://h/d?name=a@b&ours=1", Some("1"), "x://h/d?name=a%40b"),
            ("x://u:p@x?y@h/d?ours=1", Some("1"), "x://u:p@x?y@h/d"),
            ("x://h?ours=1&ours=2", Some("2"), "x://h"),
            ("x://h/d?ours", Some(""), "x://h/d"),
            ("x://h/ours=1", None, "x://h/ours=1"),
        ];
        for (url, ours, rest) in cases {
            let mut query = Query::of(url);
            assert_eq!(query.take("ours"), ours.map(|ours| Some(ours.to_owned())), "{url}");
            assert_eq!(query.rest(), rest, "{url}");
        }
    }

    #[test]
    fn what_is_no_text_is_refused() {
        assert_eq!(decoded("%C3%A9%25"), Some("é%".to_owned()));
        for bad in ["%zz", "%4", "%", "a%ff"] {
            assert_eq!(decoded(bad), None, "{bad}");
        }
    }
}
