//! A dead letter: its headers, and its parts if it is larger than the server accepts.
//!
//! A dead letter has more headers than its message. The dead letter of a message of the maximum size would exceed the
//! limit, and setting the message aside would fail forever. So such a dead letter is split into parts.

use std::ops::Range;

use async_nats::HeaderMap;

use super::publish::put;
use super::{NatsError, failed};
use crate::consumer::Message;

/// Why the message is a dead letter.
const ERROR: &str = "Oncekey-Error";
/// The message's id.
const ID: &str = "Oncekey-Id";
/// The number of this part and the number of parts.
const PART: &str = "Oncekey-Part";
/// The prefix of each of the original's header names. The server acts on some headers (`Nats-Expected-…`,
/// `Nats-Rollup`), and must not act on those of a dead letter.
const PREFIX: &str = "Oncekey-Header-";

/// How many bytes of headers a stream accepts.
const LONGEST_HEADERS: usize = 65_535;

/// The headers of the original that a part carries, and its range of the payload.
#[derive(Debug, Default, PartialEq)]
struct Part {
    headers: Vec<(String, String)>,
    payload: Range<usize>,
}

/// Returns the messages to publish, in order. Each part has its own id, so a message that is set aside twice, because
/// its `TERM` was lost, is stored once.
pub(super) fn letter(
    message: &Message,
    once: &str,
    reason: &str,
    max_payload: usize,
) -> Result<Vec<(HeaderMap, Message)>, NatsError> {
    // A server with a small message limit has no room for a long text.
    let reason = &reason[..reason.floor_char_boundary(max_payload / 4)];
    let own = |part: Option<(usize, usize)>| {
        let mut own = vec![(ERROR.to_owned(), line(reason)), (ID.to_owned(), line(message.id()))];
        let id = match part {
            None => once.to_owned(),
            Some((number, count)) => {
                own.push((PART.to_owned(), format!("{number}/{count}")));
                format!("{once}:{number}")
            }
        };
        let name: &str = async_nats::header::NATS_MESSAGE_ID.as_ref();
        own.push((name.to_owned(), id));
        own
    };
    // No part number has more digits than these.
    let own_len = len(&own(Some((usize::MAX, usize::MAX))));
    let too_large = || failed("putting a message aside")("the server takes no message as large as its headers");
    let room = |limit: usize| limit.checked_sub(own_len).ok_or_else(too_large);
    let headers = message.headers().iter().map(|(name, value)| (format!("{PREFIX}{name}"), line(value)));
    let parts =
        split(headers.collect(), message.payload().len(), room(max_payload)?, room(max_payload.min(LONGEST_HEADERS))?);
    let parts = parts.ok_or_else(too_large)?;
    let count = parts.len();
    let numbered = parts.into_iter().enumerate().map(|(number, Part { headers, payload })| {
        let mut all = HeaderMap::new();
        for (name, value) in headers.into_iter().chain(own((count > 1).then_some((number + 1, count)))) {
            put(&mut all, &name, &value)?;
        }
        Ok((all, Message::new(message.id(), message.payload().slice(payload))))
    });
    numbered.collect()
}

/// Replaces line breaks, because a header is one line.
fn line(text: &str) -> String {
    text.replace(['\r', '\n'], " ")
}

/// Returns how many bytes the headers take on the wire: the version line, each header with its separators, and the
/// final empty line.
fn len(headers: &[(String, String)]) -> usize {
    "NATS/1.0\r\n\r\n".len() + headers.iter().map(line_len).sum::<usize>()
}

fn line_len((name, value): &(String, String)) -> usize {
    name.len() + value.len() + ": \r\n".len()
}

/// Splits headers and payload into as few parts as possible. Each part has `room` bytes, of which headers may take
/// `for_headers`. Returns `None` if a single header does not fit.
fn split(headers: Vec<(String, String)>, payload: usize, room: usize, for_headers: usize) -> Option<Vec<Part>> {
    let mut parts = vec![Part::default()];
    let mut left = for_headers;
    for header in headers {
        let needed = line_len(&header);
        if needed > left {
            parts.push(Part::default());
            left = Some(for_headers).filter(|room| needed <= *room)?;
        }
        left -= needed;
        parts.last_mut()?.headers.push(header);
    }
    let mut left = room - (for_headers - left);
    let mut taken = 0;
    while taken < payload {
        if left == 0 {
            parts.push(Part::default());
            left = Some(room).filter(|room| *room > 0)?;
        }
        let share = left.min(payload - taken);
        parts.last_mut()?.payload = taken..taken + share;
        (taken, left) = (taken + share, left - share);
    }
    Some(parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(parts: &[(HeaderMap, Message)]) -> (Vec<u8>, usize) {
        let payload = parts.iter().flat_map(|(_, part)| part.payload().to_vec()).collect();
        let headers = parts.iter().flat_map(|(headers, _)| headers.iter());
        (payload, headers.filter(|(name, _)| name.to_string().starts_with(PREFIX)).count())
    }

    #[test]
    fn j08_a_letter_of_any_size_is_whole_and_no_part_is_larger_than_the_server_takes() {
        for payload in [0, 1, 100, 700, 1_000, 5_000] {
            for count in [0, 1, 20] {
                let bare = Message::new("17", (0..payload).map(|byte: usize| byte as u8).collect::<Vec<_>>());
                let message =
                    (0..count).fold(bare, |message, number| message.with_header(format!("h{number}"), "v".repeat(40)));
                let parts = letter(&message, "ORDERS:1", &"no route\n".repeat(1_000), 1_000).unwrap();
                assert_eq!(whole(&parts), (message.payload().to_vec(), count), "{payload} bytes, {count} headers");
                for (headers, part) in &parts {
                    let names: Vec<(String, String)> =
                        headers.iter().map(|(name, values)| (name.to_string(), values[0].to_string())).collect();
                    assert!(len(&names) + part.payload().len() <= 1_000, "{} parts", parts.len());
                    assert_eq!(headers.get(PART).is_some(), parts.len() > 1);
                }
            }
        }
        let unfit = Message::new("17", "").with_header("h", "v".repeat(1_000));
        assert!(letter(&unfit, "ORDERS:1", "no route", 1_000).is_err());
        assert!(letter(&Message::new("17", "a"), "ORDERS:1", "no route", 50).is_err());
    }
}
