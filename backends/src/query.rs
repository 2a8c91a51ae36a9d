//! The query of a connection URL: this module removes our own parameters, and the driver reads the rest.

/// A URL and its parameters.
pub(crate) struct Query<'a> {
    base: &'a str,
    pairs: Vec<&'a str>,
}

impl<'a> Query<'a> {
    /// Finds the query. A password may contain a question mark, and a parameter an at sign.
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

    /// Removes parameters and returns them in order, with decoded values; `None` where a value is not valid text.
    pub(crate) fn take_all(&mut self, names: &[&str]) -> Vec<(String, Option<String>)> {
        let split = |pair: &'a str| pair.split_once('=').unwrap_or((pair, ""));
        let (ours, rest): (Vec<&str>, Vec<&str>) = self.pairs.iter().partition(|pair| names.contains(&split(pair).0));
        self.pairs = rest;
        ours.into_iter().map(split).map(|(name, value)| (name.to_owned(), decoded(value))).collect()
    }

    /// Removes one parameter and returns its last value.
    #[cfg(any(feature = "mysql", feature = "postgres"))]
    pub(crate) fn take(&mut self, name: &str) -> Option<Option<String>> {
        self.take_all(&[name]).pop().map(|(_, value)| value)
    }

    /// Returns the value of a parameter and leaves it for the driver.
    #[cfg(feature = "mysql")]
    pub(crate) fn value(&self, name: &str) -> Option<String> {
        let mut pairs = self.pairs.iter().rev().filter_map(|pair| pair.split_once('='));
        pairs.find(|(found, _)| *found == name).and_then(|(_, value)| decoded(value))
    }

    /// Returns the rest of the URL for the driver. At signs in the query are escaped: some drivers would end the
    /// credentials there.
    #[cfg(any(feature = "mysql", feature = "postgres"))]
    pub(crate) fn rest(&self) -> String {
        let (base, query) = self.parts();
        format!("{base}{query}")
    }

    /// Returns the rest in two parts. The second is empty, or begins with the question mark.
    pub(crate) fn parts(&self) -> (&'a str, String) {
        let query = self.pairs.join("&").replace('@', "%40");
        (self.base, if query.is_empty() { query } else { format!("?{query}") })
    }
}

/// Decodes percent escapes; `None` where the result is not valid text.
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
